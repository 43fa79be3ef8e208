"""Structures with SentencePiece's tokens, as T5 has them.

llguidance, with which vLLM keeps a completion to a structure, cannot tell which character of theirs
is the space. Here it gets rules of the tokenizer that say so.
"""

from copy import copy
from typing import Any

from vllm.v1.structured_output.backend_guidance import GuidanceBackend

from app.engine.vllm.tokenizer import for_structures

_build = GuidanceBackend._build_ll_tokenizer  # noqa: SLF001


def register() -> None:
    """Have vLLM tell llguidance of such tokenizers what it can read."""
    GuidanceBackend._build_ll_tokenizer = staticmethod(_build_ll_tokenizer)  # noqa: SLF001


def _build_ll_tokenizer(tokenizer: Any, vocab_size: int) -> Any:
    # What has no rules of this kind is refused where structures are tried.
    readable = copy(tokenizer)
    readable._tokenizer = for_structures(tokenizer.backend_tokenizer)  # noqa: SLF001
    return _build(readable, vocab_size)
