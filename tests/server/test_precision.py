"""Each precision by its one flag: base, LoRA and soft prompt answer; INT8 as PEFT does."""

from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.progress import Progress

from app.engine.default_model import default_model
from app.quantization.checkpoint import quantize_checkpoint
from app.settings import Settings
from tests.server.architectures import round_to_int8
from tests.server.peft_reference import PeftReference
from tests.server.process import ServerProcess, running
from tests.server.requests import add_adapter, generate, metric
from tests.server.test_start import fail_to_start

LORA, SOFT_PROMPT = "rank16", "virtual20"
NUM_WEIGHTS_IN_LINEARS = 30 * 3_538_944
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


def with_adapters(server: ServerProcess, reference: PeftReference) -> httpx.Client:
    client = server.client()
    for name in (LORA, SOFT_PROMPT):
        add_adapter(client, name, reference.path(name))
    return client


def answers(client: httpx.Client, prompts: list[str], **named: str) -> list[list[int]]:
    body = {"prompt": prompts, "max_new_tokens": 16, "return_token_ids": True} | named
    return [each["token_ids"] for each in generate(client, **body)["completions"]]


def share_before_divergence(got: list[list[int]], expected: list[list[int]]) -> float:
    """Of all expected tokens: those before the first that differs."""
    equal = sum(
        len(list(takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False))))
        for mine, theirs in zip(got, expected, strict=True)
    )
    return equal / sum(map(len, expected))


class TestInt8AtLoad:
    """INT8 from the ordinary checkpoint of the default model."""

    @pytest.fixture(scope="class")
    def reference(self, tmp_path_factory: pytest.TempPathFactory) -> PeftReference:
        """PEFT on the weights that the integers stand for."""
        return PeftReference(tmp_path_factory.mktemp("int8"), round_to_int8)

    @pytest.fixture(scope="class")
    def client(self, reference: PeftReference) -> Iterator[httpx.Client]:
        with running(*START, "--precision", "int8") as server:
            server.wait_until_ready()
            with with_adapters(server, reference) as client:
                yield client

    def test_the_weights_are_bytes(self, client: httpx.Client) -> None:
        info = client.get("/info").json()

        weights = info["weights"]
        assert weights["precision"] == "int8"
        assert weights["made"] == "int8 weight-only (per channel), quantized at load"
        assert info["dtype"] == "float32"
        # A scale of 4 bytes for each output channel is all that is added.
        assert weights["linear_bytes"] >= NUM_WEIGHTS_IN_LINEARS
        assert weights["linear_bytes"] < 0.55 * 2 * NUM_WEIGHTS_IN_LINEARS
        assert metric(client, "softserve_weight_bytes") == (
            weights["linear_bytes"] + weights["other_bytes"]
        )
        assert metric(client, "softserve_kv_cache_bytes") == info["kv_cache_bytes"]

    @pytest.mark.parametrize(
        "named",
        [{}, {"adapter": LORA}, {"soft_prompt": SOFT_PROMPT}],
        ids=["base", "LoRA", "soft prompt"],
    )
    def test_greedy_text_is_that_of_the_dequantized_weights(
        self,
        client: httpx.Client,
        reference: PeftReference,
        named: dict[str, Any],
        record_property: Callable[[str, object], None],
    ) -> None:
        expected = [reference.generate(prompt, **named) for prompt in PROMPTS]

        share = share_before_divergence(answers(client, PROMPTS, **named), expected)

        record_property("share of tokens before the first divergence", share)
        assert share >= 0.95

    def test_each_request_has_its_own_adapters(self, client: httpx.Client) -> None:
        prompts = PROMPTS[:4]
        alone = [
            answers(client, prompts, **named)
            for named in ({}, {"adapter": LORA}, {"soft_prompt": SOFT_PROMPT})
        ]

        assert len({str(tokens) for tokens in alone}) == 3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types_of_two_bytes(precision: str, peft_reference: PeftReference) -> None:
    with running(*START, "--precision", precision) as server:
        server.wait_until_ready()
        with with_adapters(server, peft_reference) as client:
            weights = client.get("/info").json()["weights"]
            base = answers(client, PROMPTS[:2])
            with_lora = answers(client, PROMPTS[:2], adapter=LORA)
            with_soft_prompt = answers(client, PROMPTS[:2], soft_prompt=SOFT_PROMPT)

    assert (weights["precision"], weights["made"]) == (precision, "cast at load")
    assert weights["linear_bytes"] == 2 * NUM_WEIGHTS_IN_LINEARS
    # Rounded to two bytes, a close second may come first: not every token has to be FP32's.
    compared: list[tuple[list[list[int]], dict[str, Any]]] = [
        (base, {}),
        (with_lora, {"adapter": LORA}),
        (with_soft_prompt, {"soft_prompt": SOFT_PROMPT}),
    ]
    for got, named in compared:
        expected = [peft_reference.generate(prompt, **named) for prompt in PROMPTS[:2]]
        assert share_before_divergence(got, expected) >= 0.5


class TestQuantizedCheckpoint:
    """What `softserve quantize` makes of the default model."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory, default_folder: Path) -> Path:
        out = tmp_path_factory.mktemp("quantized") / "smollm2-w8a8"
        quantize_checkpoint(str(default_folder), out, Progress(disable=True))
        return out

    def test_it_is_served_with_adapters(self, folder: Path, peft_reference: PeftReference) -> None:
        arguments = ("--precision", "auto", "--model", str(folder))
        with running(*START, *arguments) as server:
            server.wait_until_ready()
            with with_adapters(server, peft_reference) as client:
                info = client.get("/info").json()
                chat = generate(
                    client, prompt="What is the capital of France?", use_chat_template=True
                )
                all_answers = [
                    answers(client, PROMPTS[:4], **named)
                    for named in ({}, {"adapter": LORA}, {"soft_prompt": SOFT_PROMPT})
                ]

        assert info["weights"]["precision"] == "int8"
        assert info["weights"]["made"] == "compressed-tensors W8A8 checkpoint"
        assert info["weights"]["linear_bytes"] < 0.55 * 2 * NUM_WEIGHTS_IN_LINEARS
        assert "Paris" in chat["completions"][0]["text"]
        assert len({str(tokens) for tokens in all_answers}) == 3

    def test_another_precision_is_refused(self, folder: Path) -> None:
        said = fail_to_start("--model", str(folder), "--precision", "bf16")

        assert "is quantized already (compressed-tensors W8A8)" in said
        assert "leave --precision out" in said
