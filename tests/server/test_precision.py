"""Each precision by its one flag: base, LoRA and soft prompt answer; INT8 as PEFT does."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import pytest
from rich.progress import Progress

from app.engine.model.default import default_model
from app.quantization.checkpoint import quantize_checkpoint
from app.settings import Settings
from tests.instructions import IS_PACKED, needs_int8
from tests.server.architectures import round_to_int8
from tests.server.peft_reference import PeftReference
from tests.server.process import ServerProcess, running
from tests.server.requests import add_adapter, generate, metric, share_before_divergence
from tests.server.test_start import fail_to_start
from tests.server.tiny_models import HIDDEN_SIZE, LLAMA, SHAPE, SMALL, make_model

# PyTorch's own, when transformers imports a part of it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

LORA, SOFT_PROMPT = "rank16", "virtual20"
NAMED: list[dict[str, Any]] = [{}, {"adapter": LORA}, {"soft_prompt": SOFT_PROMPT}]
NUM_WEIGHTS_IN_LINEARS = 30 * 3_538_944
EXPANDED = "4-bit GGUF (Q4_1) expanded to BF16"
PROMPTS = [
    "The capital of France is",
    "Q: What is 2 + 2?\nA:",
    "Once upon a time there was a heron who",
    "def moving_average(values, width):",
    "Dear Ms Okafor, thank you for",
    "The three primary colours are",
    "Water boils at",
    "My favourite season is autumn, because",
    "To change a tyre, first",
    "In 1969 the first people",
    "Message: I was charged twice.\nIntent:",
    "The opposite of cold is",
    "She opened the letter and",
    "Ingredients for four: 400 g of lentils,",
    "The train to Lyon leaves from",
    "A prime number is",
    "Yesterday the council voted to",
    "The heart has four chambers:",
    "If it rains tomorrow, we",
    "The best way to learn a language is",
]
START = ("--context-window", "512", "--kv-cache-gib", "0.25", "--max-loras", "1")


@pytest.fixture(scope="module")
def default_folder() -> Path:
    return default_model(Settings().cache_dir, Progress(disable=True))


@contextmanager
def with_adapters(server: ServerProcess, reference: PeftReference) -> Iterator[httpx.Client]:
    with server.client() as client:
        for name in (LORA, SOFT_PROMPT):
            add_adapter(client, name, reference.path(name))
        yield client


def answers(client: httpx.Client, prompts: list[str], **named: str) -> list[list[int]]:
    body = {"prompt": prompts, "max_new_tokens": 16, "return_token_ids": True} | named
    return [each["token_ids"] for each in generate(client, **body)["completions"]]


@pytest.fixture(scope="module")
def int8_reference(tmp_path_factory: pytest.TempPathFactory) -> PeftReference:
    """PEFT on the weights that the integers stand for."""
    return PeftReference(tmp_path_factory.mktemp("int8"), round_to_int8)


@pytest.fixture(scope="module")
def int8_client(int8_reference: PeftReference) -> Iterator[httpx.Client]:
    with running(*START, "--precision", "int8") as server:
        server.wait_until_ready()
        with with_adapters(server, int8_reference) as client:
            yield client


@needs_int8
def test_int8_weights_are_bytes(int8_client: httpx.Client) -> None:
    info = int8_client.get("/info").json()

    weights = info["weights"]
    assert weights["precision"] == "int8"
    made = "int8 weight-only (per channel), quantized at load"
    assert weights["made"] == f"{EXPANDED}, then {made}"
    assert info["dtype"] == "float32"
    # A scale of 4 bytes for each output channel is all that is added.
    assert weights["linear_bytes"] >= NUM_WEIGHTS_IN_LINEARS
    assert weights["linear_bytes"] < 0.55 * 2 * NUM_WEIGHTS_IN_LINEARS
    assert metric(int8_client, "softserve_weight_bytes") == (
        weights["linear_bytes"] + weights["other_bytes"]
    )
    assert metric(int8_client, "softserve_kv_cache_bytes") == info["kv_cache_bytes"]


@needs_int8
def test_greedy_text_in_int8_is_that_of_the_dequantized_weights(
    int8_client: httpx.Client, int8_reference: PeftReference
) -> None:
    shares = []
    for named in NAMED:
        expected = [int8_reference.generate(prompt, **named) for prompt in PROMPTS]
        shares.append(share_before_divergence(answers(int8_client, PROMPTS, **named), expected))
    # Shown by `pytest -rP`.
    sys.stdout.write(f"tokens before the first divergence, of {NAMED}: {shares}\n")

    # The soft prompt's rows are random: after them, the best two tokens are often close.
    assert min(shares) >= 0.9
    assert mean(shares) >= 0.95


@needs_int8
def test_each_request_in_int8_has_its_own_adapters(int8_client: httpx.Client) -> None:
    def ask(named: dict[str, str]) -> list[list[int]]:
        return answers(int8_client, PROMPTS[:4], **named)

    alone = [ask(named) for named in NAMED]
    with ThreadPoolExecutor() as executor:
        together = list(executor.map(ask, NAMED))

    assert together == alone
    assert len({str(tokens) for tokens in alone}) == len(NAMED)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_of_two_bytes(precision: str, peft_reference: PeftReference) -> None:
    with running(*START, "--precision", precision) as server:
        server.wait_until_ready()
        with with_adapters(server, peft_reference) as client:
            weights = client.get("/info").json()["weights"]
            got = [answers(client, PROMPTS[:2], **named) for named in NAMED]

    assert weights["precision"] == precision
    assert weights["made"] == f"{EXPANDED}, then cast at load"
    assert weights["linear_bytes"] == 2 * NUM_WEIGHTS_IN_LINEARS
    # Rounded to two bytes, a close second may come first: not every token has to be FP32's.
    for tokens, named in zip(got, NAMED, strict=True):
        expected = [peft_reference.generate(prompt, **named) for prompt in PROMPTS[:2]]
        assert share_before_divergence(tokens, expected) >= 0.5


def test_an_embedding_is_packed_where_it_is_the_head(tmp_path: Path) -> None:
    """And `GET /info` knows it."""
    model = make_model(tmp_path / "model", "cohere", **LLAMA)
    arguments = ("--model", str(model), "--precision", "bf16", "--max-loras", "0")
    with running(*SMALL, *arguments) as server:
        server.wait_until_ready()
        with server.client() as client:
            weights = client.get("/info").json()["weights"]

    plain = 2 * SHAPE["vocab_size"] * HIDDEN_SIZE
    num_copies = 2 if IS_PACKED["bf16"] else 1
    assert num_copies * plain <= weights["other_bytes"] < (num_copies + 0.5) * plain


@pytest.fixture(scope="module")
def quantized_folder(tmp_path_factory: pytest.TempPathFactory, default_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "smollm2-w8a8"
    quantize_checkpoint(str(default_folder), out, Progress(disable=True))
    return out


@needs_int8
def test_a_quantized_checkpoint_is_served_with_adapters(
    quantized_folder: Path, peft_reference: PeftReference
) -> None:
    arguments = ("--precision", "auto", "--model", str(quantized_folder))
    with running(*START, *arguments) as server:
        server.wait_until_ready()
        with with_adapters(server, peft_reference) as client:
            info = client.get("/info").json()
            chat = generate(client, prompt="Tell me the capital of France.", use_chat_template=True)
            got = [answers(client, PROMPTS[:4], **named) for named in NAMED]

    assert info["weights"]["precision"] == "int8"
    made = f"{EXPANDED}, then compressed-tensors W8A8 checkpoint"
    assert info["weights"]["made"] == made
    assert info["weights"]["linear_bytes"] < 0.55 * 2 * NUM_WEIGHTS_IN_LINEARS
    assert "Paris" in chat["completions"][0]["text"]
    assert len({str(tokens) for tokens in got}) == len(NAMED)


@needs_int8
def test_another_precision_than_the_checkpoints_is_refused(quantized_folder: Path) -> None:
    said = fail_to_start("--model", str(quantized_folder), "--precision", "bf16")

    assert "is quantized already (compressed-tensors W8A8)" in said
    assert "leave --precision out" in said
