"""Which versions may answer, and what they say."""

from typing import Any

import pytest

from loadtest.users.checks import Checks, LiveVersions, WrongAnswer, key_of
from loadtest.users.questions import Question

OLD, NEW = "a" * 64, "b" * 64
QUESTION = Question({"prompt": "Hi", "adapter": "lora"})


def checks(**versions: str) -> Checks:
    live = LiveVersions()
    for name, version in versions.items():
        live.begin(name, [version])
    return Checks(live)


def ending(version: str) -> dict[str, Any]:
    return {"adapter": {"name": "lora", "version": version}}


def test_during_a_change_both_versions_may_answer() -> None:
    live = LiveVersions()
    live.begin("lora", [OLD])
    assert live.since("lora", sent_at=1.0) == {OLD}

    live.begin("lora", [NEW])
    assert live.since("lora", sent_at=1.0) == {OLD, NEW}

    live.keep_only("lora", NEW, now=5.0)
    assert live.since("lora", sent_at=4.0) == {OLD, NEW}
    assert live.since("lora", sent_at=6.0) == {NEW}


def test_after_a_rollback_it_is_the_old_one_again() -> None:
    live = LiveVersions()
    for version, now in ((OLD, 1.0), (NEW, 2.0), (OLD, 3.0)):
        live.begin("lora", [version])
        live.keep_only("lora", version, now)

    assert live.since("lora", sent_at=4.0) == {OLD}
    assert live.since("lora", sent_at=2.5) == {OLD, NEW}


def test_the_version_that_was_asked_for_has_answered() -> None:
    assert checks(lora=OLD).check_versions(QUESTION, ending(OLD), sent_at=1.0) == {"adapter": OLD}


@pytest.mark.parametrize("answered", [ending(NEW), {}, {"soft_prompt": ending(OLD)["adapter"]}])
def test_another_version_or_none_is_wrong(answered: dict[str, Any]) -> None:
    with pytest.raises(WrongAnswer, match="adapter lora means aaaaaaaaaaaa, and"):
        checks(lora=OLD).check_versions(QUESTION, answered, sent_at=1.0)


def test_an_adapter_that_nobody_asked_for_is_wrong() -> None:
    with pytest.raises(WrongAnswer, match="adapter lora answered, and was not asked for"):
        checks(lora=OLD).check_versions(Question({"prompt": "Hi"}), ending(OLD), sent_at=1.0)


def test_a_template_brings_its_own_adapter() -> None:
    answered = ending(OLD) | {"template": {"name": "review", "version": NEW}}
    question = Question({"template": "review", "inputs": {}})
    assert checks(review=NEW).check_versions(question, answered, 1.0) == {"template": NEW}


def test_a_text_is_that_of_the_version_and_not_of_the_name() -> None:
    other_name = Question({"prompt": "Hi", "adapter": "other name"})
    known = Checks(alone={key_of(other_name, {"adapter": OLD}): "old text"})

    assert known.check_text(QUESTION, {"adapter": OLD}, "old text")
    assert not known.check_text(QUESTION, {"adapter": NEW}, "anything")
    with pytest.raises(WrongAnswer, match="lora says something else than alone"):
        known.check_text(QUESTION, {"adapter": OLD}, "new text")


def test_an_answer_has_the_tokens_that_were_asked_for() -> None:
    Checks().check_length(Question({}, num_new_tokens=8), 8)
    Checks().check_length(Question({}), 3)
    with pytest.raises(WrongAnswer, match="7 tokens came, not 8"):
        Checks().check_length(Question({}, num_new_tokens=8), 7)


@pytest.mark.parametrize("streamed", [True, False])
def test_the_likeliest_label_is_one_of_the_template(streamed: bool) -> None:
    prompt = {"classification": {"best": "good"}}
    answered = {"prompt": prompt} if streamed else {"prompts": [prompt]}

    Checks().check_labels(Question({}, labels=("good", "bad")), answered)
    with pytest.raises(WrongAnswer, match="review has no label good"):
        Checks().check_labels(Question({"template": "review"}, labels=("bad",)), answered)
