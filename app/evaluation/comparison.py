"""The figures of every variant, and whether the best is better than the second beyond noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from app.evaluation.bootstrap import Difference, Interval, difference, interval
from app.evaluation.metrics import EvaluationError, Measure, Scored, measures
from app.evaluation.runner import Answered

# What variants are ranked by: the first of these that is measured.
HEADLINES = ("ROUGE-L F1", "accuracy", "exact", "BLEU")


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the data, and what each variant made of it, in the order of the variants."""

    inputs: dict[str, object]
    reference: str
    completions: list[str]


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one variant; `scores` by the name of the measure."""

    name: str
    scores: dict[str, Interval]
    prompt_tokens: float
    completion_tokens: float
    shots: float
    num_dropped: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All variants on the same rows; `best` and `second` are names of variants."""

    rows: list[Row]
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
    places = [
        place
        for place in range(len(references))
        if all(each[place].skipped is None for each in answers)
    ]
    if not places:
        reason = answers[0][0].skipped if answers and answers[0] else "there is no data"
        raise EvaluationError(f"no row could be answered: {reason}")
    measured = [
        {
            measure.name: measure
            for metric in metrics
            for measure in measures(metric, _scored(each, references, places))
        }
        for each in answers
    ]
    headline = next(name for name in HEADLINES if name in measured[0])
    rows = [
        _row(name, columns, [each[place] for place in places], seed)
        for name, columns, each in zip(names, measured, answers, strict=True)
    ]
    ranking = sorted(range(len(rows)), key=lambda i: -rows[i].scores[headline].score)
    second = ranking[1] if len(ranking) > 1 else None
    return Comparison(
        rows=rows,
        headline=headline,
        num_rows=len(places),
        num_skipped=len(references) - len(places),
        best=names[ranking[0]],
        second=None if second is None else names[second],
        lead=None
        if second is None
        else difference(measured[ranking[0]][headline], measured[second][headline], seed),
    )


def _scored(
    answers: Sequence[Answered], references: Sequence[str], places: Sequence[int]
) -> list[Scored]:
    return [
        Scored(answers[place].completion.strip(), references[place].strip(), answers[place].label)
        for place in places
    ]


def _row(name: str, columns: dict[str, Measure], answers: Sequence[Answered], seed: int) -> Row:
    return Row(
        name=name,
        scores={column: interval(measure, seed) for column, measure in columns.items()},
        prompt_tokens=fmean(each.prompt_tokens for each in answers),
        completion_tokens=fmean(each.completion_tokens for each in answers),
        shots=fmean(each.shots for each in answers),
        num_dropped=sum(each.num_dropped for each in answers),
        latency_ms=fmean(each.latency_ms for each in answers),
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
