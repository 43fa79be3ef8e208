"""The rows of a LoRA's B, in the order of the engine's layer."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
QKV = "transformer.h.0.self_attention.query_key_value"
# Two key-value heads with two queries each, every head two rows: as PEFT has them, by heads.
BY_HEADS = ["q0", "q0", "q1", "q1", "k0", "k0", "v0", "v0", "q2", "q2", "q3", "q3"]
BY_HEADS += ["k1", "k1", "v1", "v1"]


def _in_engine_order(rows: torch.Tensor, class_name: str, module: str) -> torch.Tensor:
    from app.engine.plugin.row_order import in_engine_order

    shape = SimpleNamespace(total_num_kv_heads=2, head_size=2)
    manager = SimpleNamespace(
        model=type(class_name, (), {})(), modules={QKV: SimpleNamespace(base_layer=shape)}
    )
    return in_engine_order(manager, module, rows)


def test_all_queries_then_all_keys_then_all_values() -> None:
    rows = torch.arange(len(BY_HEADS))

    order = _in_engine_order(rows, "FalconForCausalLM", QKV).tolist()

    # What `sorted` keeps in order is the order of the heads.
    assert [BY_HEADS[row] for row in order] == sorted(BY_HEADS, key=lambda row: "qkv".index(row[0]))
    assert order[0::2] == [row - 1 for row in order[1::2]]


def test_the_columns_stay_with_their_rows() -> None:
    rows = torch.arange(len(BY_HEADS))

    order = _in_engine_order(rows, "FalconForCausalLM", QKV)

    b = torch.randn(len(BY_HEADS), 3)
    assert torch.equal(_in_engine_order(b, "FalconForCausalLM", QKV), b[order])


@pytest.mark.parametrize(
    ("class_name", "module"),
    [
        ("LlamaForCausalLM", QKV),
        ("FalconForCausalLM", QKV.replace("query_key_value", "dense")),
        # On another rank of a pipeline.
        ("FalconForCausalLM", QKV.replace("0", "1")),
    ],
)
def test_other_modules_are_left_alone(class_name: str, module: str) -> None:
    rows = torch.arange(len(BY_HEADS))
    assert torch.equal(_in_engine_order(rows, class_name, module), rows)
