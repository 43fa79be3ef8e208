"""Encoder-decoder models by vLLM and by transformers and PEFT, on small random and taught ones."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.encoder_decoder import RUNS, cases
from tests.server.encoder_decoder_logprobs import LENGTHS
from tests.server.programs import lines_of
from tests.server.requests import share_before_divergence


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By run: the token ids by vLLM and those by transformers of each case, and the preemptions."""
    folder = tmp_path_factory.mktemp("encoder-decoder")
    return {name: rest for name, *rest in lines_of("tests.server.encoder_decoder", folder)}


@pytest.mark.parametrize("run", [run for run, how in RUNS.items() if "precision" not in how])
def test_tokens_are_those_of_transformers_and_peft(compared: dict[str, Any], run: str) -> None:
    """Prompts of many lengths with LoRAs, soft prompts, both and neither, in one batch."""
    by_case, *_ = compared[run]
    got = {case: by_vllm for case, (by_vllm, _) in by_case.items()}
    expected = {case: by_transformers for case, (_, by_transformers) in by_case.items()}

    assert got == expected
    assert len(got) == len(cases())
    # Two prompts that end alike could have been taken for each other; who counts often ends alike.
    fewest = len(cases()) // 3 if run == "taught" else len(cases()) - 1
    assert len({tuple(token_ids) for token_ids in expected.values()}) >= fewest


def test_requests_were_preempted(compared: dict[str, Any]) -> None:
    """Without app/engine/plugin/seq2seq/encoder_order.py they get each other's inputs then."""
    for model in ("flan-t5", "bart"):
        _, num_preemptions = compared[f"{model}, preempted"]

        assert num_preemptions > 5


@pytest.mark.parametrize("run", ["flan-t5, in bf16", "large t5, in fp16", "bart, in bf16"])
def test_a_precision_costs_what_it_costs_transformers(compared: dict[str, Any], run: str) -> None:
    """Random models have close seconds: both leave what FP32 says, about equally early."""
    ours, theirs = shares(compared, run)

    assert theirs > 0.3
    assert ours > 0.7 * theirs


def test_feed_forward_layers_overflow_in_fp16_alone(compared: dict[str, Any]) -> None:
    ours, theirs = shares(compared, "large t5, in fp16 alone")

    assert theirs > 0.3
    assert ours < 0.1


def test_log_probabilities_are_those_of_fp64(tmp_path: Path) -> None:
    """Of the shape of FLAN-T5-small, of all tokens, at each position of prompts in one batch."""
    lines = lines_of("tests.server.encoder_decoder_logprobs", tmp_path)

    assert [length for length, *_ in lines] == [length + 1 for length in LENGTHS]
    assert max(ours for _, ours, _ in lines) < 1e-4


def shares(compared: dict[str, Any], run: str) -> tuple[float, float]:
    """Of the tokens in FP32, those before the first that differs: of vLLM and of transformers."""
    by_case, _, rounded = compared[run]
    ours = [by_case[case][0] for case in rounded]
    expected = [by_case[case][1] for case in rounded]
    return (
        share_before_divergence(ours, expected),
        share_before_divergence(rounded.values(), expected),
    )
