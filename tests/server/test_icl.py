"""In-context learning on the real engine: exact tokens, shared prefixes, labels by their scores."""

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.templates.source import read_template
from tests.adapter_files import write_soft_prompt
from tests.server.process import SHIPPED_TEMPLATES, ServerProcess
from tests.server.requests import Streamed, add_adapter, generate, text_of

REVIEW = {"review": "The handle came off after one week."}
DIALOGUE = {"dialogue": "Nora: Are you coming on Saturday?\nPiet: Yes, but only around seven."}
HIDDEN_SIZE = 576


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/icl/{path}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    template = read_template(SHIPPED_TEMPLATES / f"{name}.yaml")
    return template.model_dump(mode="json", exclude_defaults=True) | changes


def test_the_shipped_templates_are_live(client: httpx.Client) -> None:
    templates = client.get("/icl/templates").json()["templates"]
    live = {each["name"] for each in templates if each["live"] and not each["rejected"]}
    assert {file.stem for file in SHIPPED_TEMPLATES.glob("*.yaml")} <= live


@pytest.mark.parametrize("chat", [{}, {"use_chat_template": True, "system": "Be brief."}])
@pytest.mark.parametrize("shots", [0, 1, 3, "auto"])
def test_rendered_tokens_are_those_of_the_prompt(
    client: httpx.Client, chat: dict[str, Any], shots: int | str
) -> None:
    body: dict[str, Any] = {
        "template": shipped("sentiment", labels=[], **chat),
        "inputs": [REVIEW, {"review": "Très bon — 10/10 \U0001f600"}],
        "shots": shots,
    }
    rendered = post(client, "render", **body)["prompts"]
    answer = post(client, "generate", **body, max_new_tokens=2)
    num_tokens = [each["prompt_tokens"] for each in rendered]
    assert sum(num_tokens) == answer["usage"]["prompt_tokens"]
    if not chat:
        # The prompt is a text like any other.
        plain = generate(client, prompt=[each["prompt"] for each in rendered], max_new_tokens=2)
        assert plain["usage"]["prompt_tokens"] == sum(num_tokens)
    else:
        assert rendered[0]["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_soft_prompts_tokens_count_too(client: httpx.Client, tmp_path: Path) -> None:
    add_adapter(client, "icl-soft", write_soft_prompt(tmp_path / "a", 20, HIDDEN_SIZE, seed=1))
    body = {"template": "sentiment", "inputs": REVIEW, "shots": 2, "soft_prompt": "icl-soft"}
    (rendered,) = post(client, "render", **body)["prompts"]
    answer = post(client, "generate", **body)
    assert rendered["virtual_tokens"] == answer["usage"]["virtual_tokens"] == 20
    assert rendered["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert answer["prompts"][0]["classification"]["labels"]
    client.delete("/adapters/icl-soft").raise_for_status()


def test_the_context_window_is_filled_and_never_exceeded(client: httpx.Client) -> None:
    window = client.get("/info").json()["context_window"]
    example = {"text": "one two three four five six seven " * 60, "output": "eight"}
    body: dict[str, Any] = {
        "template": {
            "input_variables": ["text"],
            "example_format": "{{ text }}: {{ output }}",
            "query_format": "{{ text }}:",
            "examples": [example] * 30,
        },
        "inputs": {"text": "one"},
        "shots": 30,
        "max_new_tokens": 16,
    }
    (rendered,) = post(client, "render", **body)["prompts"]
    assert 0 < rendered["num_dropped"] == 30 - rendered["shots"]
    one_more = post(client, "render", **body | {"shots": 1})["prompts"][0]["prompt_tokens"]
    assert window - one_more < rendered["prompt_tokens"] + 16 <= window
    (answer,) = post(client, "generate", **body | {"max_new_tokens": 16})["prompts"]
    assert answer["prompt_tokens"] == rendered["prompt_tokens"]
    too_long = client.post("/icl/generate", json=body | {"inputs": {"text": "one " * (window + 9)}})
    assert (too_long.status_code, too_long.json()["error"]["type"]) == (
        422,
        "context_window_exceeded",
    )


def test_the_second_request_shares_what_comes_before_the_query(client: httpx.Client) -> None:
    template = shipped("dialogue-summary", instruction="Sum each of these dialogues up.")
    asked: dict[str, Any] = {"template": template, "shots": 5, "max_new_tokens": 8}
    first = post(client, "generate", **asked, inputs=DIALOGUE)
    second = post(client, "generate", **asked, inputs={"dialogue": "Mia: When?\nPaul: At ten."})
    assert first["usage"]["cached_tokens"] == 0
    # All whole blocks of what they share.
    assert second["usage"]["cached_tokens"] > second["usage"]["prompt_tokens"] * 0.6


def test_a_warm_template_is_cached_from_the_start(
    server: ServerProcess, client: httpx.Client
) -> None:
    records = [json.loads(line) for line in server.log if "a template is warm" in line]
    assert "dialogue-summary" in {record["name"] for record in records}
    template = shipped("dialogue-summary", instruction="A warm one.")
    assert client.put("/icl/templates/warmed", json=template).status_code == 200
    answer = post(client, "generate", template="warmed", inputs=DIALOGUE, max_new_tokens=4)
    assert answer["usage"]["cached_tokens"] > 0
    client.delete("/icl/templates/warmed").raise_for_status()


def test_labels_are_scored_as_the_model_scores_text(client: httpx.Client) -> None:
    """Equal to the log probabilities that a forced continuation is reported with."""
    labels = ["positive", "negative", "neither of the two"]
    template = shipped("sentiment", labels=labels)
    body: dict[str, Any] = {"template": template, "inputs": REVIEW, "shots": 2}
    answer = post(client, "generate", **body)
    scores = answer["prompts"][0]["classification"]["labels"]
    prompt = post(client, "render", **body)["prompts"][0]["prompt"]
    expected = [_logprob_of(client, prompt, f" {label}") for label in labels]
    for score, logprob in zip(scores, expected, strict=True):
        assert score["logprob"] == pytest.approx(logprob, abs=2e-3)
    total = sum(map(math.exp, expected))
    for score, logprob in zip(scores, expected, strict=True):
        assert score["probability"] == pytest.approx(math.exp(logprob) / total, abs=2e-3)
    assert answer["prompts"][0]["classification"]["best"] == "negative"


def _logprob_of(client: httpx.Client, prompt: str, continuation: str) -> float:
    """The sum over its words, each of which is one token here, from POST /inspect."""
    logprob = 0.0
    for word in continuation.split():
        body = {"prompt": prompt, "num_tokens": 1000}
        tokens = client.post("/inspect", json=body).json()["tokens"]
        chances = [each["probability"] for each in tokens if each["token"] == f" {word}"]
        assert chances, f"{word} is not one of the likeliest tokens"
        logprob += math.log(chances[0])
        prompt += f" {word}"
    return logprob


def test_the_sentiment_of_plain_reviews(client: httpx.Client) -> None:
    reviews = {
        "I love this kettle, it is fast and quiet.": "positive",
        "The food was awful and the staff rude.": "negative",
        "Best concert of my life.": "positive",
        "I want my money back.": "negative",
    }
    inputs = [{"review": review} for review in reviews]
    answer = post(client, "generate", template="sentiment", inputs=inputs, shots=3)
    best = [each["classification"]["best"] for each in answer["prompts"]]
    assert best == list(reviews.values())
    assert [each["text"].strip() for each in answer["completions"]] == best


@pytest.mark.parametrize("shots", [1, 3])
def test_the_readmes_order_as_json(client: httpx.Client, shots: int) -> None:
    """It is the completion of the rendered prompt, which is a text like any other."""
    asked: dict[str, Any] = {
        "template": "text-to-json",
        "inputs": {"order": "I would like two clocks. Ship them to Madrid."},
        "shots": shots,
    }
    answer = post(client, "generate", **asked)
    assert text_of(answer) == ' {"item": "clock", "quantity": 2, "city": "Madrid"}'
    (rendered,) = post(client, "render", **asked)["prompts"]
    plain = generate(
        client, prompt=rendered["prompt"], max_new_tokens=48, min_new_tokens=8, stop="\n"
    )
    assert text_of(plain) == text_of(answer)


def test_a_stream_has_the_same_text(client: httpx.Client) -> None:
    body: dict[str, Any] = {"template": "sentiment", "inputs": [REVIEW, REVIEW], "shots": 1}
    whole = post(client, "generate", **body)
    with client.stream("POST", "/icl/generate", json=body | {"stream": True}) as response:
        streamed = Streamed.of_lines(response.iter_lines())
    assert streamed.done
    for completion in whole["completions"]:
        index = completion["prompt_index"]
        assert streamed.text(index) == completion["text"]
        end = streamed.of(index)[-1]
        assert end["prompt"]["classification"]["best"] == "negative"
        assert end["template"] == whole["template"]


@pytest.mark.parametrize(
    "template",
    [
        shipped("sentiment", instruction="<|im_end|>"),
        shipped("sentiment", separator="<filename>"),
        shipped("sentiment", query_format="{{ review.__class__ }}"),
        shipped("sentiment", query_format="{% for i in range(10**9) %}x{% endfor %}"),
        shipped("sentiment", labels=["a", "ab"], examples=[]),
        "no-such-template",
    ],
)
def test_bad_templates_harm_nobody(client: httpx.Client, template: Any) -> None:
    body = {"template": template, "inputs": REVIEW}
    response = client.post("/icl/generate", json=body)
    assert response.status_code in {404, 422}
    assert response.json()["error"]["message"]
    assert client.post("/generate", json={"prompt": "Hi", "max_new_tokens": 1}).status_code == 200
