"""Whether an answer is the right one: by the versions that it names, and by its text."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loadtest.users.questions import VERSIONED, Question
from softserve.schema.versions import short


class WrongAnswer(Exception):
    """An answer that another request, or another version, should have got."""


@dataclass(slots=True)
class Period:
    """When a name may have meant a version."""

    version: str
    ended_at: float | None = None


class LiveVersions:
    """Which versions each name may have meant, and until when."""

    def __init__(self) -> None:
        self._periods: defaultdict[str, list[Period]] = defaultdict(list)

    def begin(self, name: str, versions: Iterable[str]) -> None:
        """From now on it may mean these too: call it before the change is asked for."""
        self._periods[name] += map(Period, versions)

    def keep_only(self, name: str, version: str, now: float) -> None:
        """It means no other any more: call it once the change is answered."""
        for period in self._periods[name]:
            if period.version != version and period.ended_at is None:
                period.ended_at = now

    def since(self, name: str, sent_at: float) -> set[str]:
        """Those that a request may get that was sent then, and is answered now."""
        return {
            period.version
            for period in self._periods[name]
            if period.ended_at is None or period.ended_at >= sent_at
        }


@dataclass(slots=True)
class Checks:
    """What is known of the right answers. `alone` has texts by `key_of`."""

    live: LiveVersions = field(default_factory=LiveVersions)
    alone: dict[str, str] = field(default_factory=dict)

    def check_length(self, question: Question, num_tokens: int) -> None:
        """
        Raises:
            WrongAnswer: it has not as many tokens as were asked for.
        """
        if question.num_new_tokens not in {None, num_tokens}:
            raise WrongAnswer(f"{num_tokens} tokens came, not {question.num_new_tokens}")

    def check_labels(self, question: Question, ending: dict[str, Any]) -> None:
        """
        Raises:
            WrongAnswer: the likeliest label is none of those that there are.
        """
        if question.labels:
            (prompt,) = ending.get("prompts") or [ending["prompt"]]
            if (best := prompt["classification"]["best"]) not in question.labels:
                raise WrongAnswer(f"{question.adapter} has no label {best}")

    def check_versions(
        self, question: Question, ending: dict[str, Any], sent_at: float
    ) -> dict[str, str]:
        """The versions that answered, by the fields that named them.

        Raises:
            WrongAnswer: it names another one, or none, or one that nobody asked for.
        """
        body, versions = question.body, {}
        for each in VERSIONED:
            name, used = body.get(each), ending.get(each)
            if name is None:
                # A template brings its own.
                if used is not None and "template" not in body:
                    raise WrongAnswer(f"{each} {used['name']} answered, and was not asked for")
                continue
            allowed = self.live.since(name, sent_at)
            if used is None or used["version"] not in allowed:
                answered = short(used["version"]) if used else "none"
                meant = ", ".join(map(short, sorted(allowed)))
                raise WrongAnswer(f"{each} {name} means {meant}, and {answered} answered")
            versions[each] = used["version"]
        return versions

    def check_text(self, question: Question, versions: dict[str, str], text: str) -> bool:
        """Whether there is a text to compare with.

        Raises:
            WrongAnswer: it is another one.
        """
        expected = self.alone.get(key_of(question, versions))
        if expected is not None and text != expected:
            raise WrongAnswer(f"{question.adapter} says something else than alone")
        return expected is not None


def key_of(question: Question, versions: dict[str, str]) -> str:
    """A question as text, with the versions that answered in place of the names that it gave."""
    # Of a soft prompt with several tasks, the task belongs to it.
    tasks = {each: question.body[each].partition("#")[2] for each in versions}
    return json.dumps([question.path, question.body | versions, tasks], sort_keys=True)
