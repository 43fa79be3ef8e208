"""Runs DoRAs through vLLM's LoRA layers; test_dora.py starts it.

    python tests/unit/engine/dora_in_vllm.py cpu|cuda float32|bfloat16|int8 eager|compiled|graph

One more argument, `torch`, has a CPU not use what is compiled for it.

It writes {batch: {module: error}} to stdout, and what of a batch without DoRA changed.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn
from vllm.config import LoRAConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.interfaces import SupportsLoRA

from app.engine.plugin import cpu_lora, dora, int8
from app.engine.plugin.lora_products import TorchProducts

WIDTH, INNER, HEAD, RANK, NUM_SLOTS, NUM_TOKENS = 64, 96, 16, 8, 2, 6
# By the adapter's own names of the modules: in, out.
PARTS = {
    "q_proj": (WIDTH, 4 * HEAD),
    "k_proj": (WIDTH, 2 * HEAD),
    "v_proj": (WIDTH, 2 * HEAD),
    "o_proj": (WIDTH, WIDTH),
    "gate_proj": (WIDTH, INNER),
    "up_proj": (WIDTH, INNER),
    "down_proj": (INNER, WIDTH),
    "router": (WIDTH, 8),
}
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
# By id: the modules that an adapter changes, and whether it is a DoRA.
ADAPTERS = {1: (tuple(PARTS), True), 2: (("q_proj", "v_proj", "down_proj"), False)}
ADAPTERS |= {3: (("v_proj", "up_proj", "down_proj"), True), 4: (tuple(PARTS), False)}
# One after the other, with two slots: which adapter each token has, 0 for none.
BATCHES = {
    "a DoRA, a LoRA and none": [1, 0, 2, 1, 0, 2],
    "a DoRA in the slot of another": [3, 2, 0, 3, 3, 2],
    "a LoRA in the slot of a DoRA": [4, 4, 3, 0, 3, 4],
    "a DoRA again": [1, 4, 4, 1, 0, 0],
    "no DoRA": [4, 0, 4, 4, 0, 4],
}
Weights = dict[str, torch.Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


class Model(nn.Module, SupportsLoRA):  # type: ignore[misc]
    """Every kind of linear layer, with and without a bias."""

    packed_modules_mapping = PACKED
    embedding_modules: ClassVar[dict[str, str]] = {}
    is_3d_moe_weight = False
    is_non_gated_moe = False

    def __init__(self, quantization: Any) -> None:
        super().__init__()
        options = {"quant_config": quantization}
        self.config = SimpleNamespace()
        self.qkv_proj = QKVParallelLinear(WIDTH, HEAD, 4, 2, bias=True, **options)
        self.o_proj = RowParallelLinear(WIDTH, WIDTH, bias=True, **options)
        self.gate_up_proj = MergedColumnParallelLinear(WIDTH, [INNER, INNER], bias=False, **options)
        self.down_proj = RowParallelLinear(INNER, WIDTH, bias=False, **options)
        self.router = ReplicatedLinear(WIDTH, 8, bias=True, **options)


def main(device: str, precision: str, mode: str, kernel: str | None = None) -> None:
    if kernel == TorchProducts.name:
        cpu_lora.best_products = TorchProducts
    for plugin in (cpu_lora, int8, dora):
        plugin.register()
    torch.set_default_dtype(DTYPES[precision])
    torch.manual_seed(0)
    config = VllmConfig()
    config.model_config = SimpleNamespace(dtype=DTYPES[precision], is_moe=False)
    with set_current_vllm_config(config), TemporaryDirectory() as folder, torch.no_grad():
        store = f"file://{folder}/store"
        init_distributed_environment(1, 0, store, backend="gloo" if device == "cpu" else "nccl")
        initialize_model_parallel(1, 1)
        with torch.device(device):
            model = Model(int8.Int8Config() if precision == "int8" else None)
        weights = fill(model, device, precision)
        adapters = {each: make_adapter(weights, *ADAPTERS[each]) for each in ADAPTERS}
        manager = worker(model, device, is_eager=mode == "eager")
        runners = {name: runner(model.get_submodule(name), mode) for name in manager.modules}
        requests = {each: write(Path(folder), each, adapters[each]) for each in adapters}
        errors: dict[str, Any] = {}
        for batch, ids in BATCHES.items():
            manager.worker.set_active_adapters(
                {requests[each] for each in ids if each}, LoRAMapping(tuple(ids), tuple(ids))
            )
            errors[batch] = {
                name: check(name, run, model, weights, [adapters.get(each, {}) for each in ids])
                for name, run in runners.items()
            }
    sys.stdout.write(json.dumps(errors) + "\n")


def fill(model: Model, device: str, precision: str) -> Weights:
    """Random weights, as the layers multiply with them, by the adapter's names; and the biases."""
    weights: Weights = {}
    for name, layer in model.named_children():
        # Not in its place: until an INT8 layer is loaded, it has none.
        exact = torch.randn(layer.weight.shape, device=device)
        layer.weight = nn.Parameter(exact.clone(), requires_grad=False)
        if precision == "int8":
            integers, scale = int8.quantize_rows(exact)
            exact = integers * scale
        layer.quant_method.process_weights_after_loading(layer)
        if layer.bias is not None:
            layer.bias.data = torch.randn_like(layer.bias.data)
        bias = torch.zeros_like(exact[:, 0]) if layer.bias is None else layer.bias.data
        parts = PACKED.get(name, [name])
        sizes = [PARTS[part][1] for part in parts]
        for part, rows, of_rows in zip(parts, exact.split(sizes), bias.split(sizes), strict=True):
            weights[part], weights[f"{part}.bias"] = rows.double().cpu(), of_rows.double().cpu()
    return weights


def make_adapter(weights: Weights, parts: tuple[str, ...], is_dora: bool) -> Weights:
    tensors: Weights = {}
    for part in parts:
        size_in, size_out = PARTS[part]
        tensors[f"{part}.lora_A.weight"] = torch.randn(RANK, size_in) / RANK
        tensors[f"{part}.lora_B.weight"] = torch.randn(size_out, RANK)
        if is_dora:
            lengths = weights[part].norm(dim=1).to(torch.get_default_dtype())
            tensors[f"{part}{dora.MAGNITUDE}"] = lengths * (0.5 + torch.rand(size_out))
    return tensors


def write(folder: Path, number: int, tensors: Weights) -> LoRARequest:
    path = folder / str(number)
    path.mkdir()
    config = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": list(PARTS)}
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        path / "adapter_model.safetensors",
    )
    return LoRARequest(str(number), number, str(path))


def worker(model: Model, device: str, *, is_eager: bool) -> Any:
    """vLLM's manager of the model's LoRAs; `.worker` is the one of its requests."""
    config = SimpleNamespace(
        lora_config=LoRAConfig(max_lora_rank=RANK, max_loras=NUM_SLOTS, max_cpu_loras=4),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=64),
        parallel_config=SimpleNamespace(enable_expert_parallel=False),
        model_config=SimpleNamespace(
            enforce_eager=is_eager,
            is_encoder_decoder=False,
            get_vocab_size=lambda: 100,
            hf_config=SimpleNamespace(
                get_text_config=lambda: SimpleNamespace(max_position_embeddings=64)
            ),
        ),
    )
    config.lora_config.lora_dtype = torch.get_default_dtype()
    of_requests = LRUCacheWorkerLoRAManager(config, torch.device(device), {})
    of_requests.create_lora_manager(model, config)
    manager = of_requests._adapter_manager
    manager.worker = of_requests
    return manager


def runner(layer: nn.Module, mode: str) -> Any:
    """What runs a layer: it is compiled, or captured as a graph, before any adapter is there."""
    x = torch.zeros(NUM_TOKENS, layer.input_size, device=layer.device)
    run = torch.compile(layer) if mode == "compiled" else layer
    if mode != "graph":
        run(x)
        return run
    run(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(x)

    def replay(given: torch.Tensor) -> Any:
        x.copy_(given)
        graph.replay()
        return tuple(each if each is None else each.clone() for each in y)

    return replay


def check(name: str, run: Any, model: Model, weights: Weights, adapters: list[Weights]) -> float:
    """The largest difference from what DoRA says, as a share of the largest value."""
    layer = model.get_submodule(name)
    x = torch.randn(NUM_TOKENS, layer.input_size)
    got, _ = run(x.to(layer.device))
    wanted = torch.stack(
        [
            torch.cat([expected(row, part, weights, adapter) for part in PACKED.get(name, [name])])
            for row, adapter in zip(x.double(), adapters, strict=True)
        ]
    )
    return float((got.double().cpu() - wanted).abs().max() / wanted.abs().max())


def expected(x: torch.Tensor, part: str, weights: Weights, adapter: Weights) -> torch.Tensor:
    weight = weights[part]
    if f"{part}.lora_A.weight" in adapter:
        a, b = (adapter[f"{part}.lora_{half}.weight"].double() for half in "AB")
        weight = weight + 2 * b @ a
    if f"{part}{dora.MAGNITUDE}" in adapter:
        magnitude = adapter[f"{part}{dora.MAGNITUDE}"].double()
        weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    return weight @ x + weights[f"{part}.bias"]


if __name__ == "__main__":
    main(*sys.argv[1:])
