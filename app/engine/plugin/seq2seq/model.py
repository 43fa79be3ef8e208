"""What the models have in common: encoder inputs, LoRAs on both stacks, how weights are loaded.

A model has the modules `shared`, the embedding of both stacks, `encoder`, `decoder` and `lm_head`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.multimodal import MULTIMODAL_REGISTRY

from app.engine.plugin.ready_inputs import NoDummyInputs, NoProcessor
from app.engine.plugin.seq2seq.encoder_input import Limits

# Of a module in a checkpoint, by the one that holds it: the module here, and which part of it.
Parts = Mapping[str, Mapping[str, tuple[str, str | int]]]

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@MULTIMODAL_REGISTRY.register_processor(NoProcessor, info=Limits, dummy_inputs=NoDummyInputs)
class EncoderDecoder(nn.Module, SupportsMultiModal, SupportsLoRA):  # type: ignore[misc]
    """`forward` is the decoder, `embed_multimodal` the encoder.

    `path` is what is before the names of shared, encoder and decoder, and `keys_and_values` the end
    of the name of what makes those of cross-attention.
    """

    supports_tower_connector_lora = True
    path: ClassVar[str] = ""
    keys_and_values: ClassVar[str]
    parts: ClassVar[Parts]
    lm_head: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None

    def get_language_model(self) -> nn.Module:
        return self

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which modules see the encoder's tokens: the keys and values of cross-attention as well.

        A LoRA's rows are counted for these apart from the decoder's.
        """
        names = [name for name, _ in self.named_modules() if name.endswith(self.keys_and_values)]
        return MultiModelKeys.from_string_field(
            language_model=f"{self.path}decoder", tower_model=[f"{self.path}encoder", *names]
        )

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: Any, num_mm_embeds: int
    ) -> tuple[int, int | None]:
        return num_mm_embeds, None

    def embed(self, token_ids: Tensor) -> Tensor:
        """The embeddings of tokens of either stack, (tokens, d_model)."""
        embeddings: Tensor = self.shared(token_ids)
        return embeddings

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """The embeddings of the decoder's tokens."""
        return self.embed(input_ids)

    def embed_multimodal(
        self, *, token_ids: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Encode inputs: the tokens of each, behind the rows of a soft prompt, (any, d_model)."""
        embedded = self.embed(torch.cat(list(token_ids))).split([len(ids) for ids in token_ids])
        inputs = [
            torch.cat([virtual.to(tokens), tokens]) if len(virtual) else tokens
            for virtual, tokens in zip(rows, embedded, strict=True)
        ]
        lengths = [len(each) for each in inputs]
        return list(self.encoder(torch.cat(inputs), lengths).split(lengths))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The decoder's outputs, (tokens, d_model); `encoder_outputs` are of new requests."""
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        encoded = torch.cat(encoder_outputs) if encoder_outputs else None
        return self.decode(hidden, positions, encoded)

    @abstractmethod
    def decode(self, hidden: Tensor, positions: Tensor, encoded: Tensor | None) -> Tensor:
        """Those of embedded tokens at their positions, each of a request."""

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint, by transformers' names. A head that it lacks is the embedding."""
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, weight in weights:
            target, part = self._place_of(name)
            if target not in parameters:
                # Old checkpoints have a bias of cross-attention, which nothing uses.
                continue
            parameter = parameters[target]
            load = getattr(parameter, "weight_loader", default_weight_loader)
            load(parameter, weight) if part is None else load(parameter, weight, part)
            loaded.add(target)
        if "lm_head.weight" not in loaded:
            self.lm_head = self.lm_head.tie_weights(self.shared)
            loaded.add("lm_head.weight")
        return loaded

    def _place_of(self, name: str) -> tuple[str, str | int | None]:
        """The parameter that a weight of a checkpoint goes to, and the part of it."""
        if name.removeprefix(self.path) in EMBEDDINGS:
            return f"{self.path}shared.weight", None
        module, _, kind = name.rpartition(".")
        before, _, last = module.rpartition(".")
        place = self.parts.get(before.rpartition(".")[2], {}).get(last)
        return (name, None) if place is None else (f"{before}.{place[0]}.{kind}", place[1])


def attention_within_inputs(
    qkv: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    *,
    scale: float,
    bias: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Every token of an encoder looks at all of its own input.

    `qkv` is of (all inputs' tokens, 3 * num_heads * head size), of inputs of these lengths that
    follow each other, and the result of (all inputs' tokens, num_heads * head size). `bias` is what
    is added to the scores of an input of a length, (1, num_heads, length, length).
    """
    attended = torch.empty_like(qkv[:, : qkv.shape[1] // 3])
    firsts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    for length in set(lengths):
        # Inputs of one length need no padding, which would have to be masked for each.
        alike = [first for first, each in zip(firsts, lengths, strict=False) if each == length]
        steps = torch.arange(length, device=qkv.device)
        tokens = (torch.tensor(alike, device=qkv.device)[:, None] + steps).flatten()
        parts = qkv[tokens].view(len(alike), length, 3, num_heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mask = None if bias is None else bias(length)
        result = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale
        )
        attended[tokens] = result.transpose(1, 2).reshape(len(tokens), -1)
    return attended
