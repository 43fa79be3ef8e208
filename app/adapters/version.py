"""A version of an adapter: what was learned from its files when they were checked."""

from dataclasses import dataclass
from typing import Any

from softserve.schema.adapters import AdapterKind


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version.

    `digest` is the SHA-256 of its files, in hexadecimal. A LoRA has a `rank` (its largest) and
    `target_modules` (the last parts of their names), and `trained_tokens`, the ids of those that it
    has embeddings of its own for; a soft prompt has `num_virtual_tokens`. One with `num_tasks` has
    rows for each of them; `task` is the one that was named at upload. `base_model` is the one that
    it declares, if it declares one. `notes` say in what it is served otherwise than its files say.
    """

    digest: str
    kind: AdapterKind
    size_bytes: int
    base_model: str | None
    rank: int | None = None
    target_modules: tuple[str, ...] = ()
    num_virtual_tokens: int | None = None
    num_tasks: int | None = None
    task: int | None = None
    notes: tuple[str, ...] = ()
    trained_tokens: tuple[int, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of `VersionFacts`."""
        return {
            "size_bytes": self.size_bytes,
            "base_model": self.base_model,
            "rank": self.rank,
            "target_modules": list(self.target_modules),
            "virtual_tokens": self.num_virtual_tokens,
            "tasks": self.num_tasks,
            "task": self.task,
            "notes": list(self.notes),
        }
