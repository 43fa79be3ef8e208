"""LoRA adapters in vLLM: what it calls them, and loading ahead of the first request."""

from itertools import count
from typing import TYPE_CHECKING

import structlog

from app.engine.protocol import AdapterFiles
from app.engine.vllm.calls import answer_of
from app.errors import AdapterRejected, EngineDied
from app.telemetry.metrics import withdraw

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

# The ranks that vLLM makes room for (its config/lora.py).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Above the ids of the adapters that vLLM warms up with.
FIRST_ID = 1 << 20


def engine_rank(max_rank: int) -> int:
    """The smallest rank that vLLM makes room for and that `max_rank` fits in."""
    return next((rank for rank in RANKS if rank >= max_rank), RANKS[-1])


def withdraw_metric(llm: "AsyncLLM") -> None:
    """Do not serve vLLM's own `vllm:lora_requests_info`.

    It has a series for every combination of adapters that ever ran together, by digest, for ever.
    The server has one of its own with the adapters' names.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    for stat_logger in llm.logger_manager.stat_loggers:
        if isinstance(stat_logger, PrometheusStatLogger) and stat_logger.gauge_lora_info:
            withdraw(stat_logger.gauge_lora_info)
            stat_logger.gauge_lora_info = None


class LoRAs:
    """The loaded LoRAs, by digest.

    vLLM keys its KV cache by an adapter's name and path, and its own copies by a number: here the
    name is the version's digest, and a number is never used twice.
    """

    def __init__(self, llm: "AsyncLLM") -> None:
        self._llm = llm
        self._ids = count(FIRST_ID)
        self._requests: dict[str, LoRARequest] = {}

    async def load(self, adapter: AdapterFiles) -> None:
        from vllm.lora.request import LoRARequest

        request = LoRARequest(
            lora_name=adapter.digest,
            lora_int_id=next(self._ids),
            lora_path=str(adapter.folder),
        )
        try:
            await answer_of(self._llm, self._llm.add_lora(request))
        except EngineDied:
            raise
        # What the engine's process raised comes as a bare exception with its text.
        except Exception as error:
            await answer_of(self._llm, self._llm.remove_lora(request.lora_int_id))
            log.warning("vLLM cannot load a LoRA", version=adapter.digest, exc_info=error)
            raise AdapterRejected(
                "the engine cannot load it, for a reason that no check here knows: the server's "
                "log has it; train a plain LoRA of linear modules"
            ) from error
        self._requests[adapter.digest] = request

    async def unload(self, digest: str) -> None:
        request = self._requests.pop(digest, None)
        if request is not None:
            await answer_of(self._llm, self._llm.remove_lora(request.lora_int_id))

    def request(self, digest: str | None) -> "LoRARequest | None":
        """What a request to vLLM carries, of a loaded version."""
        return None if digest is None else self._requests[digest]
