"""Which examples a prompt shows: an order, most useful first.

Who takes the first few of it and drops from its end loses the least.
"""

import random
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from softserve.schema.templates import Selection

# How much an example's nearness to the query counts against its distance to those chosen before.
DIVERSITY_BALANCE = 0.4
WORD = re.compile(r"\w+")

Scores = NDArray[np.float64]


class Similarity:
    """How near texts are to another text, by BM25 over their words."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._words = [_words(text) for text in texts]
        # Texts without a word are near to nothing; the library cannot divide by their length.
        self._indexed = [index for index, words in enumerate(self._words) if words]
        self._index = bm25s.BM25()
        if self._indexed:
            self._index.index([self._words[index] for index in self._indexed], show_progress=False)

    def __len__(self) -> int:
        return len(self._words)

    def to(self, text: str) -> Scores:
        """A score per text, 0 for one that shares no word with `text`."""
        return self._to(_words(text))

    def to_own(self, index: int) -> Scores:
        """How near the texts are to one of themselves, between 0 and 1: 1 is itself."""
        scores = self._to(self._words[index])
        own = scores[index]
        return (scores / own).clip(0.0, 1.0) if own > 0 else np.zeros(len(self))

    def _to(self, words: list[str]) -> Scores:
        scores = np.zeros(len(self), dtype=np.float64)
        if words and self._indexed:
            scores[self._indexed] = self._index.get_scores(words)
        return scores


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Comparable(Protocol):
    """A number of examples, and how near they are to a text."""

    def __len__(self) -> int: ...

    @property
    def similarity(self) -> Similarity: ...


def most_useful(
    selection: Selection, examples: Comparable, num_shots: int, query: str, seed: int
) -> list[int]:
    """The indices of `num_shots` examples, most useful first. A tie goes to the earlier one."""
    match selection:
        case "first":
            return list(range(num_shots))
        case "random":
            return random.Random(seed).sample(range(len(examples)), num_shots)  # noqa: S311
        case "similar":
            nearness = examples.similarity.to(query)
            return [int(index) for index in np.argsort(-nearness, kind="stable")[:num_shots]]
        case "diverse":
            return _diverse(examples.similarity, num_shots, query)


def _diverse(similarity: Similarity, num_shots: int, query: str) -> list[int]:
    """Maximal marginal relevance: near to the query, and far from what is chosen already."""
    nearness = similarity.to(query)
    if nearness.max(initial=0.0) > 0:
        nearness = nearness / nearness.max()
    closest = np.zeros(len(similarity))
    chosen: list[int] = []
    for _ in range(num_shots):
        value = DIVERSITY_BALANCE * nearness - (1 - DIVERSITY_BALANCE) * closest
        value[chosen] = -np.inf
        best = int(np.argmax(value))
        chosen.append(best)
        closest = np.maximum(closest, similarity.to_own(best))
    return chosen


def as_shown(selection: Selection, indices: Sequence[int]) -> list[int]:
    """The order in the prompt: the nearest to the input comes last, right before the query."""
    return list(reversed(indices)) if selection in {"similar", "diverse"} else list(indices)
