"""A server of BART, which forces tokens and has learned positions: beside transformers and PEFT."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.server.process import running
from tests.server.requests import add_adapter, generate, put_adapter, stream, text_of
from tests.server.seq2seq import (
    Transformers,
    checked_against_peft,
    completion,
    message_of,
    save_lora,
    save_soft_prompt,
)
from tests.server.tiny_models import make_bart

NUM_POSITIONS = 64
START, BOS, EOS = 2, 0, 2
PROMPTS = [
    "The old dog likes  a long story.",
    "She watches the river",
    "naïve ☃ snow",
    "The morning rain. " * 3,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bart(tmp_path_factory.mktemp("bart") / "model")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with (
        running("--kv-cache-gib", "0.1", "--model", str(folder)) as server,
        server.wait_until_ready().client() as it,
    ):
        yield it


@pytest.fixture(scope="module")
def transformers(folder: Path) -> Transformers:
    return Transformers(folder)


@pytest.mark.parametrize("num_tokens", [1, 2, 20])
def test_completions_are_those_of_transformers(
    client: httpx.Client, transformers: Transformers, num_tokens: int
) -> None:
    """With the tokens that the model forces at their beginnings and, at the limit, their ends."""
    asked = {"max_new_tokens": num_tokens, "return_token_ids": True}
    answer = generate(client, prompt=PROMPTS, **asked)

    expected = [transformers.complete(prompt, num_tokens=num_tokens) for prompt in PROMPTS]
    assert [completion(answer, index) for index in range(len(PROMPTS))] == expected
    assert answer["usage"]["completion_tokens"] == sum(len(ids) for ids, _ in expected)
    lengths = [len(transformers.tokenizer.encode(prompt)) for prompt in PROMPTS]
    assert answer["usage"]["prompt_tokens"] == sum(lengths)
    # It is the limit that has ended what is full, and not the model.
    reasons = ["length" if len(ids) == num_tokens else "stop" for ids, _ in expected]
    assert [each["finish_reason"] for each in answer["completions"]] == reasons
    if num_tokens == 20:
        assert set(reasons) == {"length", "stop"}
        assert {(ids[0], ids[-1]) for ids, _ in expected} == {(BOS, EOS)}
        assert len({text for _, text in expected}) == len(PROMPTS)


def test_a_forced_token_has_the_models_own_probability(
    client: httpx.Client, transformers: Transformers
) -> None:
    answer = generate(client, prompt=PROMPTS[0], max_new_tokens=3, logprobs=1)

    inputs = torch.tensor([transformers.tokenizer.encode(PROMPTS[0])])
    (first, *_, last) = answer["completions"][0]["logprobs"]
    with torch.inference_mode():
        logits = transformers.model(inputs, decoder_input_ids=torch.tensor([[START]])).logits
    assert first["token_id"] == BOS
    assert first["logprob"] == pytest.approx(float(logits[0, 0].log_softmax(-1)[BOS]), abs=1e-4)
    assert last["token_id"] == EOS


@pytest.mark.parametrize("num_tokens", [2, 12])
def test_a_beam_search_has_forced_tokens(
    client: httpx.Client, transformers: Transformers, num_tokens: int
) -> None:
    asked: dict[str, Any] = {"num_beams": 3, "n": 2, "max_new_tokens": num_tokens}
    answer = generate(client, prompt=PROMPTS, return_token_ids=True, logprobs=1, **asked)

    expected = [found for prompt in PROMPTS for found in transformers.search(prompt, **asked)]
    assert [completion(answer, index) for index in range(len(expected))] == [
        (token_ids, text) for token_ids, text, _ in expected
    ]
    assert {token_ids[0] for token_ids, *_ in expected} == {BOS}
    reasons = ["length" if len(ids) == num_tokens else "stop" for ids, *_ in expected]
    assert [each["finish_reason"] for each in answer["completions"]] == reasons
    for each in answer["completions"]:
        chosen = [position["token_id"] for position in each["logprobs"]]
        assert chosen == each["token_ids"]


def test_a_stream_has_the_same_text(client: httpx.Client) -> None:
    whole = generate(client, prompt=PROMPTS[0], max_new_tokens=12)
    assert stream(client, prompt=PROMPTS[0], max_new_tokens=12).text() == text_of(whole)


@pytest.mark.parametrize("start", ["the house", "<s>"])
def test_a_decoder_prompt_is_in_place_of_the_forced_token(
    client: httpx.Client, transformers: Transformers, start: str
) -> None:
    answer = generate(
        client,
        prompt=PROMPTS[0],
        decoder_prompt=start,
        max_new_tokens=12,
        return_token_ids=True,
    )

    expected = transformers.complete(PROMPTS[0], decoder_prompt=start, num_tokens=12)
    assert completion(answer) == expected
    assert expected[0][0] != BOS
    forced = generate(client, prompt=PROMPTS[0], max_new_tokens=13)
    assert (text_of(forced) == expected[1]) is (start == "<s>")


def test_nothing_is_forced_where_all_tokens_are_to_come(client: httpx.Client) -> None:
    """Nor is there a structure that a forced token would break."""
    asked = {"prompt": PROMPTS[0], "max_new_tokens": 8, "return_token_ids": True}
    endless = generate(client, **asked, ignore_eos=True)["completions"][0]
    assert endless["token_ids"][-1] != EOS
    assert endless["finish_reason"] == "length"

    (chosen,) = generate(client, **asked, choice=["rain", "apples"])["completions"]
    assert chosen["text"] in {"rain", "apples"}
    assert BOS not in chosen["token_ids"]
    assert chosen["finish_reason"] == "stop"


def test_inspect_shows_the_first_token_that_is_chosen(
    client: httpx.Client, transformers: Transformers
) -> None:
    answer = client.post("/inspect", json={"prompt": PROMPTS[0], "num_tokens": 3}).json()

    token_ids, _ = transformers.complete(PROMPTS[0])
    assert answer["tokens"][0]["token_id"] == token_ids[1]
    assert client.get("/info").json()["forced_bos_token_id"] == BOS


def test_there_are_no_more_positions(client: httpx.Client) -> None:
    """In either stack; the last ones can be used."""
    info = client.get("/info").json()
    assert (info["context_window"], info["encoder_window"]) == (NUM_POSITIONS, NUM_POSITIONS)

    full = {"prompt_token_ids": [BOS] + [50] * 62 + [EOS]}
    answer = generate(client, **full, max_new_tokens=63, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 63
    long = client.post("/generate", json={"prompt_token_ids": [50] * 65})
    assert "the encoder's window is 64" in message_of(long)
    much = client.post("/generate", json=full | {"max_new_tokens": 64})
    assert "its context window is 64: lower max_new_tokens to 63" in message_of(much)


def test_adapters_give_what_peft_gives(
    client: httpx.Client, transformers: Transformers, folder: Path, tmp_path: Path
) -> None:
    models = {
        "everywhere": save_lora(tmp_path / "everywhere", folder, "all-linear"),
        "soft": save_soft_prompt(tmp_path / "soft", folder),
    }
    texts = {transformers.complete(PROMPTS[0])[1]}
    for name, model in models.items():
        add_adapter(client, name, tmp_path / name)
        field = "soft_prompt" if name == "soft" else "adapter"
        asked = {"prompt": PROMPTS[0], "max_new_tokens": 20, "return_token_ids": True}
        answer = generate(client, **asked | {field: name})
        assert completion(answer) == transformers.complete(PROMPTS[0], model=model), name
        texts.add(text_of(answer))
    assert len(texts) == 3

    long = client.post("/generate", json={"prompt_token_ids": [50] * 60, "soft_prompt": "soft"})
    assert "has 60 tokens and its soft prompt 5; the encoder's window is 64" in message_of(long)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True")
@pytest.mark.parametrize("module", ["model.shared", "lm_head"])
def test_neither_embedding_nor_head_takes_a_lora(
    client: httpx.Client, folder: Path, tmp_path: Path, module: str
) -> None:
    save_lora(tmp_path, folder, ["q_proj", module])
    refused = message_of(put_adapter(client, "embedding", tmp_path))
    assert f"'{module}', to which the engine adds no LoRA" in refused


def test_labels_are_scored_in_the_decoder(client: httpx.Client, transformers: Transformers) -> None:
    """Behind the first token, which nobody chooses, and with the last."""
    labels = ["rain", "green apples"]
    template = {
        "input_variables": ["text"],
        "example_format": "{{ text }} {{ output }}",
        "query_format": "{{ text }}",
        "labels": labels,
    }
    body = {"template": template, "inputs": {"text": PROMPTS[1]}, "max_new_tokens": 8}
    response = client.post("/icl/generate", json=body)
    assert response.status_code == 200, response.text

    (used,) = response.json()["prompts"]
    scored = {each["label"]: each["logprob"] for each in used["classification"]["labels"]}
    expected = {label: transformers.logprob(PROMPTS[1], label, num_forced=1) for label in labels}
    assert scored == pytest.approx(expected, abs=1e-3)


def test_adapter_check_compares_what_is_not_forced(folder: Path, tmp_path: Path) -> None:
    save_lora(tmp_path / "lora", folder, ["q_proj", "fc1"])
    report = checked_against_peft(tmp_path / "lora", folder, PROMPTS[0])

    assert report.against_peft is not None
    assert report.against_peft.equal
    assert report.against_peft.prompts[0].token_ids[0] != BOS
