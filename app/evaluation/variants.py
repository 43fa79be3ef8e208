"""What is compared: every combination of templates, shots, adapters and controls."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softserve.schema.controls import FILTERS


@dataclass(frozen=True)
class Variant:
    """One way of prompting: a template, and fields of a request for it.

    None as an adapter or a soft prompt takes the template's own away.
    """

    template: str
    fields: Mapping[str, Any]

    def body(
        self, inputs: Mapping[str, Any], own: Mapping[str, Any], seed: int, samples: int
    ) -> dict[str, Any]:
        """The request that it stands for, of a template with controls of its `own`."""
        body = {"inputs": inputs, **self.fields}
        if not is_random({**own, **self.fields}):
            return body
        return {"seed": seed, **({"n": samples} if samples > 1 else {}), **body}


def is_random(controls: Mapping[str, Any]) -> bool:
    """Whether they ask for random sampling; else decoding is greedy."""
    if (temperature := controls.get("temperature")) is not None:
        return bool(temperature > 0)
    return any(controls.get(name) is not None for name in FILTERS)


def combine(templates: Sequence[str], varied: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """`varied` has the values of each field."""
    return [
        Variant(template, dict(zip(varied, values, strict=True)))
        for template, *values in itertools.product(templates, *varied.values())
    ]


def name_of(variant: Variant, variants: Sequence[Variant]) -> str:
    """What tells it apart from the others."""
    parts = [variant.template] if len({each.template for each in variants}) > 1 else []
    for name, value in variant.fields.items():
        if name == "shots":
            parts.append("1 shot" if value == 1 else f"{value} shots")
        elif any(each.fields[name] != value for each in variants):
            parts.append(_in_words(name, value))
    return ", ".join(parts)


def _in_words(name: str, value: Any) -> str:
    if name not in ("adapter", "soft_prompt"):
        return f"{name} {value}"
    return f"no {name.replace('_', ' ')}" if value is None else str(value)


def key_of(model: str, body: dict[str, Any], reference: str) -> str:
    """Tells one question from every other, so that an answer can be found again."""
    asked = json.dumps([model, body, reference], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
