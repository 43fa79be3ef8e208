"""A server of an encoder-decoder model, as FLAN-T5: beside transformers and PEFT, and refusals."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.process import running, until
from tests.server.requests import add_adapter, generate, metric, put_adapter, stream, text_of
from tests.server.seq2seq import (
    Transformers,
    checked_against_peft,
    completion,
    message_of,
    save_lora,
    save_soft_prompt,
)
from tests.server.tiny_models import make_t5

START = ("--context-window", "64", "--encoder-window", "48", "--kv-cache-gib", "0.1")
PROMPTS = [
    "summarize: The old dog likes  a long story.",
    "She watches the river",
    "naïve ☃ snow",
    "The morning rain. " * 2,
]
LABELS = ["a small cat", "the dog", "nothing"]
TEMPLATE = {
    "input_variables": ["text"],
    "example_format": "classify: {{ text }} {{ output }}",
    "query_format": "classify: {{ text }}",
    "separator": " ",
    "labels": LABELS,
    "examples": [
        {"text": "the old dog", "output": "the dog"},
        {"text": "a long story in the garden near Paris", "output": "nothing"},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5") / "model")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with (
        running(*START, "--model", str(folder)) as server,
        server.wait_until_ready().client() as it,
    ):
        yield it


@pytest.fixture(scope="module")
def transformers(folder: Path) -> Transformers:
    return Transformers(folder)


def test_prompts_are_completed_as_by_transformers(
    client: httpx.Client, transformers: Transformers
) -> None:
    """Also what has spaces twice, and characters that the vocabulary lacks."""
    answer = generate(client, prompt=PROMPTS, max_new_tokens=20, return_token_ids=True)

    expected = [transformers.complete(prompt) for prompt in PROMPTS]
    assert [completion(answer, index) for index in range(len(PROMPTS))] == expected
    assert len({text for _, text in expected}) == len(PROMPTS)
    lengths = [len(transformers.tokenizer.encode(prompt)) for prompt in PROMPTS]
    assert answer["usage"] == {
        "prompt_tokens": sum(lengths),
        "virtual_tokens": 0,
        "completion_tokens": sum(len(token_ids) for token_ids, _ in expected),
        "cached_tokens": 0,
    }


def test_a_decoder_prompt_starts_the_completion(
    client: httpx.Client, transformers: Transformers
) -> None:
    start = "the house"
    answer = generate(
        client,
        prompt=PROMPTS[0],
        decoder_prompt=start,
        max_new_tokens=12,
        return_token_ids=True,
    )

    expected = transformers.complete(PROMPTS[0], decoder_prompt=start, num_tokens=12)
    assert completion(answer) == expected
    assert expected[1] != transformers.complete(PROMPTS[0], num_tokens=12)[1]
    num_start = len(transformers.tokenizer.encode(start, add_special_tokens=False))
    num_prompt = len(transformers.tokenizer.encode(PROMPTS[0]))
    assert answer["usage"]["prompt_tokens"] == num_prompt + num_start


def test_a_stream_has_the_same_text(client: httpx.Client) -> None:
    whole = generate(client, prompt=PROMPTS[1], max_new_tokens=20)
    assert stream(client, prompt=PROMPTS[1], max_new_tokens=20).text() == text_of(whole)


def test_sampling_stop_and_logprobs(client: httpx.Client, transformers: Transformers) -> None:
    sampled = generate(
        client, prompt=PROMPTS[1], n=3, temperature=1.0, seed=7, max_new_tokens=8, logprobs=2
    )
    assert len({each["text"] for each in sampled["completions"]}) == 3
    assert all(len(each["logprobs"][0]["top"]) == 2 for each in sampled["completions"])

    _, text = transformers.complete(PROMPTS[1])
    stopped = generate(client, prompt=PROMPTS[1], stop=text[4:7], max_new_tokens=20)
    assert text_of(stopped) == text[: text.index(text[4:7])]
    assert stopped["completions"][0]["finish_reason"] == "stop"


def test_both_windows_are_told_and_kept(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert (info["context_window"], info["encoder_window"]) == (64, 48)

    long = client.post("/generate", json={"prompt_token_ids": [5] * 50})
    assert message_of(long) == (
        "the prompt has 50 tokens; the encoder's window is 48: shorten the prompt by 2 tokens, or "
        "start the server with a larger --encoder-window"
    )
    fits = {"prompt_token_ids": [5] * 47 + [1], "max_new_tokens": 63, "ignore_eos": True}
    assert generate(client, **fits)["usage"]["completion_tokens"] == 63
    much = client.post("/generate", json=fits | {"max_new_tokens": 64})
    assert message_of(much) == (
        "max_new_tokens is 64 and the decoder starts with a token of its own; its context window "
        "is 64: lower max_new_tokens to 63"
    )


def test_adapters_give_what_peft_gives(
    client: httpx.Client, transformers: Transformers, folder: Path, tmp_path: Path
) -> None:
    """On both stacks and on one of them, and a soft prompt, which PEFT saves for both."""
    models = {
        "both": save_lora(tmp_path / "both", folder, "all-linear"),
        "encoder-only": save_lora(tmp_path / "encoder-only", folder, r"encoder\..*\.(q|v|wo)"),
        "soft": save_soft_prompt(tmp_path / "soft", folder),
    }
    texts = {transformers.complete(PROMPTS[0])[1]}
    for name, model in models.items():
        add_adapter(client, name, tmp_path / name)
        field = "soft_prompt" if name == "soft" else "adapter"
        asked = {"prompt": PROMPTS[0], "max_new_tokens": 20, "return_token_ids": True}
        answer = generate(client, **asked | {field: name})
        assert completion(answer) == transformers.complete(PROMPTS[0], model=model), name
        assert answer["usage"]["virtual_tokens"] == (5 if name == "soft" else 0)
        texts.add(text_of(answer))
    assert len(texts) == 4


SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 4, "max_new_tokens": 30},
    {"num_beams": 2, "max_new_tokens": 20, "length_penalty": 2.0, "early_stopping": True,
     "repetition_penalty": 2.5},
    {"num_beams": 5, "max_new_tokens": 40, "length_penalty": -1.0, "early_stopping": "never",
     "n": 3},
    {"num_beams": 3, "max_new_tokens": 12, "length_penalty": 0.0, "min_new_tokens": 6, "n": 3,
     "decoder_prompt": "the house"},
]  # fmt: skip


@pytest.mark.parametrize("controls", SEARCHES)
def test_beams_are_those_of_transformers(
    client: httpx.Client, transformers: Transformers, controls: dict[str, Any]
) -> None:
    """Of several prompts at a time, each of which is searched for."""
    answer = generate(client, prompt=PROMPTS, return_token_ids=True, **controls)

    expected = [each for prompt in PROMPTS for each in transformers.search(prompt, **controls)]
    got = [completion(answer, index) for index in range(len(answer["completions"]))]
    assert got == [(token_ids, text) for token_ids, text, _ in expected]
    for each, (token_ids, _, _) in zip(answer["completions"], expected, strict=True):
        assert each["finish_reason"] == ("stop" if token_ids[-1] == 1 else "length")
    assert answer["usage"]["completion_tokens"] == sum(map(len, (each for each, _, _ in expected)))


def test_some_beams_end_and_no_one_is_greedy(transformers: Transformers) -> None:
    """Else the test above would show less than it seems to."""
    found = [each for prompt in PROMPTS for each in transformers.search(prompt, **SEARCHES[2])]

    assert any(token_ids[-1] == 1 for token_ids, _, _ in found)
    greedy = {transformers.complete(prompt, num_tokens=40)[1] for prompt in PROMPTS}
    assert greedy.isdisjoint(text for _, text, _ in found)


def test_logprobs_of_a_beam_add_up_to_its_score(
    client: httpx.Client, transformers: Transformers
) -> None:
    controls: dict[str, Any] = {"num_beams": 3, "n": 2, "max_new_tokens": 10}
    answer = generate(client, prompt=PROMPTS[0], logprobs=8, **controls)

    greedy = generate(client, prompt=PROMPTS[0], logprobs=8, max_new_tokens=1)
    for each, (token_ids, _, score) in zip(
        answer["completions"], transformers.search(PROMPTS[0], **controls), strict=True
    ):
        positions = each["logprobs"]
        assert [position["token_id"] for position in positions] == token_ids
        mean = sum(position["logprob"] for position in positions) / len(positions)
        assert mean == pytest.approx(score, abs=1e-3)
        first = greedy["completions"][0]["logprobs"][0]["top"]
        assert [(top["token_id"], top["token"]) for top in positions[0]["top"]] == [
            (top["token_id"], top["token"]) for top in first
        ]
        for position in positions:
            logprobs = [top["logprob"] for top in position["top"]]
            assert logprobs == sorted(logprobs, reverse=True)


def test_a_stream_of_beams_has_their_texts(
    client: httpx.Client, transformers: Transformers
) -> None:
    controls: dict[str, Any] = {"num_beams": 4, "n": 2, "max_new_tokens": 20}
    streamed = stream(client, prompt=PROMPTS[1], **controls)

    expected = [text for _, text, _ in transformers.search(PROMPTS[1], **controls)]
    assert [streamed.text(index=index) for index in (0, 1)] == expected
    assert streamed.done


def test_beams_with_adapters_give_what_peft_gives(
    client: httpx.Client, transformers: Transformers, folder: Path, tmp_path: Path
) -> None:
    models = {
        "beams-lora": save_lora(tmp_path / "beams-lora", folder, "all-linear"),
        "beams-soft": save_soft_prompt(tmp_path / "beams-soft", folder),
    }
    controls: dict[str, Any] = {"num_beams": 4, "n": 2, "max_new_tokens": 20}
    texts = {text for _, text, _ in transformers.search(PROMPTS[0], **controls)}
    for name, model in models.items():
        add_adapter(client, name, tmp_path / name)
        field = "soft_prompt" if name == "beams-soft" else "adapter"
        asked = {"prompt": PROMPTS[0], "return_token_ids": True, field: name}
        answer = generate(client, **asked, **controls)
        expected = transformers.search(PROMPTS[0], model=model, **controls)
        assert [completion(answer, index) for index in (0, 1)] == [
            (token_ids, text) for token_ids, text, _ in expected
        ], name
        texts |= {text for _, text, _ in expected}
    assert len(texts) == 6


ENDLESS = {"prompt": PROMPTS, "num_beams": 16, "max_new_tokens": 60, "ignore_eos": True}


async def test_who_leaves_a_beam_search_leaves_nothing_behind(client: httpx.Client) -> None:
    def held(*names: str) -> float:
        return sum(metric(client, name) for name in names)

    ours = ("softserve_sequences_in_flight", "softserve_sequences_running")
    engines = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as leaver:
        leaving = asyncio.create_task(leaver.post("/generate", json=ENDLESS))
        await until(lambda: held(*ours) > 0, 20.0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    await until(lambda: held(*ours, *engines) == 0, 20.0)


def test_a_beam_search_that_is_cut_off_has_what_it_found(client: httpx.Client) -> None:
    answer = generate(client, **ENDLESS, n=2, timeout_seconds=0.2, return_token_ids=True)

    assert len(answer["completions"]) == 2 * len(PROMPTS)
    for each in answer["completions"]:
        assert each["finish_reason"] == "timeout"
        assert len(each["token_ids"]) < 60


def test_beams_that_ignore_ends_have_the_length_that_was_asked_for(client: httpx.Client) -> None:
    asked = ENDLESS | {"num_beams": 2, "max_new_tokens": 20}
    answer = generate(client, **asked, return_token_ids=True)

    assert [len(each["token_ids"]) for each in answer["completions"]] == [20] * len(PROMPTS)
    assert {each["finish_reason"] for each in answer["completions"]} == {"length"}


def test_adapters_of_other_models_are_refused(
    client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    decoder_only = tmp_path / "decoder-only"
    save_lora(decoder_only, folder, ["q"])
    config = decoder_only / "adapter_config.json"
    config.write_text(config.read_text().replace("SEQ_2_SEQ_LM", "CAUSAL_LM"))
    refused = put_adapter(client, "decoder-only", decoder_only)
    assert "expected SEQ_2_SEQ_LM, because the base model is an encoder" in message_of(refused)

    nowhere = tmp_path / "nowhere"
    save_lora(nowhere, folder, ["q"])
    weights = nowhere / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"SelfAttention", b"SomeAttention"))
    assert "SomeAttention" in message_of(put_adapter(client, "nowhere", nowhere))


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True")
@pytest.mark.parametrize("module", ["shared", "lm_head"])
def test_neither_embedding_nor_head_takes_a_lora(
    client: httpx.Client, folder: Path, tmp_path: Path, module: str
) -> None:
    save_lora(tmp_path, folder, ["q", module])
    refused = message_of(put_adapter(client, "embedding", tmp_path))
    assert f"'{module}', to which the engine adds no LoRA" in refused


def test_inspect_shows_the_decoders_first_token(
    client: httpx.Client, transformers: Transformers
) -> None:
    answer = client.post("/inspect", json={"prompt": PROMPTS[0], "num_tokens": 3}).json()

    token_ids, _ = transformers.complete(PROMPTS[0])
    assert answer["tokens"][0]["token_id"] == token_ids[0]
    assert answer["prompt_tokens"] == len(transformers.tokenizer.encode(PROMPTS[0]))


def test_labels_are_scored_in_the_decoder(client: httpx.Client, transformers: Transformers) -> None:
    body = {"template": TEMPLATE, "inputs": {"text": "She watches"}, "max_new_tokens": 63}
    response = client.post("/icl/generate", json=body)
    assert response.status_code == 200, response.text

    # The other example does not fit into the encoder's window, and what follows needs no room.
    (used,) = response.json()["prompts"]
    assert (used["shots"], used["num_dropped"]) == (1, 1)
    prompt = "classify: the old dog the dog classify: She watches"
    scored = {each["label"]: each["logprob"] for each in used["classification"]["labels"]}
    expected = {label: transformers.logprob(prompt, label) for label in LABELS}
    assert scored == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate", {"prompt": "Hi", "use_chat_template": True}, "use_chat_template"),
        ("/generate", {"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
    ],
)
def test_there_is_no_chat(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert message_of(response) == (
        "an encoder-decoder model has no chat template: write the whole prompt yourself and leave "
        f"{param} out"
    )


def test_adapter_check_says_what_a_server_says(folder: Path, tmp_path: Path) -> None:
    """And, by PEFT itself, that tokens are equal."""
    save_lora(tmp_path / "lora", folder, ["q", "v", "wo"])
    report = checked_against_peft(tmp_path / "lora", folder, PROMPTS[0])

    assert report.verdict == "taken"
    assert report.against_peft is not None
    assert report.against_peft.equal
    assert report.against_peft.warning is None
