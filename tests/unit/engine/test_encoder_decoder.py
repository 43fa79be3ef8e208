"""Which encoder-decoder models are refused, and what vLLM is told of those that are served."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.engine.vllm.encoder_decoder import (
    MIN_BATCHED_TOKENS,
    check_served,
    encoder_decoder_arguments,
    is_encoder_decoder,
)
from app.errors import ModelNotLoadable

T5 = {"architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0}


def folder_of(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_is_one(tmp_path: Path) -> None:
    assert is_encoder_decoder(folder_of(tmp_path, is_encoder_decoder=True))
    assert not is_encoder_decoder(folder_of(tmp_path))


def test_t5_is_served(tmp_path: Path) -> None:
    check_served(folder_of(tmp_path, **T5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LongT5ForConditionalGeneration"]}, "LongT5ForConditionalGeneration"),
        ({"architectures": ["BartForConditionalGeneration"]}, "served are T5ForConditionalGen"),
        ({"decoder_start_token_id": None}, "has no decoder_start_token_id"),
    ],
)
def test_others_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotLoadable, match=message):
        check_served(folder_of(tmp_path, **T5 | change))


def test_a_step_holds_either_window() -> None:
    """A prompt is encoded in one step, and so is what a preempted decoder had."""
    for windows in ((8192, 64), (64, 8192)):
        assert encoder_decoder_arguments(*windows)["max_num_batched_tokens"] == 8192
    assert encoder_decoder_arguments(512, None)["max_num_batched_tokens"] == MIN_BATCHED_TOKENS
