"""Who sends a request: the key that it came with, or nobody in particular."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from app.errors import NotPermitted
from softserve.schema.keys import ANONYMOUS as ANONYMOUS_NAME
from softserve.schema.keys import ROLES, Role

# Names or patterns of names (`*`, `?`, `[abc]`, as in a shell); None is every name.
Patterns = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much a caller may ask for; None is as much as there is.

    `weight` is the caller's part of a busy server, against the weights of others who wait.
    `max_priority` is the highest `priority` that its requests may have.
    """

    max_requests_in_flight: int | None = None
    prompt_tokens_per_minute: int | None = None
    completion_tokens_per_minute: int | None = None
    weight: float = 1.0
    max_priority: int = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of a key, and what it allows. `adapters` is for LoRAs and soft prompts alike."""

    name: str
    roles: frozenset[Role]
    adapters: Patterns = None
    templates: Patterns = None
    quotas: Quotas = field(default_factory=Quotas)

    def may_use_adapter(self, name: str) -> bool:
        return _matches(name, self.adapters)

    def may_use_template(self, name: str) -> bool:
        return _matches(name, self.templates)

    def require_adapter(self, reference: str | None, param: str) -> None:
        """Raises `NotPermitted` where the caller may not use the adapter that is named."""
        if reference is not None and not self.may_use_adapter(name := name_in(reference)):
            raise self._not_permitted("adapter", name, param)

    def require_template(self, reference: str, param: str) -> None:
        """Raises `NotPermitted` where the caller may not use the template that is named."""
        if not self.may_use_template(name := name_in(reference)):
            raise self._not_permitted("template", name, param)

    def _not_permitted(self, noun: str, name: str, param: str) -> NotPermitted:
        """The same whether there is one or not: nothing is learned of names that are not shown."""
        return NotPermitted(
            f"the key {self.name} may not use {noun}s called {name[:64]!r}: ask an admin for it",
            param=param,
        )

    def require_priority(self, priority: int) -> None:
        """Raises `NotPermitted` where a request of the caller may not have this priority."""
        if priority > self.quotas.max_priority:
            raise NotPermitted(
                f"the key {self.name} may not ask for a priority above "
                f"{self.quotas.max_priority}: lower it, or ask an admin for more",
                param="priority",
            )


def name_in(reference: str) -> str:
    """The name in `NAME`, `NAME@VERSION`, `NAME#TASK`."""
    return reference.partition("#")[0].partition("@")[0]


def _matches(name: str, patterns: Patterns) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


# Whoever comes without a key, where the server asks for none.
ANONYMOUS = Caller(ANONYMOUS_NAME, frozenset(ROLES))
# The same, where the server asks for one.
NOBODY = Caller(ANONYMOUS_NAME, frozenset())
