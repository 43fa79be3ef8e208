"""How likely the model finds each label, from its own scores of the label's tokens.

A label's log probability is the sum over its tokens, as they stand when prompt and label are
tokenized together. What all of these token sequences begin with is the condition; every other token
is scored with the next-token distribution after its prefix. The prompt is in the prefix cache after
the first of these, so that a label of one token costs next to nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidRequest
from app.tasks import gather

# Any next-token distribution is as large as the vocabulary.
SCORED_AT_ONCE = 8
MAX_PREFIXES = 256

NextTokenLogprobs = Callable[[list[int]], Awaitable[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label; `probability` is among all labels, `logprob` the model's own of its text."""

    label: str
    probability: float
    logprob: float


async def score_labels(
    labels: Sequence[str],
    sequences: Sequence[list[int]],
    next_token_logprobs: NextTokenLogprobs,
) -> tuple[LabelScore, ...]:
    """The scores of the labels, in their order; `sequences` are prompt and label, tokenized.

    Raises:
        InvalidRequest: they have too many tokens together, or nothing in common to begin with.
    """
    columns = zip(*sequences, strict=False)
    condition = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    if condition == 0:
        raise InvalidRequest(
            "the prompt is too short for its labels to be scored: lengthen it", param="inputs"
        )
    prefixes = {
        tuple(sequence[:end]) for sequence in sequences for end in range(condition, len(sequence))
    }
    if len(prefixes) > MAX_PREFIXES:
        raise InvalidRequest(
            f"the labels have {len(prefixes):,} tokens to score and the limit is {MAX_PREFIXES:,}: "
            "shorten them, or leave some out",
            param="template",
        )
    wanted = {
        prefix: sorted({seq[len(prefix)] for seq in sequences if _goes_on(seq, prefix)})
        for prefix in prefixes
    }
    turns = asyncio.Semaphore(SCORED_AT_ONCE)

    async def score(prefix: tuple[int, ...]) -> dict[int, float]:
        async with turns:
            logprobs = await next_token_logprobs(list(prefix))
        return {token: float(logprobs[token]) for token in wanted[prefix]}

    # The shortest first and alone: the others find it in the prefix cache.
    first, *others = sorted(prefixes, key=len)
    scores = {first: await score(first)}
    scores |= dict(zip(others, await gather(map(score, others)), strict=True))
    logprobs = np.array(
        [
            sum(scores[tuple(seq[:end])][seq[end]] for end in range(condition, len(seq)))
            for seq in sequences
        ]
    )
    probabilities = np.exp(logprobs - logprobs.max())
    probabilities /= probabilities.sum()
    return tuple(
        LabelScore(label, float(probability), float(logprob))
        for label, probability, logprob in zip(labels, probabilities, logprobs, strict=True)
    )


def _goes_on(sequence: Sequence[int], prefix: tuple[int, ...]) -> bool:
    return len(sequence) > len(prefix) and tuple(sequence[: len(prefix)]) == prefix
