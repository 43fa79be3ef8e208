"""What softserve asks of vLLM's workers."""

from app.engine.plugin.adapted import AdaptedModules
from app.engine.plugin.cpu_lora import LoRAKernel
from app.engine.plugin.memory import MemoryReport


class Worker(MemoryReport, AdaptedModules, LoRAKernel):
    """A base class of vLLM's worker, by the engine argument `worker_extension_cls`."""
