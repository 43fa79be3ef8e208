"""A server of an encoder-decoder model, as FLAN-T5: beside transformers and PEFT, and refusals."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from softserve.schema.checks import CheckReport
from tests.server.process import running
from tests.server.requests import add_adapter, generate, put_adapter, stream, text_of
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
def transformers(folder: Path) -> "Transformers":
    return Transformers(folder)


class Transformers:
    """The same model there."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder)

    def complete(
        self, prompt: str, *, model: Any = None, decoder_prompt: str = "", num_tokens: int = 20
    ) -> tuple[list[int], str]:
        """The tokens that are generated, and their text."""
        start = [0, *self.tokenizer.encode(decoder_prompt, add_special_tokens=False)]
        token_ids = (model or self.model).generate(
            input_ids=torch.tensor([self.tokenizer.encode(prompt)]),
            decoder_input_ids=torch.tensor([start]),
            max_new_tokens=num_tokens,
            do_sample=False,
        )[0, len(start) :]
        whole = self.tokenizer.decode([*start, *token_ids], skip_special_tokens=True)
        return token_ids.tolist(), whole.removeprefix(decoder_prompt)

    def logprob(self, prompt: str, label: str) -> float:
        """Of a label and the end behind it."""
        labels = torch.tensor([self.tokenizer.encode(label)])
        token_ids = torch.tensor([self.tokenizer.encode(prompt)])
        with torch.inference_mode():
            logits = self.model(input_ids=token_ids, labels=labels).logits
        logprobs = logits.log_softmax(dim=-1).gather(2, labels[..., None])
        return float(logprobs.sum())


def save_lora(folder: Path, base: Path, targets: str | list[str]) -> PeftModel:
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=targets)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def save_soft_prompt(folder: Path, base: Path) -> PeftModel:
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    return model.eval()


def message_of(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def completion(answer: dict[str, Any], index: int = 0) -> tuple[list[int], str]:
    return answer["completions"][index]["token_ids"], answer["completions"][index]["text"]


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


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/tokenize", {"prompt": "Hi"}),
    ],
)
def test_openais_protocol_is_refused(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    model = client.get("/info").json()["model"]
    response = client.post(path, json=body | {"model": model})
    assert response.is_client_error
    assert "OpenAI's protocol is not spoken with encoder-decoder models" in response.text


def test_adapter_check_says_what_a_server_says(folder: Path, tmp_path: Path) -> None:
    """And, by PEFT itself, that tokens are equal."""
    save_lora(tmp_path / "lora", folder, ["q", "v", "wo"])
    command = Path(sys.executable).with_name("softserve")
    options: list[str | Path] = ["--prompt", PROMPTS[0], "--json"]
    options += ["--model", folder, "--against-peft"]
    checked = subprocess.run(
        [command, "adapter", "check", tmp_path / "lora", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    report = CheckReport.model_validate_json(checked.stdout)

    assert report.verdict == "taken"
    assert report.against_peft is not None
    assert report.against_peft.equal
    assert report.against_peft.warning is None
