"""T5, FLAN-T5 and MT5, with LoRAs on both stacks and soft prompts before the encoder's input.

The modules have transformers' names, but where vLLM puts several into one: q, k and v of
self-attention are `qkv`, k and v of cross-attention `kv`, and the two inputs of a gated
feed-forward `wi`. Scores are not scaled, and positions are only in the bias of self-attention,
whose weights the first layer of a stack has for all.

In FP16 the outputs of feed-forward layers can be larger than FP16 holds: as in transformers, the
last linear layer of each is in FP32, and so is the sum that goes through the layers.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention, CrossAttention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)

from app.engine.plugin.seq2seq import by_name_with_version
from app.engine.plugin.seq2seq.model import EncoderDecoder, Parts, attention_within_inputs
from app.engine.plugin.seq2seq.relative_attention import RelativeBackend, RelativeBias

if TYPE_CHECKING:
    from vllm.config import VllmConfig

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


def __getattr__(name: str) -> Any:
    return by_name_with_version(globals(), name)


class SelfAttention(nn.Module):  # type: ignore[misc]
    """What both stacks' have: `first` has the bias, and is this layer itself in the first."""

    def __init__(
        self,
        config: Any,
        quant_config: Any,
        prefix: str,
        first: "SelfAttention | None",
        *,
        looks_ahead: bool,
    ) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.qkv = QKVParallelLinear(
            config.d_model,
            config.d_kv,
            config.num_heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv",
        )
        self.o = RowParallelLinear(
            inner, config.d_model, bias=False, quant_config=quant_config, prefix=f"{prefix}.o"
        )
        self.num_heads = self.qkv.num_heads
        self.head_size = config.d_kv
        if first is None:
            self.relative_attention_bias = RelativeBias(
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
                self.num_heads,
                looks_ahead=looks_ahead,
            )


class EncoderAttention(SelfAttention):
    """Every token looks at all of its own input."""

    def forward(self, hidden: Tensor, lengths: Sequence[int], bias: RelativeBias) -> Tensor:
        """Attention of tokens (all inputs' tokens, d_model), of inputs that follow each other."""

        def scores(length: int) -> Tensor:
            steps = torch.arange(length, device=hidden.device)
            return bias(steps - steps[:, None])[None].to(hidden.dtype)

        qkv, _ = self.qkv(hidden)
        attended = attention_within_inputs(qkv, lengths, self.num_heads, scale=1.0, bias=scores)
        out: Tensor = self.o(attended)[0]
        return out


class DecoderAttention(SelfAttention):
    """Every token looks at those before it, in the paged cache."""

    def __init__(
        self,
        config: Any,
        cache_config: Any,
        quant_config: Any,
        prefix: str,
        first: "DecoderAttention | None",
        index: int,
    ) -> None:
        super().__init__(config, quant_config, prefix, first, looks_ahead=False)
        self.attn = Attention(
            self.num_heads,
            self.head_size,
            scale=1.0,
            cache_config=cache_config,
            # vLLM wants one number in it, and no other.
            prefix=f"decoder.{index}.self_attn",
            attn_backend=RelativeBackend,
            bias=(first or self).relative_attention_bias,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        queries, keys, values = self.qkv(hidden)[0].chunk(3, dim=-1)
        out: Tensor = self.o(self.attn(queries, keys, values))[0]
        return out


class CrossAttentionLayer(nn.Module):  # type: ignore[misc]
    """Every token of a decoder looks at all of the encoder's output."""

    def __init__(
        self, config: Any, cache_config: Any, quant_config: Any, prefix: str, index: int
    ) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        options = {"bias": False, "quant_config": quant_config}
        self.q = ColumnParallelLinear(config.d_model, inner, prefix=f"{prefix}.q", **options)
        self.kv = MergedColumnParallelLinear(
            config.d_model, [inner, inner], prefix=f"{prefix}.kv", **options
        )
        self.o = RowParallelLinear(inner, config.d_model, prefix=f"{prefix}.o", **options)
        self.attn = CrossAttention(
            config.num_heads // get_tensor_model_parallel_world_size(),
            config.d_kv,
            scale=1.0,
            cache_config=cache_config,
            prefix=f"decoder.{index}.encoder_attn",
        )

    def forward(self, hidden: Tensor, encoded: Tensor | None) -> Tensor:
        """`encoded` has the outputs for the step's new requests, None where there are none."""
        keys = values = None
        if encoded is not None:
            keys, values = self.kv(encoded)[0].chunk(2, dim=-1)
        queries, _ = self.q(hidden)
        out: Tensor = self.o(self.attn(queries, keys, values))[0]
        return out


class FeedForward(nn.Module):  # type: ignore[misc]
    """Gated or not; in FP16 its last layer is in FP32."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        options = {"bias": False, "quant_config": quant_config}
        self.is_gated = config.is_gated_act
        self.activation = ACTIVATIONS[config.dense_act_fn]
        self.wi = (
            MergedColumnParallelLinear(
                config.d_model, [config.d_ff] * 2, prefix=f"{prefix}.wi", **options
            )
            if self.is_gated
            else ColumnParallelLinear(config.d_model, config.d_ff, prefix=f"{prefix}.wi", **options)
        )
        self.out_dtype = wide(torch.get_default_dtype())
        self.wo = RowParallelLinear(
            config.d_ff,
            config.d_model,
            params_dtype=self.out_dtype,
            prefix=f"{prefix}.wo",
            **options,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        inner, _ = self.wi(hidden)
        if self.is_gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * inner
        else:
            inner = self.activation(inner)
        out: Tensor = self.wo(inner.to(self.out_dtype))[0]
        return out


class Sublayer(nn.Module):  # type: ignore[misc]
    """A norm, and what it is for: `SelfAttention`, `EncDecAttention` or `DenseReluDense`."""

    def __init__(self, config: Any, name: str, module: nn.Module) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.add_module(name, module)
        self._name = name

    def forward(self, delta: Tensor | None, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """What is to be added to the sum after the last layer's `delta` is, and that sum."""
        normed, hidden = add_and_norm(self.layer_norm, delta, hidden)
        return getattr(self, self._name)(normed, *rest), hidden


class Block(nn.Module):  # type: ignore[misc]
    """A layer of a stack."""

    def __init__(self, sublayers: Iterable[Sublayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(sublayers)


class Encoder(nn.Module):  # type: ignore[misc]
    """The stack that sees the prompts of a step, all tokens of all of them in one row."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        first = None
        for index in range(config.num_layers):
            within = f"{prefix}.block.{index}.layer"
            attention = EncoderAttention(
                config, quant_config, f"{within}.0.SelfAttention", first, looks_ahead=True
            )
            first = first or attention
            feed_forward = FeedForward(config, quant_config, f"{within}.1.DenseReluDense")
            sublayers = [
                Sublayer(config, "SelfAttention", attention),
                Sublayer(config, "DenseReluDense", feed_forward),
            ]
            self.block.append(Block(sublayers))
        self.final_layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode inputs of these lengths, (all tokens, d_model), into that shape."""
        bias = self.block[0].layer[0].SelfAttention.relative_attention_bias
        delta = None
        hidden = hidden.to(wide(hidden.dtype))
        for block in self.block:
            delta, hidden = block.layer[0](delta, hidden, lengths, bias)
            delta, hidden = block.layer[1](delta, hidden)
        return add_and_norm(self.final_layer_norm, delta, hidden)[0]


class Decoder(nn.Module):  # type: ignore[misc]
    """The stack that generates."""

    def __init__(self, config: Any, cache_config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        first = None
        for index in range(config.num_decoder_layers):
            within = f"{prefix}.block.{index}.layer"
            attention = DecoderAttention(
                config, cache_config, quant_config, f"{within}.0.SelfAttention", first, index
            )
            first = first or attention
            cross_attention = CrossAttentionLayer(
                config, cache_config, quant_config, f"{within}.1.EncDecAttention", index
            )
            feed_forward = FeedForward(config, quant_config, f"{within}.2.DenseReluDense")
            sublayers = [
                Sublayer(config, "SelfAttention", attention),
                Sublayer(config, "EncDecAttention", cross_attention),
                Sublayer(config, "DenseReluDense", feed_forward),
            ]
            self.block.append(Block(sublayers))
        self.final_layer_norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, encoded: Tensor | None) -> Tensor:
        delta = None
        hidden = hidden.to(wide(hidden.dtype))
        for block in self.block:
            delta, hidden = block.layer[0](delta, hidden)
            delta, hidden = block.layer[1](delta, hidden, encoded)
            delta, hidden = block.layer[2](delta, hidden)
        return add_and_norm(self.final_layer_norm, delta, hidden)[0]


class T5ForConditionalGeneration(EncoderDecoder):
    """T5 and FLAN-T5."""

    keys_and_values = ".EncDecAttention.kv"
    parts: ClassVar[Parts] = {
        "SelfAttention": {"q": ("qkv", "q"), "k": ("qkv", "k"), "v": ("qkv", "v")},
        "EncDecAttention": {"k": ("kv", 0), "v": ("kv", 1)},
        "DenseReluDense": {"wi_0": ("wi", 0), "wi_1": ("wi", 1)},
    }

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        cache_config, quant_config = vllm_config.cache_config, vllm_config.quant_config
        self.shared = VocabParallelEmbedding(
            config.vocab_size, config.d_model, quant_config=quant_config, prefix="shared"
        )
        self.encoder = Encoder(config, quant_config, "encoder")
        self.decoder = Decoder(config, cache_config, quant_config, "decoder")
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.d_model, quant_config=quant_config, prefix="lm_head"
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.out_scale = self.scale_of_outputs(config)
        self.packed_modules_mapping = {"qkv": ["q", "k", "v"], "kv": ["k", "v"]}
        if config.is_gated_act:
            self.packed_modules_mapping["wi"] = ["wi_0", "wi_1"]

    @staticmethod
    def scale_of_outputs(config: Any) -> float:
        """By what the decoder's outputs are multiplied before the head."""
        return float(config.d_model**-0.5) if config.scale_decoder_outputs else 1.0

    def decode(self, hidden: Tensor, positions: Tensor, encoded: Tensor | None) -> Tensor:
        decoded: Tensor = self.decoder(hidden, encoded)
        return decoded

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        scaled = hidden_states if self.out_scale == 1.0 else hidden_states * self.out_scale
        return super().compute_logits(scaled)


class MT5ForConditionalGeneration(T5ForConditionalGeneration):
    """T5's second version, whose outputs are not scaled."""

    @staticmethod
    def scale_of_outputs(config: Any) -> float:
        return 1.0


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of what may be larger than FP16 holds."""
    return torch.float32 if dtype == torch.float16 else dtype


def add_and_norm(norm: RMSNorm, delta: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of hidden + delta, in the type of its weights, and that sum itself."""
    dtype = norm.weight.dtype
    if delta is not None and hidden.dtype == dtype:
        normed, hidden = norm(delta, hidden)
        return normed, hidden
    if delta is not None:
        hidden = hidden + delta
    return norm(hidden).to(dtype), hidden
