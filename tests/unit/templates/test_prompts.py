"""Templates that are checked and compiled, examples that are chosen, and what fits."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.generation import Chat
from app.errors import InvalidRequest, TemplateRejected
from app.templates.compilation import CompiledTemplate, ExampleSet, Shot
from app.templates.fitting import most_shots_that_fit
from app.templates.labels import score_labels
from app.templates.selection import Similarity, as_shown, most_useful
from softserve.schema.templates import Selection, Template

BASE: dict[str, Any] = {
    "instruction": "Say it.",
    "input_variables": ["text"],
    "example_format": "In: {{ text }}\nOut: {{ output }}",
    "query_format": "In: {{ text }}\nOut:",
    "examples": [{"text": "a", "output": "yes"}, {"text": "b", "output": "no"}],
}


def compiled(**fields: Any) -> CompiledTemplate:
    return CompiledTemplate(Template.model_validate(BASE | fields), {"<|end|>", "<|start|>"})


def test_a_prompt_has_the_examples_before_the_query() -> None:
    template = compiled(labels=["yes", "no"])
    query = template.query({"text": "c"})
    assert template.prompt(template.examples.shots, query) == (
        "Say it.\n\nIn: a\nOut: yes\n\nIn: b\nOut: no\n\nIn: c\nOut:"
    )
    assert template.prompt([], query) == "Say it.\n\nIn: c\nOut:"
    assert template.shared_prefix(template.examples.shots) == (
        "Say it.\n\nIn: a\nOut: yes\n\nIn: b\nOut: no\n\n"
    )
    assert template.continuations({"text": "c"}, query) == [" yes", " no"]


def test_without_an_instruction_nothing_comes_first() -> None:
    assert compiled(instruction="").prompt([], "x") == "x"


TURNS = {"examples_as_turns": True, "use_chat_template": True}


@pytest.mark.parametrize(
    ("fields", "system"),
    [({}, "Say it."), ({"instruction": "", "system": "Be kind."}, "Be kind."),
     ({"instruction": ""}, None)],
)  # fmt: skip
def test_examples_as_turns(fields: dict[str, Any], system: str | None) -> None:
    template = compiled(**TURNS, **fields)
    prompt = template.prompt(template.examples.shots, template.query({"text": "c"}))
    assert prompt == Chat.of(
        ("system", system),
        *(("user", "In: a\nOut:"), ("assistant", "yes")),
        *(("user", "In: b\nOut:"), ("assistant", "no")),
        ("user", "In: c\nOut:"),
    )
    assert template.prompt([], "x") == Chat.of(("system", system), ("user", "x"))


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"examples_as_turns": True}, "examples_as_turns", "set use_chat_template"),
        ({**TURNS, "system": "Be kind."}, "system", "leave system out"),
        ({**TURNS, "separator": "\n"}, "separator", "no effect"),
        ({**TURNS, "query_format": "Q: {{ text }}"}, "examples", "begin exactly as its query"),
        ({"examples": [{"text": "a"}]}, "examples", "example 1 lacks output"),
        ({"examples": [{"output": "a"}]}, "examples", "example 1 lacks text"),
        ({"examples": [*BASE["examples"], {"text": "a", "output": "b", "mood": "c"}]}, "examples",
         "example 3 has 'mood', which is no variable"),
        ({"examples": [{"text": ["a"], "output": "b"}]}, "examples", "example 1: the inputs"),
        ({"examples": [{"text": "a", "output": ["b"]}]}, "examples", "an output that is no text"),
        ({"labels": ["pos", "positive"]}, "labels", "'pos' is the beginning of 'positive'"),
        ({"labels": ["yes", "yes"]}, "labels", "'yes' is the beginning of 'yes'"),
        ({"labels": ["yes"]}, "labels", "give two or more"),
        ({"labels": ["yes ", "no"]}, "labels", "spaces around it"),
        ({"labels": ["yes", "maybe"]}, "examples", "not among the labels"),
        ({"labels": ["yes", "no"], "query_format": "Q: {{ text }}"}, "examples",
         "begin exactly as its query"),
        ({"instruction": "<|end|> now"}, "instruction", "special token"),
        ({"separator": "<|end|>"}, "separator", "special token"),
        ({"query_format": "{{ text }}<|start|>"}, "query_format", "special token"),
        ({"example_format": "<|start|>{{ text }}{{ output }}"}, "example_format", "special token"),
        ({"system": "<|end|>", "use_chat_template": True}, "system", "special token"),
        ({"examples": [{"text": "<|end|>", "output": "b"}]}, "examples", "special token"),
        ({"examples": [{"text": "a<|e", "output": "nd|>"}],
          "example_format": "{{ text }}{{ output }}"}, "examples", "special token"),
        ({"system": "Be kind."}, "system", "set use_chat_template"),
        ({"input_variables": ["text", "text"]}, "input_variables", "a name twice"),
        ({"input_variables": ["output"]}, "input_variables", "cannot be the name"),
        ({"input_variables": ["self"]}, "input_variables", "cannot be the name"),
        ({"input_variables": ["text", "mood"]}, "query_format", "does not use the input mood"),
        ({"example_format": "{{ text }}"}, "example_format", "does not use output"),
        ({"query_format": "{{ text }}{{ output }}"}, "query_format", "'output'"),
    ],
)  # fmt: skip
def test_a_template_that_is_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(TemplateRejected) as raised:
        compiled(**fields)
    assert raised.value.param == param
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs lacks text: give each of text"),
        ({"text": "a", "colour": "red"}, "inputs has 'colour', which is no variable: give text"),
    ],
)
def test_inputs_that_are_missing_or_surplus(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        compiled().check_inputs(inputs)
    assert message in raised.value.message


def test_an_input_with_a_special_token() -> None:
    with pytest.raises(InvalidRequest) as raised:
        compiled().query({"text": "a <|end|> b"})
    assert raised.value.param == "inputs"


TEXTS = [
    "the cat sleeps on the mat",
    "a dog barks in the garden",
    "the cat sleeps on the sofa",
    "stock prices fell on Monday",
    "",
]


def chosen(selection: Selection, num_shots: int, query: str = "", seed: int = 0) -> list[int]:
    shots = tuple(map(Shot, TEXTS))
    examples = ExampleSet(tuple({"text": text, "output": "x"} for text in TEXTS), shots)
    return most_useful(selection, examples, num_shots, query, seed)


def test_first_is_stable() -> None:
    assert chosen("first", 3, "anything") == [0, 1, 2]
    assert as_shown("first", [0, 1, 2]) == [0, 1, 2]


def test_random_is_seeded() -> None:
    assert chosen("random", 3, seed=1) == chosen("random", 3, seed=1)
    assert len({tuple(chosen("random", 5, seed=seed)) for seed in range(20)}) > 5
    assert sorted(chosen("random", 5)) == [0, 1, 2, 3, 4]
    assert chosen("random", 5, seed=3)[:2] == chosen("random", 2, seed=3)


def test_similar_begins_with_the_nearest_and_shows_it_last() -> None:
    assert chosen("similar", 2, "Where does the CAT sleep? On the sofa!")[0] == 2
    assert chosen("similar", 1, "prices of stock") == [3]
    assert as_shown("similar", [2, 0]) == [0, 2]


def test_a_tie_goes_to_the_first() -> None:
    assert chosen("similar", 5, "xyzzy") == chosen("similar", 5) == [0, 1, 2, 3, 4]


def test_diverse_takes_no_near_copies() -> None:
    query = "the cat sleeps on the sofa"
    assert chosen("similar", 2, query) == [2, 0]
    first, second = chosen("diverse", 2, query)
    assert first == 2
    assert second != 0
    assert sorted(chosen("diverse", 5, query)) == [0, 1, 2, 3, 4]
    assert sorted(chosen("diverse", 5)) == [0, 1, 2, 3, 4]


def test_similarity_of_texts_without_words() -> None:
    assert list(Similarity(["", "..."]).to("a")) == [0.0, 0.0]
    assert list(Similarity([]).to("a")) == []


@pytest.mark.parametrize("num_shots", range(9))
@pytest.mark.parametrize("max_tokens", range(5, 100, 4))
async def test_as_many_as_fit(num_shots: int, max_tokens: int) -> None:
    counted: list[int] = []

    async def tokens_of(shots: int) -> list[int]:
        counted.append(shots)
        return [0] * (10 * (shots + 1))

    shots, tokens = await most_shots_that_fit(num_shots, tokens_of, max_tokens)
    expected = max([0, *(k for k in range(num_shots + 1) if 10 * (k + 1) <= max_tokens)])
    assert (shots, len(tokens)) == (expected, 10 * (expected + 1))
    assert len(counted) <= 5


async def test_labels_are_scored_by_all_of_their_tokens() -> None:
    asked: list[tuple[int, ...]] = []

    async def next_token_logprobs(prefix: list[int]) -> NDArray[np.float32]:
        asked.append(tuple(prefix))
        # Token t has probability (t + 1) / 10 after one token, 1 / 4 after more.
        chances = [0.1, 0.2, 0.3, 0.4] if len(prefix) == 1 else [0.25] * 4
        return np.log(np.array(chances, dtype=np.float32))

    # "2" alone, "3 1" and "3 0 0" after the prompt "0".
    scores = await score_labels(
        ["a", "b", "c"], [[0, 2], [0, 3, 1], [0, 3, 0, 0]], next_token_logprobs
    )
    likelihoods = [0.3, 0.4 * 0.25, 0.4 * 0.25 * 0.25]
    assert [score.label for score in scores] == ["a", "b", "c"]
    for score, likelihood in zip(scores, likelihoods, strict=True):
        assert score.logprob == pytest.approx(math.log(likelihood), abs=1e-5)
        assert score.probability == pytest.approx(likelihood / sum(likelihoods), abs=1e-5)
    # Each prefix once, and the prompt itself before the others.
    assert asked[0] == (0,)
    assert sorted(asked) == [(0,), (0, 3), (0, 3, 0)]


async def test_a_boundary_that_merges_is_scored_from_where_all_agree() -> None:
    """Prompt and label may be tokenized otherwise together: 1 and 2 become 9."""
    asked: list[tuple[int, ...]] = []

    async def next_token_logprobs(prefix: list[int]) -> NDArray[np.float32]:
        asked.append(tuple(prefix))
        return np.log(np.full(10, 0.1, dtype=np.float32))

    scores = await score_labels(["a", "b"], [[0, 1, 3], [0, 9]], next_token_logprobs)
    assert sorted(asked) == [(0,), (0, 1)]
    assert [round(math.exp(score.logprob), 3) for score in scores] == [0.01, 0.1]


async def test_labels_with_nothing_in_common_or_too_many_tokens() -> None:
    async def never(prefix: list[int]) -> NDArray[np.float32]:
        raise AssertionError

    with pytest.raises(InvalidRequest):
        await score_labels(["a", "b"], [[0], [1]], never)
    with pytest.raises(InvalidRequest):
        await score_labels(["a", "b"], [[0, *range(300)], [0, 5]], never)
