"""What is compared: every combination of templates, shots, adapters and temperatures."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NO_ADAPTER = "none"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of prompting. `adapter` is `none` for the base model, None for the template's own."""

    template: str
    shots: int | str
    adapter: str | None = None
    temperature: float | None = None

    def body(self, inputs: dict[str, Any], seed: int) -> dict[str, Any]:
        """The fields of a request that it stands for."""
        body: dict[str, Any] = {"inputs": inputs, "shots": self.shots}
        if self.adapter is not None:
            body["adapter"] = None if self.adapter == NO_ADAPTER else self.adapter
        if self.temperature is not None:
            body["temperature"] = self.temperature
            if self.temperature > 0:
                body["seed"] = seed
        return body


def combine(
    templates: Sequence[str],
    shots: Sequence[int | str],
    adapters: Sequence[str | None],
    temperatures: Sequence[float | None],
) -> list[Variant]:
    return [Variant(*each) for each in itertools.product(templates, shots, adapters, temperatures)]


def name_of(variant: Variant, variants: Sequence[Variant]) -> str:
    """What tells it apart from the others."""
    parts = []
    if len({each.template for each in variants}) > 1:
        parts.append(variant.template)
    parts.append("1 shot" if variant.shots == 1 else f"{variant.shots} shots")
    if len({each.adapter for each in variants}) > 1:
        parts.append(variant.adapter or "template's adapter")
    if len({each.temperature for each in variants}) > 1:
        parts.append(f"temperature {variant.temperature or 0:g}")
    return ", ".join(parts)


def key_of(model: str, body: dict[str, Any], reference: str) -> str:
    """Tells one question from every other, so that an answer can be found again."""
    asked = json.dumps([model, body, reference], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
