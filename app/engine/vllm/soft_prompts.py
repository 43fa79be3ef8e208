"""Soft prompts in requests to vLLM: rows of embeddings in front of the tokens' own.

A request carries its rows as an item of vLLM's modality "prompt_embeds", at offset 0 of the prompt.
The item's hash is the version's digest, with the task where it has several: it keys the KV cache.
The model's side is in app/engine/plugin/text_models.py.

The rows travel with every request: vLLM can leave out an item that the engine has seen before, but
then both sides' caches must never drift apart, and a version that was unloaded stays in them. For
20 rows that saves 46 KB of a message between two processes (loadtest/adapters.py measures it all).
"""

from typing import TYPE_CHECKING

from app.engine.protocol import AdapterFiles

if TYPE_CHECKING:
    import torch
    from vllm.inputs.engine import MultiModalInput

MODALITY = "prompt_embeds"
MAX_VIRTUAL_TOKENS_VARIABLE = "SOFTSERVE_PLUGIN_MAX_VIRTUAL_TOKENS"


class SoftPrompts:
    """The loaded soft prompts, by digest.

    Each has the shape (virtual tokens, hidden size), and one of several tasks their number before.
    """

    def __init__(self, dtype: "torch.dtype") -> None:
        self._dtype = dtype
        self._rows: dict[str, torch.Tensor] = {}

    def load(self, adapter: AdapterFiles) -> None:
        """Read the one tensor that is served of a soft prompt."""
        from safetensors.torch import load_file

        tensors = load_file(adapter.folder / "adapter_model.safetensors")
        self._rows[adapter.digest] = tensors["prompt_embeddings"].to(self._dtype).contiguous()

    def unload(self, digest: str) -> None:
        self._rows.pop(digest, None)

    def rows(self, digest: str) -> "torch.Tensor":
        """Those of the soft prompt of that digest, of all its tasks where it has several."""
        return self._rows[digest]

    def input(
        self, token_ids: list[int], digest: str, task: int | None = None
    ) -> "MultiModalInput":
        """An engine input: the soft prompt of that digest, or that task of it, then the tokens."""
        from vllm.inputs.engine import mm_input
        from vllm.multimodal.inputs import (
            MultiModalFieldElem,
            MultiModalKwargsItem,
            MultiModalKwargsItems,
            MultiModalSharedField,
            PlaceholderRange,
        )

        rows, identity = self._rows[digest], digest
        if task is not None:
            rows, identity = rows[task], f"{digest}#{task}"
        item = MultiModalKwargsItem(
            {"embedding": MultiModalFieldElem(data=rows, field=MultiModalSharedField(batch_size=1))}
        )
        # The rows' positions hold the prompt's own first token, so that penalties, which look at
        # the prompt's tokens, see those of the text and no other.
        return mm_input(
            token_ids[:1] * len(rows) + token_ids,
            MultiModalKwargsItems({MODALITY: [item]}),
            {MODALITY: [identity]},
            {MODALITY: [PlaceholderRange(offset=0, length=len(rows))]},
        )
