"""Figures that add up, whoever collected them."""

import json
import random
from typing import cast

import numpy as np
import pytest

from loadtest.figures.histogram import Histogram
from loadtest.figures.objective import Objective
from loadtest.figures.plots import HEIGHT, WIDTH, plot
from loadtest.figures.recorder import Message, Recorder
from loadtest.figures.summary import Summary
from loadtest.users.answers import Answer, Outcome


def some_seconds(count: int) -> list[float]:
    source = random.Random(0)  # noqa: S311 (repeatable, not secret)
    return [source.lognormvariate(-2, 1) for _ in range(count)]


def answer(adapter: str, outcome: Outcome = "completed", sent_at: float = 1000.0) -> Answer:
    return Answer("User", adapter, sent_at, outcome, [0.5, 0.7, 1.2], 1.25, 10, 4)


def test_a_percentile_is_right_within_half_a_percent() -> None:
    seconds = some_seconds(2000)
    histogram = Histogram()
    histogram.add(seconds)

    for percent in (1, 50, 90, 99, 100):
        exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0051)
    assert histogram.mean() == pytest.approx(float(np.mean(seconds)), rel=0.0051)


def test_two_histograms_are_one() -> None:
    seconds = some_seconds(100)
    whole, half, other = Histogram(), Histogram(), Histogram()
    whole.add(seconds)
    half.add(seconds[:30])
    other.add(seconds[30:])
    half.merge(other)

    assert half.counts == whole.counts


def test_of_nothing_there_is_no_percentile() -> None:
    assert (Histogram().percentile(50), Histogram().mean()) == (None, None)


def test_what_workers_send_adds_up_to_what_one_would_have() -> None:
    answers = [answer("a"), answer("b", sent_at=1010.0), answer("a", "failed"), answer("b", "429")]
    alone, master = Recorder(), Recorder()
    for each in answers:
        alone.add(each)
        worker = Recorder()
        worker.add(each)
        # Through a message, whose keys and numbers are JSON's.
        master.merge(sent(worker.take()))
        assert worker.take() == {"kinds": [], "seconds": [], "span": []}

    assert Summary.of(master.total(), master.seconds) == Summary.of(alone.total(), alone.seconds)
    assert master.seconds == alone.seconds == 11.25
    assert master.by_adapter().keys() == {"a", "b"}
    assert {at: each.counts for at, each in master.by_second.items()} == {
        at: each.counts for at, each in alone.by_second.items()
    }


def sent(message: Message) -> Message:
    """Locust's messages keep numbers as keys, which JSON does not."""
    copy = json.loads(json.dumps(message))
    for row in (*copy["kinds"], *copy["seconds"]):
        row[-1] = {
            name: {int(bucket): count for bucket, count in counts.items()}
            for name, counts in row[-1].items()
        }
    return cast(Message, copy)


def test_only_completed_answers_have_times_and_tokens() -> None:
    recorder = Recorder()
    recorder.objective = Objective.parse("ttft=1s")
    outcomes: list[Outcome] = ["completed", "failed", "429", "503", "left"]
    for outcome in outcomes:
        recorder.add(answer("a", outcome))

    summary = Summary.of(recorder.total(), seconds=2.0)
    refused = (summary.refused_429, summary.refused_503)
    assert (summary.completed, summary.failed, *refused, summary.left) == (1, 1, 1, 1, 1)
    assert (summary.completion_tokens, summary.tokens_per_second) == (4, 2.0)
    # Of the completed and the failed one.
    assert (summary.goodput, summary.good_share) == (0.5, 0.5)
    assert recorder.total().times["e2e"].num_values == 1
    assert recorder.total().times["refusal"].num_values == 2


def test_tokens_count_in_the_second_in_which_they_came() -> None:
    """Of three texts and four tokens: two texts in the first second, one in the next."""
    recorder = Recorder()
    recorder.add(answer("a"))

    came = {at: each.counts["tokens_that_came"] for at, each in recorder.by_second.items()}
    assert came == {1000: 3, 1001: 1}


def test_the_lines_of_a_plot_stay_in_its_frame() -> None:
    drawn = plot("title", "s", {"line": [(0.0, 0.0), (30.0, 7.0), (60.0, 3.5)]})

    (line,) = drawn.lines
    assert line.points == f"0.0,{HEIGHT:.1f} {WIDTH / 2:.1f},0.0 {WIDTH:.1f},{HEIGHT / 2:.1f}"
    assert [tick.label for tick in drawn.x_ticks] == ["0", "20", "40", "60"]
    assert [tick.label for tick in drawn.y_ticks] == ["0", "2", "4", "6"]
    assert all(0 <= tick.at <= WIDTH for tick in drawn.x_ticks)


def test_a_plot_of_nothing_has_axes() -> None:
    drawn = plot("title", "s", {"line": []})
    assert (drawn.lines[0].points, len(drawn.x_ticks)) == ("", 3)
