"""How sure a score is, by resampling the rows that it was measured on."""

from dataclasses import dataclass

import numpy as np

from app.evaluation.measures import Measure

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and its bootstrap confidence interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much one score is above another on the same rows; `p_value` is one-sided."""

    interval: Interval
    p_value: float

    @property
    def beyond_noise(self) -> bool:
        return self.interval.low > 0


def interval(measure: Measure, seed: int) -> Interval:
    """The percentile interval of a score."""
    return _interval(measure.score, _resampled(measure, seed))


def difference(best: Measure, second: Measure, seed: int) -> Difference:
    """A paired bootstrap: every resample has the same rows of both."""
    differences = _resampled(best, seed) - _resampled(second, seed)
    # One is added, so that no finite number of resamples makes anything impossible.
    p_value = (np.count_nonzero(differences <= 0) + 1) / (NUM_RESAMPLES + 1)
    return Difference(_interval(best.score - second.score, differences), float(p_value))


def _resampled(measure: Measure, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    num_rows = len(measure.summands)
    rows = np.random.default_rng(seed).integers(num_rows, size=(NUM_RESAMPLES, num_rows))
    sums = measure.summands[rows].sum(axis=1)
    return np.array([measure.of_sums(of_resample, num_rows) for of_resample in sums])


def _interval(score: float, resampled: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Interval:
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [outside, 100 - outside])
    return Interval(score, float(low), float(high))
