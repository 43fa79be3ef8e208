"""Whether two models say the same, by what each takes at the positions of one text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.engine.reference import Choice


@dataclass(frozen=True, slots=True)
class Difference:
    """`divergence` is the first position where another token is taken, None where there is none.

    `margin` is by how much the reference there prefers its own token, and `largest` the largest
    difference of the text's log probabilities, infinite where one of them is not a number.
    """

    divergence: int | None
    margin: float
    largest: float

    def is_within(self, tolerance: float) -> bool:
        """Whether it is rounding: a token that is as likely as the other one is a tie."""
        return self.largest <= tolerance and self.margin <= tolerance


def difference(
    token_ids: Sequence[int], logprobs: Sequence[float], reference: Sequence[Choice]
) -> Difference:
    """What one model takes along a text and how likely it finds the text, against a reference."""
    positions = zip(token_ids, reference, strict=True)
    divergence = next(
        (index for index, (token_id, own) in enumerate(positions) if token_id != own.token_id), None
    )
    margin = 0.0
    if divergence is not None:
        margin = reference[divergence].logprob - reference[divergence].logprob_of_text
    return Difference(
        divergence,
        margin,
        _largest(
            abs(logprob - own.logprob_of_text)
            for logprob, own in zip(logprobs, reference, strict=True)
        ),
    )


def change(base: Sequence[Choice], adapted: Sequence[Choice]) -> Difference:
    """What an adapter changes along a text."""
    return difference(
        [each.token_id for each in adapted], [each.logprob_of_text for each in adapted], base
    )


def _largest(differences: Iterable[float]) -> float:
    return max((math.inf if math.isnan(each) else each for each in differences), default=0.0)
