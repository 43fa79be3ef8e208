"""Every answer, as counts and histograms: what one worker collects adds up with the others'."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from loadtest.figures.histogram import Histogram
from loadtest.figures.objective import Objective
from loadtest.users.answers import Answer

TIMES = ("ttft", "itl", "tpot", "e2e", "refusal", "retry_after")
# As it travels from a worker: rows with a key, counts and histograms.
Message = dict[str, list[list[Any]]]


class Figures:
    """Of some answers: how many of each outcome, how many tokens, and how long each time was."""

    def __init__(
        self, counts: Mapping[str, int] | None = None, times: Mapping[str, Any] | None = None
    ) -> None:
        self.counts = Counter(counts or {})
        self.times = {name: Histogram((times or {}).get(name)) for name in TIMES}

    def merge(self, other: "Figures") -> None:
        self.counts.update(other.counts)
        for name, histogram in other.times.items():
            self.times[name].merge(histogram)

    def packed(self) -> list[Any]:
        return [
            self.counts,
            {name: each.counts for name, each in self.times.items() if each.counts},
        ]

    @classmethod
    def sum(cls, many: Iterable["Figures"]) -> "Figures":
        whole = cls()
        for each in many:
            whole.merge(each)
        return whole


class Recorder:
    """The figures by user class and adapter, and by second."""

    def __init__(self) -> None:
        self.objective = Objective({})
        self.clear()

    def clear(self) -> None:
        self.by_kind: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)
        self.by_second: defaultdict[int, Figures] = defaultdict(Figures)
        self.began_at: float | None = None
        self.ended_at: float | None = None

    def add(self, answer: Answer) -> None:
        """A refusal takes part with its own time only, and a failed or left one with none."""
        figures = Figures(counts={answer.outcome: 1})
        if answer.outcome == "completed":
            figures.counts += _counts(answer, self.objective)
            figures.times["e2e"].add([answer.e2e])
            figures.times["itl"].add(answer.itl)
            figures.times["ttft"].add(_given(answer.ttft))
            figures.times["tpot"].add(_given(answer.tpot))
        elif answer.outcome in {"429", "503"}:
            figures.times["refusal"].add([answer.e2e])
            figures.times["retry_after"].add(_given(answer.retry_after))
        self.by_kind[answer.user, answer.adapter].merge(figures)
        self._add_to_seconds(answer, figures)
        self._extend(answer.sent_at, answer.sent_at + answer.e2e)

    def _add_to_seconds(self, answer: Answer, figures: Figures) -> None:
        """Where it ended; but a token counts when it came, as near as the texts tell."""
        end = answer.sent_at + answer.e2e
        self.by_second[int(end)].merge(figures)
        tokens = figures.counts["completion_tokens"]
        came_at = Counter(int(answer.sent_at + at) for at in answer.texts_at or [answer.e2e])
        for second, texts in came_at.items():
            self.by_second[second].counts["tokens_that_came"] += round(
                tokens * texts / came_at.total()
            )

    def _extend(self, began_at: float, ended_at: float) -> None:
        self.began_at = min(began_at, self.began_at or began_at)
        self.ended_at = max(ended_at, self.ended_at or ended_at)

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last answer."""
        return (self.ended_at or 0.0) - (self.began_at or 0.0)

    def by_user(self) -> dict[str, Figures]:
        return self._grouped(0)

    def by_adapter(self) -> dict[str, Figures]:
        return self._grouped(1)

    def _grouped(self, part: int) -> dict[str, Figures]:
        groups: defaultdict[str, Figures] = defaultdict(Figures)
        for kind in sorted(self.by_kind, key=itemgetter(part)):
            groups[kind[part]].merge(self.by_kind[kind])
        return dict(groups)

    def total(self) -> Figures:
        return Figures.sum(self.by_kind.values())

    def take(self) -> Message:
        """Everything so far, to be sent; from here on it is empty."""
        message: Message = {
            "kinds": [[*kind, *each.packed()] for kind, each in self.by_kind.items()],
            "seconds": [[second, *each.packed()] for second, each in self.by_second.items()],
            "span": [] if self.began_at is None else [[self.began_at, self.ended_at]],
        }
        self.clear()
        return message

    def merge(self, message: Message) -> None:
        for user, adapter, counts, times in message["kinds"]:
            self.by_kind[user, adapter].merge(Figures(counts, times))
        for second, counts, times in message["seconds"]:
            self.by_second[second].merge(Figures(counts, times))
        for began_at, ended_at in message["span"]:
            self._extend(began_at, ended_at)


def _counts(answer: Answer, objective: Objective) -> Counter[str]:
    return Counter(
        {
            "good": objective.is_kept_by(answer),
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "compared_texts": answer.text_was_compared,
        }
    )


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]
