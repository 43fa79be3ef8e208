"""What an adapter has to fit, of a model that is not loaded: its classes without its weights.

vLLM's configuration is made as for a server with the same settings, and then the model and the
layers that LoRAs are added to, with PyTorch's tensors without memory in place of weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from app.engine.model.find import base_names, check_model_folder, find_model
from app.engine.protocol import Architecture
from app.engine.vllm.architecture import describe_architecture
from app.engine.vllm.engine import engine_config
from app.engine.vllm.environment import prepare_environment
from app.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = structlog.get_logger(__name__)

# The parts of a model in several processes are adapted as the whole is.
ONE_PROCESS = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
}


@dataclass(frozen=True, slots=True)
class UnloadedModel:
    """A model that a server with the same settings would load, and the folder of its weights.

    `context_window` is in tokens. `unknown` is what cannot be told of it without loading it, None
    where there is nothing.
    """

    name: str
    folder: Path
    architecture: Architecture
    context_window: int
    unknown: str | None = None


def describe_unloaded(settings: Settings) -> UnloadedModel:
    """Describe the model without loading it. It blocks.

    Raises:
        StartError: a server with these settings would not start.
    """
    prepare_environment(settings)
    name, folder = find_model(settings)
    check_model_folder(folder)
    config = engine_config(folder, settings, **ONE_PROCESS)
    architecture = describe_architecture(base_names(settings, folder), config, settings)
    context_window = config.model_config.max_model_len
    if architecture.no_loras is not None:
        return UnloadedModel(name, folder, architecture, context_window)
    modules = list(architecture.modules)
    try:
        adapted = _adapted_modules(config, modules)
    # Some class may read a weight while it is made, and each fails in a way of its own.
    except Exception as error:
        log.warning("the model cannot be made without its weights", exc_info=error)
        unknown = (
            f"which modules of {config.model_config.architecture} vLLM adds LoRAs to, because it "
            "cannot be made without its weights"
        )
        return UnloadedModel(name, folder, architecture, context_window, unknown)
    unadapted = frozenset(modules).difference(adapted)
    return UnloadedModel(name, folder, replace(architecture, unadapted=unadapted), context_window)


def _adapted_modules(config: "VllmConfig", names: list[str]) -> list[str]:
    """What a worker answers, which has the model itself."""
    import torch
    from torch.overrides import TorchFunctionMode
    from vllm.lora.model_manager import create_lora_manager
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from app.engine.plugin.adapted import adapted_modules

    device = torch.device("meta")

    class WithoutMemory(TorchFunctionMode):  # type: ignore[misc]
        """What a checkpoint fills, a model leaves empty; with the rest, it computes."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            changes = {"device": device} if function is torch.empty else {}
            return function(*args, **(kwargs or {}) | changes)

    with alone(config), set_default_torch_dtype(config.model_config.dtype), WithoutMemory():
        manager = create_lora_manager(
            initialize_model(config),
            config.scheduler_config.max_num_seqs,
            config.scheduler_config.max_num_batched_tokens,
            config.model_config.get_vocab_size(),
            config.lora_config,
            config,
            device,
        )
        return adapted_modules(manager, names)


@contextmanager
def alone(config: "VllmConfig") -> Iterator[None]:
    """The groups of processes that vLLM's layers ask for: this process alone, without a network."""
    from torch import distributed
    from vllm.config import set_current_vllm_config
    from vllm.distributed.parallel_state import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with set_current_vllm_config(config):
            init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
            initialize_model_parallel()
            yield
    finally:
        destroy_model_parallel()
        destroy_distributed_environment()
