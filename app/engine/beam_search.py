"""Beam search: the most likely completions of a prompt, of which several are kept on the way.

The plot: `beams` are the completions that go on. Whoever drives a search asks the model, in each
step, for the `num_candidates` most likely next tokens of each of them, and hands these to `step`,
which says what goes on and what has ended; when it `is_done`, `best` are the completions.

What it gives is what transformers' `generate` gives for one prompt, in the same arithmetic (FP32).
An end counts where it is among the first `num_beams` candidates of all beams; those behind
them take the places of what ends. Of equal ones the first beam's comes first, then the lower id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softserve.schema.controls import Sampling


@dataclass(frozen=True, slots=True)
class Beam:
    """A completion: its tokens, and the sum of their log probabilities.

    For each of its tokens, `path` has the place among that step's beams of what it was put behind.
    """

    token_ids: tuple[int, ...] = ()
    score: float = 0.0
    path: tuple[int, ...] = ()


class Candidates(NamedTuple):
    """Next tokens of a beam and their log probabilities, each of (any,): the most likely ones."""

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


class Ended(NamedTuple):
    """A completion that has ended. `score` is that by which they are compared."""

    score: float
    beam: Beam


@dataclass
class BeamSearch:
    """The search for one prompt.

    `ends` are the tokens that end a completion, if any do. `decoder_ids` are those that the decoder
    starts with; only a repetition penalty looks at them. `forced_first` is the first token of every
    completion, and one of `forced_last` the last of one that is as long as it may be, if any are:
    they come without asking the model, and cost nothing.
    """

    sampling: Sampling
    ends: frozenset[int]
    decoder_ids: Sequence[int] = ()
    forced_first: int | None = None
    forced_last: Sequence[int] = ()
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Ended] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The tokens that each of the beams has."""
        return len(self.beams[0].token_ids)

    @property
    def num_candidates(self) -> int:
        """As many of a beam's next tokens as are needed, whatever is left out or made unlikely."""
        num_penalized = len(self.decoder_ids) + self.length if self._penalizes else 0
        return self._num_kept + len(self.ends) + num_penalized

    @property
    def is_done(self) -> bool:
        """Whether no beam is left, or none that could do better than what has ended."""
        if not self.beams:
            return True
        if len(self.ended) < self.sampling.num_beams:
            return False
        if self.sampling.early_stopping is True:
            return True
        longest = self.sampling.early_stopping == "never" and self.sampling.length_penalty > 0.0
        length = self.sampling.max_new_tokens if longest else self.length
        return self._compared(self.beams[0].score, length) <= self.ended[-1].score

    def step(self, candidates: Sequence[Candidates]) -> None:
        """Put a token behind each beam; `candidates` are the beams', in their order."""
        num_beams = self.sampling.num_beams
        forced = self._forced()
        best = self._best(
            [forced or self._adjusted(*each) for each in zip(self.beams, candidates, strict=True)]
        )
        self._end([beam for beam in best[:num_beams] if self._has_ended(beam)])
        self.beams = [beam for beam in best if not self._has_ended(beam)][:num_beams]

    def stop(self) -> None:
        """End the beams where they are."""
        self._end(self.beams)
        self.beams = []

    def best(self, number: int) -> list[Beam]:
        """The completions that have ended, the best first."""
        return [each.beam for each in self.ended[:number]]

    def is_full(self, beam: Beam) -> bool:
        """Whether a completion is as long as it may be."""
        return len(beam.token_ids) == self.sampling.max_new_tokens

    def _forced(self) -> Candidates | None:
        """The only tokens that may come now; None where all may."""
        token_ids: Sequence[int] = ()
        if self.length == self.sampling.max_new_tokens - 1:
            token_ids = self.forced_last
        if not token_ids and self.length == 0 and self.forced_first is not None:
            token_ids = (self.forced_first,)
        if not token_ids:
            return None
        return Candidates(np.array(token_ids), np.zeros(len(token_ids), dtype=np.float32))

    @property
    def _num_kept(self) -> int:
        return max(2, 1 + len(self.ends)) * self.sampling.num_beams

    @property
    def _penalizes(self) -> bool:
        return self.sampling.repetition_penalty != 1.0

    def _best(self, candidates: Sequence[Candidates]) -> list[Beam]:
        """The best continuations of all beams, the best first."""
        logprobs = [
            each.logprobs + np.float32(beam.score)
            for beam, each in zip(self.beams, candidates, strict=True)
        ]
        scores = np.concatenate(logprobs)
        token_ids = np.concatenate([each.token_ids for each in candidates])
        places = np.repeat(np.arange(len(self.beams)), [len(each) for each in logprobs])
        order = np.lexsort((token_ids, places, -scores))[: self._num_kept]
        return [
            Beam(
                (*self.beams[place].token_ids, token_id),
                score,
                (*self.beams[place].path, place),
            )
            for token_id, score, place in zip(
                token_ids[order].tolist(),
                scores[order].tolist(),
                places[order].tolist(),
                strict=True,
            )
        ]

    def _adjusted(self, beam: Beam, candidates: Candidates) -> Candidates:
        """Candidates after a repetition penalty, and without ends that are too early.

        As in transformers, neither makes the other tokens more likely.
        """
        logprobs = candidates.logprobs
        if self._penalizes:
            seen = np.isin(candidates.token_ids, [*self.decoder_ids, *beam.token_ids])
            logprobs = np.where(seen, logprobs * self.sampling.repetition_penalty, logprobs)
        if self.length < self.sampling.min_new_tokens:
            too_early = np.isin(candidates.token_ids, [*self.ends])
            logprobs = np.where(too_early, np.float32(-np.inf), logprobs)
        return Candidates(candidates.token_ids, logprobs)

    def _has_ended(self, beam: Beam) -> bool:
        return self.is_full(beam) or beam.token_ids[-1] in self.ends

    def _end(self, beams: Sequence[Beam]) -> None:
        new = [Ended(self._compared(beam.score, len(beam.token_ids)), beam) for beam in beams]
        ended = sorted([*self.ended, *new], key=lambda each: -each.score)
        self.ended = ended[: self.sampling.num_beams]

    def _compared(self, score: float, length: int) -> float:
        """The score by which completions of different lengths are compared."""
        # What is stopped at once has no length.
        return float(np.float32(score) / np.float32(max(1, length) ** self.sampling.length_penalty))
