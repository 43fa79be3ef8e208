"""Scores of completions against references, by rouge-score and sacrebleu.

A score of many rows follows from sums over them: a mean from the sum of the rows' scores, corpus
BLEU from the sums of n-gram counts and lengths. So a bootstrap resamples rows without scoring any
text again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import BLEU

METRICS = ("rouge", "bleu", "exact", "accuracy")
ROUGE_TYPES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
ROUGE_PARTS = {"fmeasure": "F1", "precision": "P", "recall": "R"}
# The longest n-grams that BLEU counts.
BLEU_ORDER = 4

Sums = NDArray[np.float64]


class EvaluationError(Exception):
    """An evaluation cannot be done: a sentence for the terminal."""


def no_metric(name: str) -> EvaluationError:
    return EvaluationError(f"there is no metric {name}: choose from {', '.join(METRICS)}")


@dataclass(frozen=True, slots=True)
class Measure:
    """One column: `summands`, of shape (rows, summands), and a score from their sums over rows.

    Scores lie between 0 and 100.
    """

    name: str
    summands: NDArray[np.float64]
    of_sums: Callable[[Sums, int], float]

    @property
    def score(self) -> float:
        """Of all rows."""
        return self.of_sums(self.summands.sum(axis=0), len(self.summands))


@dataclass(frozen=True, slots=True)
class Scored:
    """The completions of a row beside its reference; `label` is the model's likeliest, if any.

    Where there are several, the row's score is their mean.
    """

    completions: Sequence[str]
    reference: str
    label: str | None = None


def measures(metric: str, rows: Sequence[Scored]) -> list[Measure]:
    """The columns of a metric.

    Raises:
        EvaluationError: no such metric, or `accuracy` without labels.
    """
    match metric:
        case "rouge":
            return _rouge(rows)
        case "bleu":
            return [_bleu(rows)]
        case "exact":
            hits = [fmean(each == row.reference for each in row.completions) for row in rows]
            return [_mean("exact", hits)]
        case "accuracy":
            if any(row.label is None for row in rows):
                raise EvaluationError(
                    "accuracy needs a template with labels: give it some, or use exact"
                )
            return [_mean("accuracy", [row.label == row.reference for row in rows])]
        case _:
            raise no_metric(metric)


def _mean(name: str, scores: Sequence[float]) -> Measure:
    summands = np.array(scores, dtype=np.float64).reshape(-1, 1)
    return Measure(name, summands, lambda sums, num_rows: float(100 * sums[0] / num_rows))


def _rouge(rows: Sequence[Scored]) -> list[Measure]:
    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    scored = [[scorer.score(row.reference, each) for each in row.completions] for row in rows]
    return [
        _mean(
            f"{name} {part_name}",
            [fmean(getattr(scores[kind], part) for scores in of_row) for of_row in scored],
        )
        for kind, name in ROUGE_TYPES.items()
        for part, part_name in ROUGE_PARTS.items()
    ]


def _bleu(rows: Sequence[Scored]) -> Measure:
    bleu = BLEU()
    summands = []
    for row in rows:
        # A corpus of one row: its counts are those of the row, whatever its own score is worth.
        references = [row.reference] * len(row.completions)
        counted = bleu.corpus_score(list(row.completions), [references])
        summands.append([*counted.counts, *counted.totals, counted.sys_len, counted.ref_len])

    def of_sums(sums: Sums, num_rows: int) -> float:
        counts = [int(each) for each in sums]
        score = BLEU.compute_bleu(
            correct=counts[:BLEU_ORDER],
            total=counts[BLEU_ORDER : 2 * BLEU_ORDER],
            sys_len=counts[-2],
            ref_len=counts[-1],
        )
        return float(score.score)

    return Measure("BLEU", np.array(summands, dtype=np.float64), of_sums)
