"""BART and MBART, with LoRAs on both stacks and soft prompts before the encoder's input.

The modules have transformers' names, but where vLLM puts several into one: q, k and v of
self-attention are `qkv_proj`, k and v of cross-attention `kv_proj`. Positions are learned, of each
stack its own, so that there are no more of them than the model was made with. BART has a norm
behind every sublayer's sum, MBART one before every sublayer and one at the end of a stack.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention, CrossAttention
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

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# The first rows of the positions are for none.
FIRST_POSITION = 2
# By so much the encoder's outputs stay below what FP16 holds, as in transformers.
FP16_MARGIN = 1000.0


def __getattr__(name: str) -> Any:
    return by_name_with_version(globals(), name)


class SelfAttention(nn.Module):  # type: ignore[misc]
    """What both stacks' have."""

    def __init__(self, d_model: int, num_heads: int, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.head_size = d_model // num_heads
        self.qkv_proj = QKVParallelLinear(
            d_model,
            self.head_size,
            num_heads,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.out_proj = RowParallelLinear(
            d_model, d_model, quant_config=quant_config, prefix=f"{prefix}.out_proj"
        )
        self.num_heads = self.qkv_proj.num_heads
        self.scale = self.head_size**-0.5


class EncoderAttention(SelfAttention):
    """Every token looks at all of its own input."""

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attention of tokens (all inputs' tokens, d_model), of inputs that follow each other."""
        qkv, _ = self.qkv_proj(hidden)
        attended = attention_within_inputs(qkv, lengths, self.num_heads, scale=self.scale)
        out: Tensor = self.out_proj(attended)[0]
        return out


class DecoderAttention(SelfAttention):
    """Every token looks at those before it, in the paged cache."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        cache_config: Any,
        quant_config: Any,
        prefix: str,
        index: int,
    ) -> None:
        super().__init__(d_model, num_heads, quant_config, prefix)
        self.attn = Attention(
            self.num_heads,
            self.head_size,
            scale=self.scale,
            cache_config=cache_config,
            # vLLM wants one number in it, and no other.
            prefix=f"decoder.{index}.self_attn",
        )

    def forward(self, hidden: Tensor) -> Tensor:
        queries, keys, values = self.qkv_proj(hidden)[0].chunk(3, dim=-1)
        out: Tensor = self.out_proj(self.attn(queries, keys, values))[0]
        return out


class CrossAttentionLayer(nn.Module):  # type: ignore[misc]
    """Every token of a decoder looks at all of the encoder's output."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        cache_config: Any,
        quant_config: Any,
        prefix: str,
        index: int,
    ) -> None:
        super().__init__()
        head_size = d_model // num_heads
        options = {"quant_config": quant_config}
        self.q_proj = ColumnParallelLinear(d_model, d_model, prefix=f"{prefix}.q_proj", **options)
        self.kv_proj = MergedColumnParallelLinear(
            d_model, [d_model, d_model], prefix=f"{prefix}.kv_proj", **options
        )
        self.out_proj = RowParallelLinear(d_model, d_model, prefix=f"{prefix}.out_proj", **options)
        self.attn = CrossAttention(
            num_heads // get_tensor_model_parallel_world_size(),
            head_size,
            scale=head_size**-0.5,
            cache_config=cache_config,
            prefix=f"decoder.{index}.encoder_attn",
        )

    def forward(self, hidden: Tensor, encoded: Tensor | None) -> Tensor:
        """`encoded` has the outputs for the step's new requests, None where there are none."""
        keys = values = None
        if encoded is not None:
            keys, values = self.kv_proj(encoded)[0].chunk(2, dim=-1)
        queries, _ = self.q_proj(hidden)
        out: Tensor = self.out_proj(self.attn(queries, keys, values))[0]
        return out


class Layer(nn.Module):  # type: ignore[misc]
    """What the layers of both stacks have: a feed-forward, and norms."""

    def __init__(
        self, config: Any, d_ff: int, quant_config: Any, prefix: str, *, norm_first: bool
    ) -> None:
        super().__init__()
        options = {"quant_config": quant_config}
        self.fc1 = ColumnParallelLinear(config.d_model, d_ff, prefix=f"{prefix}.fc1", **options)
        self.fc2 = RowParallelLinear(d_ff, config.d_model, prefix=f"{prefix}.fc2", **options)
        self.activation = ACT2FN[config.activation_function]
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.norm_first = norm_first

    def feed_forward(self, hidden: Tensor) -> Tensor:
        inner, _ = self.fc1(hidden)
        out: Tensor = self.fc2(self.activation(inner))[0]
        return out

    def add(
        self, norm: nn.LayerNorm, hidden: Tensor, sublayer: Callable[..., Tensor], *beside: Any
    ) -> Tensor:
        """What a sublayer makes of `hidden`, added to it, with a norm before or behind."""
        if self.norm_first:
            return hidden + sublayer(norm(hidden), *beside)
        normed: Tensor = norm(hidden + sublayer(hidden, *beside))
        return normed


class EncoderLayer(Layer):
    """One of the stack that sees the prompts."""

    def __init__(self, config: Any, quant_config: Any, prefix: str, *, norm_first: bool) -> None:
        d_ff = config.encoder_ffn_dim
        super().__init__(config, d_ff, quant_config, prefix, norm_first=norm_first)
        self.self_attn = EncoderAttention(
            config.d_model, config.encoder_attention_heads, quant_config, f"{prefix}.self_attn"
        )

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        hidden = self.add(self.self_attn_layer_norm, hidden, self.self_attn, lengths)
        return within_fp16(self.add(self.final_layer_norm, hidden, self.feed_forward))


class DecoderLayer(Layer):
    """One of the stack that generates."""

    def __init__(
        self,
        config: Any,
        cache_config: Any,
        quant_config: Any,
        prefix: str,
        index: int,
        *,
        norm_first: bool,
    ) -> None:
        d_ff = config.decoder_ffn_dim
        super().__init__(config, d_ff, quant_config, prefix, norm_first=norm_first)
        sizes = (config.d_model, config.decoder_attention_heads)
        self.self_attn = DecoderAttention(
            *sizes, cache_config, quant_config, f"{prefix}.self_attn", index
        )
        self.encoder_attn = CrossAttentionLayer(
            *sizes, cache_config, quant_config, f"{prefix}.encoder_attn", index
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, hidden: Tensor, encoded: Tensor | None) -> Tensor:
        hidden = self.add(self.self_attn_layer_norm, hidden, self.self_attn)
        hidden = self.add(self.encoder_attn_layer_norm, hidden, self.encoder_attn, encoded)
        return self.add(self.final_layer_norm, hidden, self.feed_forward)


class Stack(nn.Module):  # type: ignore[misc]
    """Layers, and what is before them and behind them."""

    def __init__(self, config: Any, layers: Iterable[Layer], *, norm_first: bool) -> None:
        super().__init__()
        num_positions = FIRST_POSITION + config.max_position_embeddings
        self.embed_positions = nn.Embedding(num_positions, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(config.d_model) if norm_first else nn.Identity()

    def begin(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """What the first layer gets of embedded tokens, (tokens, d_model)."""
        placed = hidden + self.embed_positions(positions + FIRST_POSITION)
        normed: Tensor = self.layernorm_embedding(placed)
        return normed


class Encoder(Stack):
    """The stack that sees the prompts of a step, all tokens of all of them in one row."""

    def forward(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode inputs of these lengths, (all tokens, d_model), into that shape."""
        positions = torch.cat([torch.arange(each, device=hidden.device) for each in lengths])
        hidden = self.begin(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, lengths)
        out: Tensor = self.layer_norm(hidden)
        return out


class Decoder(Stack):
    """The stack that generates."""

    def forward(self, hidden: Tensor, positions: Tensor, encoded: Tensor | None) -> Tensor:
        hidden = self.begin(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, encoded)
        out: Tensor = self.layer_norm(hidden)
        return out


class Stacks(nn.Module):  # type: ignore[misc]
    """Both of them, and the embedding that they share."""

    def __init__(
        self, config: Any, cache_config: Any, quant_config: Any, prefix: str, *, norm_first: bool
    ) -> None:
        super().__init__()
        self.shared = VocabParallelEmbedding(
            config.vocab_size, config.d_model, quant_config=quant_config, prefix=f"{prefix}.shared"
        )
        encoder_layers = (
            EncoderLayer(
                config, quant_config, f"{prefix}.encoder.layers.{index}", norm_first=norm_first
            )
            for index in range(config.encoder_layers)
        )
        self.encoder = Encoder(config, encoder_layers, norm_first=norm_first)
        decoder_layers = (
            DecoderLayer(
                config,
                cache_config,
                quant_config,
                f"{prefix}.decoder.layers.{index}",
                index,
                norm_first=norm_first,
            )
            for index in range(config.decoder_layers)
        )
        self.decoder = Decoder(config, decoder_layers, norm_first=norm_first)


class BartForConditionalGeneration(EncoderDecoder):
    """BART."""

    path = "model."
    keys_and_values = ".encoder_attn.kv_proj"
    parts: ClassVar[Parts] = {
        "self_attn": {
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
        },
        "encoder_attn": {"k_proj": ("kv_proj", 0), "v_proj": ("kv_proj", 1)},
    }
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "kv_proj": ["k_proj", "v_proj"],
    }
    norm_first: ClassVar[bool] = False

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        cache_config, quant_config = vllm_config.cache_config, vllm_config.quant_config
        self.model = Stacks(config, cache_config, quant_config, "model", norm_first=self.norm_first)
        self.lm_head = ParallelLMHead(
            config.vocab_size, config.d_model, quant_config=quant_config, prefix="lm_head"
        )
        self.final_logits_bias = nn.Parameter(torch.zeros(1, config.vocab_size))
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.scale_of_embeddings = float(config.d_model**0.5) if config.scale_embedding else 1.0

    @property
    def shared(self) -> nn.Module:
        return self.model.shared

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    @property
    def decoder(self) -> nn.Module:
        return self.model.decoder

    def embed(self, token_ids: Tensor) -> Tensor:
        embeddings = super().embed(token_ids)
        scale = self.scale_of_embeddings
        return embeddings if scale == 1.0 else embeddings * scale

    def decode(self, hidden: Tensor, positions: Tensor, encoded: Tensor | None) -> Tensor:
        decoded: Tensor = self.decoder(hidden, positions, encoded)
        return decoded

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits = super().compute_logits(hidden_states)
        return None if logits is None else logits + self.final_logits_bias

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As of every model, also of one that was saved without its head; the bias may lack."""
        of_whole = ((_name_in_whole(name), weight) for name, weight in weights)
        return super().load_weights(of_whole) | {"final_logits_bias"}


class MBartForConditionalGeneration(BartForConditionalGeneration):
    """MBART."""

    norm_first = True


def within_fp16(hidden: Tensor) -> Tensor:
    """What FP16 holds of it, where it is in FP16; infinity would become nothing that is a number.

    In transformers BART's outputs are left alone where all of them are finite.
    """
    if hidden.dtype != torch.float16:
        return hidden
    limit = torch.finfo(torch.float16).max - FP16_MARGIN
    return hidden.clamp(-limit, limit)


def _name_in_whole(name: str) -> str:
    """Of a weight of the model, or of the model without its head."""
    of_stacks = name.startswith(("shared.", "encoder.", "decoder."))
    return f"{BartForConditionalGeneration.path}{name}" if of_stacks else name
