"""What vLLM has to know of an encoder's input: its modality, and how long it can be."""

from collections.abc import Mapping

from vllm.multimodal.processing import BaseProcessingInfo

from app.engine.vllm.encoder_decoder import MODALITY


class Limits(BaseProcessingInfo):  # type: ignore[misc]
    """One input for a request, of so many tokens: it sizes what vLLM encodes in a step."""

    # vLLM would refuse an input that fills the window.
    skip_prompt_length_check = True

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        # softserve has put it there; virtual tokens are included.
        return {MODALITY: self.ctx.get_hf_config().encoder_window}
