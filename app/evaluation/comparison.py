"""The figures of every variant, and whether the best is better than the second beyond noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from app.evaluation.bootstrap import Difference, Interval, difference, interval
from app.evaluation.measures import EvaluationError, Measure, Scored, measures
from app.evaluation.runner import Answered

# What variants are ranked by: the first of these that is measured.
HEADLINES = ("ROUGE-L F1", "accuracy", "exact", "BLEU")


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """One variant: `scores` by the name of the measure, the sum `num_dropped`, else means.

    `num_skipped` rows it could not answer.
    """

    name: str
    scores: dict[str, Interval]
    prompt_tokens: float
    completion_tokens: float
    shots: float
    num_dropped: int
    num_skipped: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants on the same rows; `best` and `second` are names of variants."""

    variants: list[VariantFigures]
    headline: str
    num_rows: int
    num_skipped: int
    best: str
    second: str | None
    lead: Difference | None


def compare(
    names: Sequence[str],
    answers: Sequence[Sequence[Answered]],
    references: Sequence[str],
    metrics: Sequence[str],
    seed: int,
) -> Comparison:
    """`answers` has, for each variant, one for each reference.

    A row that one variant could not answer counts for none.

    Raises:
        EvaluationError: no row is left, or a metric does not apply.
    """
    answered = [
        index
        for index, of_row in enumerate(zip(*answers, strict=True))
        if all(answer.skipped is None for answer in of_row)
    ]
    if not answered:
        reasons = (answer.skipped for of_variant in answers for answer in of_variant)
        reason = next(filter(None, reasons), "there is no data")
        raise EvaluationError(f"no row could be answered: {reason}")
    kept = [[of_variant[index] for index in answered] for of_variant in answers]
    kept_references = [references[index].strip() for index in answered]
    measured = [_measured(of_variant, kept_references, metrics) for of_variant in kept]
    headline = next(name for name in HEADLINES if name in measured[0])
    ranking = sorted(range(len(names)), key=lambda i: -measured[i][headline].score)
    best, second = ranking[0], ranking[1] if len(ranking) > 1 else None
    num_skipped = [sum(each.skipped is not None for each in of_variant) for of_variant in answers]
    figures = zip(names, measured, kept, num_skipped, strict=True)
    return Comparison(
        variants=[_figures(*each, seed) for each in figures],
        headline=headline,
        num_rows=len(answered),
        num_skipped=len(references) - len(answered),
        best=names[best],
        second=None if second is None else names[second],
        lead=None
        if second is None
        else difference(measured[best][headline], measured[second][headline], seed),
    )


def _measured(
    answers: Sequence[Answered], references: Sequence[str], metrics: Sequence[str]
) -> dict[str, Measure]:
    rows = [
        Scored([each.strip() for each in answer.completions], reference, answer.label)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return {measure.name: measure for metric in metrics for measure in measures(metric, rows)}


def _figures(
    name: str,
    measured: dict[str, Measure],
    answers: Sequence[Answered],
    num_skipped: int,
    seed: int,
) -> VariantFigures:
    return VariantFigures(
        name=name,
        scores={column: interval(measure, seed) for column, measure in measured.items()},
        prompt_tokens=fmean(answer.prompt_tokens for answer in answers),
        completion_tokens=fmean(answer.completion_tokens for answer in answers),
        shots=fmean(answer.shots for answer in answers),
        num_dropped=sum(answer.num_dropped for answer in answers),
        num_skipped=num_skipped,
        latency_ms=fmean(answer.latency_ms for answer in answers),
    )


def verdict(comparison: Comparison) -> str:
    """Whether the best differs from the second beyond noise, in a sentence."""
    if comparison.lead is None or comparison.second is None:
        return f"There is one variant: {comparison.best}."
    lead = comparison.lead
    by = (
        f"by {lead.interval.score:.1f} {comparison.headline} "
        f"(95% interval {lead.interval.low:.1f} to {lead.interval.high:.1f}, "
        f"p = {lead.p_value:.3f}, paired bootstrap)"
    )
    if lead.beyond_noise:
        return f"The best, {comparison.best}, is above {comparison.second} beyond noise: {by}."
    return (
        f"The best, {comparison.best}, cannot be told from {comparison.second}: it is above {by}."
    )
