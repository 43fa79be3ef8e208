"""What vLLM has to know of an encoder's input: its modality, and how long it can be.

The server process says by an environment variable how many tokens the encoder takes: the plugin is
loaded before vLLM has any configuration.
"""

import os
from collections.abc import Mapping

from vllm.multimodal.processing import BaseProcessingInfo

from app.engine.vllm.encoder_decoder import (
    DEFAULT_ENCODER_WINDOW,
    ENCODER_WINDOW_VARIABLE,
    MODALITY,
)


def encoder_window() -> int:
    """The most tokens of an encoder's input, virtual ones included."""
    return int(os.environ.get(ENCODER_WINDOW_VARIABLE, DEFAULT_ENCODER_WINDOW))


class Limits(BaseProcessingInfo):  # type: ignore[misc]
    """One input for a request, of so many tokens: it sizes what vLLM encodes in a step."""

    # vLLM would refuse an input that fills the window.
    skip_prompt_length_check = True

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {MODALITY: encoder_window()}
