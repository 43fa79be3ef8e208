"""What temperature, min_p, top_k and top_p do to one next-token distribution, exactly.

The filters run in the engine's order (vLLM's v1/sample/sampler.py): temperature, min_p, top_k,
top_p, each on what the one before it left. All arithmetic is over the whole vocabulary in FP64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from softserve.schema.controls import Sampling

Probabilities = NDArray[np.float64]
Mask = NDArray[np.bool_]
Filter = Literal["min_p", "top_k", "top_p"]


@dataclass(frozen=True, slots=True)
class TokenFate:
    """One token on its way through the controls.

    `kept_by` has an entry per filter: kept, removed, or None where it was removed before.
    """

    token_id: int
    probability: float
    after_temperature: float
    kept_by: dict[Filter, bool | None]
    final: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """The most likely tokens, best first, and what survives in all.

    `surviving_mass` is the probability after temperature that the surviving tokens held together.
    """

    tokens: tuple[TokenFate, ...]
    num_surviving: int
    surviving_mass: float


def inspect_distribution(
    logprobs: NDArray[np.float32], sampling: Sampling, num_tokens: int
) -> Distribution:
    """Apply the controls to log probabilities of shape (vocabulary_size,).

    Greedy decoding is a temperature of zero: all mass on the most likely token.
    """
    scores = logprobs.astype(np.float64)
    probabilities = _softmax(scores)
    if sampling.greedy:
        tempered = np.zeros_like(probabilities)
        tempered[np.argmax(scores)] = 1.0
    else:
        tempered = _softmax(scores / sampling.temperature)

    filters: dict[Filter, Callable[[Probabilities], Mask]] = {
        "min_p": partial(_keep_min_p, min_p=sampling.min_p),
        "top_k": partial(_keep_top_k, top_k=sampling.top_k),
        "top_p": partial(_keep_top_p, top_p=sampling.top_p),
    }
    reached: dict[Filter, Mask] = {}
    kept: dict[Filter, Mask] = {}
    surviving = np.ones(len(scores), dtype=np.bool_)
    for name, keep in filters.items():
        reached[name] = surviving
        surviving = surviving & keep(_renormalize(tempered, surviving))
        kept[name] = surviving
    final = _renormalize(tempered, surviving)

    order = np.argsort(-scores, kind="stable")[:num_tokens]
    return Distribution(
        tokens=tuple(
            TokenFate(
                token_id=int(token),
                probability=float(probabilities[token]),
                after_temperature=float(tempered[token]),
                kept_by={
                    name: bool(kept[name][token]) if reached[name][token] else None
                    for name in filters
                },
                final=float(final[token]),
            )
            for token in order
        ),
        num_surviving=int(np.count_nonzero(final)),
        surviving_mass=float(tempered[surviving].sum()),
    )


def _softmax(scores: Probabilities) -> Probabilities:
    exponentials = np.exp(scores - scores.max())
    normalized: Probabilities = exponentials / exponentials.sum()
    return normalized


def _renormalize(probabilities: Probabilities, surviving: Mask) -> Probabilities:
    survivors = np.where(surviving, probabilities, 0.0)
    normalized: Probabilities = survivors / survivors.sum()
    return normalized


def _keep_min_p(probabilities: Probabilities, *, min_p: float) -> Mask:
    """At least `min_p` times as likely as the most likely token."""
    keep: Mask = probabilities >= min_p * probabilities.max()
    return keep


def _keep_top_k(probabilities: Probabilities, *, top_k: int | None) -> Mask:
    """As likely as the k-th most likely token, ties included."""
    if top_k is None:
        return np.ones(len(probabilities), dtype=np.bool_)
    kth = np.partition(probabilities, -top_k)[-top_k]
    keep: Mask = probabilities >= kth
    return keep


def _keep_top_p(probabilities: Probabilities, *, top_p: float) -> Mask:
    """The smallest set of most likely tokens whose probabilities add up to at least `top_p`."""
    ascending = np.argsort(probabilities, kind="stable")
    mass_up_to = np.cumsum(probabilities[ascending])
    keep = np.empty(len(probabilities), dtype=np.bool_)
    keep[ascending] = mass_up_to > 1.0 - top_p
    keep[ascending[-1]] = True
    return keep
