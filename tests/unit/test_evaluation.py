"""Scores equal to those of the libraries, intervals, reports, and an evaluation that goes on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from app.cli.evaluation_tables import print_comparison
from app.engine.generation import resolve_sampling
from app.evaluation.bootstrap import difference, interval
from app.evaluation.comparison import Comparison, compare, verdict
from app.evaluation.measures import EvaluationError, Scored, measures
from app.evaluation.report import Sample, html_report
from app.evaluation.runner import Answered, Question, ask_all
from app.evaluation.variants import combine, is_random, key_of, name_of

REFERENCES = [
    "Nora asks Piet to bring four chairs on Saturday.",
    "The plumber returns on Thursday.",
    "They are running late, so dinner is moved to nine.",
    "Ben uploads the file.",
]
COMPLETIONS = [
    "Piet will bring four chairs on Saturday.",
    "The plumber returns on Thursday.",
    "Dinner moves, because they run late.",
    "",
]
ROWS = [Scored([each], reference) for each, reference in zip(COMPLETIONS, REFERENCES, strict=True)]


def test_rouge_is_that_of_rouge_score() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scored = [scorer.score(row.reference, row.completions[0]) for row in ROWS]
    ours = {measure.name: measure.score for measure in measures("rouge", ROWS)}
    assert len(ours) == 9
    for kind, name in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
        for part, shown in (("fmeasure", "F1"), ("precision", "P"), ("recall", "R")):
            expected = 100 * np.mean([getattr(each[kind], part) for each in scored])
            assert ours[f"{name} {shown}"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
def test_bleu_is_that_of_sacrebleu(num_rows: int) -> None:
    (bleu,) = measures("bleu", ROWS[:num_rows])
    expected = sacrebleu.corpus_bleu(COMPLETIONS[:num_rows], [REFERENCES[:num_rows]])
    assert bleu.score == pytest.approx(expected.score, abs=1e-12)


def test_exact_and_accuracy() -> None:
    (exact,) = measures("exact", ROWS)
    assert exact.score == 25.0
    rows = [Scored(["x"], "yes", "yes"), Scored(["yes"], "yes", "no")]
    (accuracy,) = measures("accuracy", rows)
    assert accuracy.score == 50.0
    with pytest.raises(EvaluationError, match="labels"):
        measures("accuracy", ROWS)
    with pytest.raises(EvaluationError, match="no metric meteor"):
        measures("meteor", ROWS)


def _hits(*hits: int) -> list[Scored]:
    return [Scored(["a" if hit else "b"], "a") for hit in hits]


def test_an_interval_holds_the_score_and_narrows_with_rows() -> None:
    few, many = (interval(measures("exact", _hits(*[1, 0] * n))[0], 0) for n in (5, 500))
    for each in (few, many):
        assert each.low < each.score < each.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert interval(measures("exact", _hits(1, 1))[0], 0).low == 100.0


def test_a_paired_difference() -> None:
    (best,) = measures("exact", _hits(*[1] * 40, *[0] * 10))
    (second,) = measures("exact", _hits(*[1] * 20, *[0] * 30))
    clear = difference(best, second, 0)
    assert clear.beyond_noise
    assert clear.interval.score == pytest.approx(40.0)
    assert clear.p_value < 0.01
    same = difference(best, best, 0)
    assert not same.beyond_noise
    assert same.p_value == 1.0


def _compared(*, skip: bool = False) -> Comparison:
    good = [Answered(f"g{i}", [each], prompt_tokens=10) for i, each in enumerate(REFERENCES)]
    poor = [Answered(f"p{i}", [each], num_dropped=1) for i, each in enumerate(COMPLETIONS)]
    if skip:
        poor[0] = Answered("p0", [], skipped="it does not fit")
    return compare(["a <b>", "poor"], [good, poor], REFERENCES, ["rouge", "bleu", "exact"], 0)


def test_a_comparison() -> None:
    comparison = _compared()
    assert (comparison.best, comparison.second, comparison.num_rows) == ("a <b>", "poor", 4)
    assert comparison.headline == "ROUGE-L F1"
    assert comparison.variants[0].scores["BLEU"].score == pytest.approx(100.0)
    assert "a <b>" in verdict(comparison)
    skipped = _compared(skip=True)
    assert (skipped.num_rows, skipped.num_skipped) == (3, 1)
    assert [variant.num_skipped for variant in skipped.variants] == [0, 1]


def test_no_row_that_every_variant_could_answer() -> None:
    answers = [[Answered("a", ["x"])], [Answered("b", [], skipped="it does not fit")]]
    with pytest.raises(EvaluationError, match="no row could be answered: it does not fit"):
        compare(["0 shots", "9 shots"], answers, ["x"], ["exact"], 0)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(_compared())
    shown = capsys.readouterr().out
    for text in ("ROUGE-1", "ROUGE-L", "BLEU", "P 100.0 R 100.0", "paired bootstrap"):
        assert text in shown


def test_a_name_in_the_table_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(compare(["[red] 1 shot"], [[Answered("a", ["x"])]], ["x"], ["exact"], 0))
    assert "[red] 1 shot" in capsys.readouterr().out.splitlines()[5]


def test_the_report_is_one_file_and_escapes_what_it_shows() -> None:
    samples = [Sample({"dialogue": "<script>alert(1)</script>"}, "ref & er", ["<i>", "x"])]
    page = html_report(_compared(skip=True), samples, "a title <")
    assert "<svg" in page
    assert "a &lt;b&gt;" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "http" not in page
    assert "1 were left out" in page


def test_the_plot_of_a_report() -> None:
    answers = [[Answered("g", ["a"])] * 4, [Answered("p", ["b"])] * 4]
    page = html_report(compare(["good", "poor"], answers, ["a"] * 4, ["exact"], 0), [], "a title")
    assert '<rect y="7.0" width="100.0%" height="20" class="best"/>' in page
    assert '<rect y="41.0" width="0.0%" height="20"/>' in page
    assert '<line x1="100.0%" x2="100.0%" y1="12.0" y2="22.0"/>' in page
    assert "<div>100.0 (100.0 to 100.0)</div>" in page


def test_variants() -> None:
    varied: dict[str, list[Any]] = {
        "shots": [0, 1, "auto"],
        "adapter": [None, "a"],
        "temperature": [0, 0.7],
    }
    variants = combine(["t"], varied)
    assert len(variants) == 12
    assert name_of(variants[0], variants) == "0 shots, no adapter, temperature 0"
    assert name_of(variants[7], variants) == "1 shot, a, temperature 0.7"
    assert variants[7].body({"x": "y"}, {}, 3, 1) == {
        "inputs": {"x": "y"}, "shots": 1, "adapter": "a", "temperature": 0.7, "seed": 3,
    }  # fmt: skip
    assert variants[7].body({}, {}, 3, 4)["n"] == 4
    (base,) = combine(["t"], {"shots": [0], "adapter": [None], "temperature": [0.0]})
    greedy = {"inputs": {}, "shots": 0, "adapter": None, "temperature": 0.0}
    assert base.body({}, {}, 3, 4) == base.body({}, {"top_k": 3}, 3, 4) == greedy
    assert name_of(base, [base]) == "0 shots"


def test_a_template_that_samples() -> None:
    (variant,) = combine(["t"], {"shots": [0]})
    assert variant.body({}, {"top_p": 0.9}, 3, 2) == {"inputs": {}, "shots": 0, "seed": 3, "n": 2}
    (own,) = combine(["t"], {"shots": [0], "seed": [7], "top_k": [5]})
    assert own.body({}, {}, 3, 1)["seed"] == 7


@pytest.mark.parametrize(
    ("controls", "random"),
    [
        ({}, False),
        ({"temperature": 0.0, "top_k": 3}, False),
        ({"temperature": 0.7}, True),
        ({"top_k": 3}, True),
        ({"min_p": None, "max_new_tokens": 3}, False),
    ],
)
def test_what_is_sampled(controls: dict[str, Any], random: bool) -> None:
    """The server's own rule."""
    assert is_random(controls) is random
    if random or "top_k" not in controls:
        assert resolve_sampling(**controls).greedy is not random


def test_several_samples_of_a_row_are_their_mean() -> None:
    rows = [Scored(["yes", "no"], "yes"), Scored(["no", "no"], "yes")]
    assert measures("exact", rows)[0].score == 25.0
    pairs = [Scored([each, each], reference) for each, reference in
             zip(COMPLETIONS, REFERENCES, strict=True)]  # fmt: skip
    for metric in ("rouge", "exact"):
        for once, twice in zip(measures(metric, ROWS), measures(metric, pairs), strict=True):
            assert twice.score == pytest.approx(once.score, abs=1e-12)
    (bleu,) = measures("bleu", pairs)
    twice_the_corpus = sacrebleu.corpus_bleu(
        [each for each in COMPLETIONS for _ in "ab"],
        [[each for each in REFERENCES for _ in "ab"]],
    )
    assert bleu.score == pytest.approx(twice_the_corpus.score, abs=1e-12)


def test_a_key_of_a_question() -> None:
    assert key_of("m", {"a": 1, "b": 2}, "r") == key_of("m", {"b": 2, "a": 1}, "r")
    assert key_of("m", {"a": 1}, "r") != key_of("m", {"a": 1}, "s")


async def test_an_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    questions = [Question(f"k{i}", {}) for i in range(10)]
    asked: list[str] = []
    running = most = 0

    async def ask(question: Question) -> Answered:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        asked.append(question.key)
        if len(asked) == 6:
            raise EvaluationError("the server has gone")
        return Answered(question.key, [question.key])

    with pytest.raises(EvaluationError, match="gone"):
        await ask_all(questions, ask, file, 3, lambda: None)
    kept = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert most == 3
    assert len(kept) >= 5

    # As if it had been killed while it wrote.
    file.write_text(file.read_text() + '{"key": "k9", "compl')
    asked.clear()
    seen: list[int] = []
    answers = await ask_all(questions, ask, file, 2, lambda: seen.append(1))
    assert sorted(asked) == sorted({f"k{i}" for i in range(10)} - set(kept))
    assert len(seen) == 10
    assert {key: each.completions for key, each in answers.items()} == {
        f"k{i}": [f"k{i}"] for i in range(10)
    }
    asked.clear()
    await ask_all(questions, ask, file, 2, lambda: None)
    assert asked == []


async def test_a_line_separator_in_a_completion_ends_no_line(tmp_path: Path) -> None:
    asked: list[str] = []

    async def ask(question: Question) -> Answered:
        asked.append(question.key)
        return Answered(question.key, ["a\u2028b\x85c"])

    questions = [Question("k0", {}), Question("k1", {})]
    first = await ask_all(questions, ask, tmp_path / "x", 1, lambda: None)
    assert await ask_all(questions, ask, tmp_path / "x", 1, lambda: None) == first
    assert asked == ["k0", "k1"]


async def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    async def ask(question: Question) -> Answered:
        raise AssertionError

    file = tmp_path / "x"
    file.write_text("one\ntwo\n")
    with pytest.raises(EvaluationError, match="no file of results"):
        await ask_all([], ask, file, 1, lambda: None)
    with pytest.raises(EvaluationError, match="cannot be read"):
        await ask_all([], ask, tmp_path, 1, lambda: None)
