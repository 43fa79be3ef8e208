"""Which encoder-decoder models are refused, and what vLLM is told of those that are served."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from app.engine.model.decoder_tokens import DecoderTokens, decoder_tokens
from app.engine.model.precision import INT8_METHOD
from app.engine.protocol import Prompt
from app.engine.vllm.encoder_decoder import (
    MIN_BATCHED_TOKENS,
    architecture_of,
    check_precision,
    check_served,
    encoder_decoder_arguments,
    is_encoder_decoder,
)
from app.engine.vllm.engine import VLLMEngine
from app.errors import InvalidRequest, ModelNotLoadable
from app.settings import Settings
from tests.fake_engine import FakeEngine

T5 = {"architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0}
BART = {
    "architectures": ["BartForConditionalGeneration"],
    "decoder_start_token_id": 2,
    "max_position_embeddings": 64,
}


def folder_of(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_is_one(tmp_path: Path) -> None:
    assert is_encoder_decoder(folder_of(tmp_path, is_encoder_decoder=True))
    assert not is_encoder_decoder(folder_of(tmp_path))


@pytest.mark.parametrize("config", [T5, BART])
def test_what_is_served(tmp_path: Path, config: dict[str, Any]) -> None:
    check_served(folder_of(tmp_path, **config), None, 64)


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_what_was_saved_without_its_head_is_served_with_it(tmp_path: Path, kind: str) -> None:
    """As the first BARTs are on the hub. Others come before it in the lists of some."""
    folder = folder_of(tmp_path, **BART | {"architectures": ["SomeModel", f"{kind}Model"]})

    assert architecture_of(folder) == f"{kind}ForConditionalGeneration"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["LongT5ForConditionalGeneration"]},
            r"LongT5ForConditionalGeneration \(its encoder's tokens look at those near to them",
        ),
        (
            {"architectures": ["UMT5ForConditionalGeneration"]},
            r"UMT5ForConditionalGeneration \(each of its layers has a bias of its own",
        ),
        (
            {"architectures": ["BartForSequenceClassification"]},
            "BartForSequenceClassification; those that can be served are T5ForCond.* and MBartFor",
        ),
        ({"architectures": None}, "architecture None; those"),
        ({"decoder_start_token_id": None}, "has no decoder_start_token_id"),
    ],
)
def test_others_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotLoadable, match=message):
        check_served(folder_of(tmp_path, **T5 | change), None, None)


def test_int8_is_refused(tmp_path: Path) -> None:
    check_precision(tmp_path, None)
    with pytest.raises(ModelNotLoadable, match="precision int8 does not take: use fp32 or bf16"):
        check_precision(tmp_path, INT8_METHOD)


@pytest.mark.parametrize(
    ("windows", "option"), [((65, None), "--encoder-window"), ((None, 65), "--context-window")]
)
def test_no_window_has_more_than_the_positions(
    tmp_path: Path, windows: tuple[int | None, int | None], option: str
) -> None:
    message = f"{option} is 65, and .* has learned 64 positions .*: lower it to 64, or leave it out"
    with pytest.raises(ModelNotLoadable, match=message):
        check_served(folder_of(tmp_path, **BART), *windows)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [(T5, None, 512), (T5, 2000, 2000), (BART, None, 64), (BART, 48, 48)],
)
def test_the_encoders_window(
    tmp_path: Path, config: dict[str, Any], asked: int | None, expected: int
) -> None:
    arguments = encoder_decoder_arguments(folder_of(tmp_path, **config), asked, None)

    assert arguments["hf_overrides"]["encoder_window"] == expected


def test_a_step_holds_either_window(tmp_path: Path) -> None:
    """A prompt is encoded in one step, and so is what a preempted decoder had."""
    folder = folder_of(tmp_path, **T5)
    for windows in ((8192, 64), (64, 8192)):
        assert encoder_decoder_arguments(folder, *windows)["max_num_batched_tokens"] == 8192
    arguments = encoder_decoder_arguments(folder, 512, None)
    assert arguments["max_num_batched_tokens"] == MIN_BATCHED_TOKENS


FORCING = {"decoder_start_token_id": 7, "forced_bos_token_id": 0, "forced_eos_token_id": [2, 3]}


def test_generation_config_says_what_is_forced(tmp_path: Path) -> None:
    """All of it: what config.json has is then for nobody, but for a start."""
    folder = folder_of(tmp_path, **BART | {"forced_eos_token_id": 2})
    assert decoder_tokens(folder) == DecoderTokens(2, None, (2,))

    (tmp_path / "generation_config.json").write_text(json.dumps(FORCING))
    assert decoder_tokens(folder) == DecoderTokens(7, 0, (2, 3))

    (tmp_path / "generation_config.json").write_text("{}")
    assert decoder_tokens(folder) == DecoderTokens(2)


@pytest.mark.parametrize(("forcing", "forces"), [({}, False), (FORCING, True)])
def test_models_that_force_nothing_have_no_processor(
    tmp_path: Path, forcing: dict[str, Any], forces: bool
) -> None:
    arguments = encoder_decoder_arguments(folder_of(tmp_path, **BART | forcing), None, None)

    assert ("logits_processors" in arguments) is forces


async def test_the_engine_refuses_what_would_kill_it() -> None:
    """Whoever asks it: a server has refused the request before, `softserve adapter check` not."""
    engine = VLLMEngine(Settings())
    engine._info = FakeEngine(encoder_window=4)._info
    with pytest.raises(InvalidRequest, match="its encoder takes 4 tokens"):
        engine._engine_input(Prompt(0, [5, 6, 7], num_virtual_tokens=2), Mock())
