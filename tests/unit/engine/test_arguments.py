"""--engine-arg NAME=VALUE."""

from dataclasses import dataclass

import pytest

from app.engine.vllm.arguments import OWNED, joined_arguments, parse_engine_arguments
from app.errors import InvalidEngineArgument


@dataclass
class Arguments:
    """Stands for vLLM's class of engine arguments."""

    model: str = ""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enforce_eager: bool = False
    speculative_config: dict[str, object] | None = None
    seed: int | None = None


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("tensor_parallel_size=2", "tensor_parallel_size", 2),
        ("tensor-parallel-size=2", "tensor_parallel_size", 2),
        ("--tensor-parallel-size=2", "tensor_parallel_size", 2),
        ("enforce_eager=true", "enforce_eager", True),
        ("enforce_eager=False", "enforce_eager", False),
        ("seed=None", "seed", None),
        ("seed=null", "seed", None),
        ("seed=ray", "seed", "ray"),
        ("seed=", "seed", ""),
        ("seed=a=b", "seed", "a=b"),
        ('seed="7"', "seed", "7"),
        ('speculative_config={"method": "ngram", "n": 3}', "speculative_config",
         {"method": "ngram", "n": 3}),
    ],
)  # fmt: skip
def test_parsed(text: str, name: str, value: object) -> None:
    assert parse_engine_arguments([text], Arguments) == {name: value}


def test_several() -> None:
    parsed = parse_engine_arguments(["seed=1", "enforce-eager=true", "seed=2"], Arguments)
    assert parsed == {"seed": 2, "enforce_eager": True}
    assert parse_engine_arguments([], Arguments) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "--engine-arg 'seed' has no value: write NAME=VALUE"),
        ("tensor_paralel_size=2",
         "vLLM has no engine argument 'tensor_paralel_size'; did you mean tensor_parallel_size?"),
        ("zzz=2", "vLLM has no engine argument 'zzz'"),
        ("=2", "vLLM has no engine argument ''"),
        ("model=x", "--engine-arg model is softserve's own: use --model"),
        ("--max-model-len=5",
         "--engine-arg max_model_len is softserve's own: use --context-window"),
    ],
)  # fmt: skip
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidEngineArgument) as raised:
        parse_engine_arguments([text], Arguments)
    assert raised.value.message == message


@pytest.mark.parametrize("name", OWNED)
def test_every_owned_argument_is_refused(name: str) -> None:
    with pytest.raises(InvalidEngineArgument, match=f"{name} is softserve's own: "):
        parse_engine_arguments([f"{name}=1"], Arguments)


def test_what_is_several_is_joined() -> None:
    """An encoder-decoder model needs what softserve says in these, whatever an operator adds."""
    ours = {"hf_overrides": {"a": 1, "b": 1}, "logits_processors": ["ours"], "seed": 1}
    given = {"hf_overrides": {"b": 2}, "logits_processors": ["theirs"], "seed": 2, "more": 3}

    assert joined_arguments(ours, given) == {
        "hf_overrides": {"a": 1, "b": 2},
        "logits_processors": ["ours", "theirs"],
        "seed": 2,
        "more": 3,
    }
