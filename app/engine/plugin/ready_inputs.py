"""What vLLM asks of a multimodal model's inputs, where requests bring them ready.

The server process makes the items of a request itself (app/engine/vllm/soft_prompts.py and
app/engine/vllm/encoder_decoder.py), so that vLLM has nothing to profile and nothing to process.
"""

from collections.abc import Mapping
from typing import Any

from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
)


class NoDummyInputs(BaseDummyInputsBuilder[BaseProcessingInfo]):  # type: ignore[misc]
    """Nothing is profiled."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}


class NoProcessor(BaseMultiModalProcessor[BaseProcessingInfo]):  # type: ignore[misc]
    """vLLM wants one made, and never asks it to process anything: these are abstract there."""

    def _get_mm_fields_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> list[Any]:
        raise NotImplementedError
