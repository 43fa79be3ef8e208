"""Self-attention of a decoder whose scores have a bias for each distance, as T5's.

No backend of vLLM 0.32 takes such a bias. Here the keys and values of a step's requests are
gathered from the paged cache, and attention is PyTorch's own with the bias as its mask. Requests
that have equally many new tokens are computed together: in a step of nothing but decoding, all.

Everything but PyTorch's attention itself is the same on every device. On CUDA it has not been run.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)

NAME = "SOFTSERVE_RELATIVE"


class RelativeBias(nn.Module):  # type: ignore[misc]
    """What is added to the scores of a query and a key, by the key's position behind the query's.

    `weight`, (buckets, heads), has a row for each of the nearest distances and for ranges of those
    behind them. `num_heads` are those of this process.
    """

    def __init__(
        self, num_buckets: int, max_distance: int, num_heads: int, *, looks_ahead: bool
    ) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads), requires_grad=False)
        self.weight.weight_loader = self._load
        buckets = buckets_of(num_buckets, max_distance, looks_ahead=looks_ahead)
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, relative: Tensor) -> Tensor:
        """The bias of relative positions (any shape, key's minus query's), of (heads, that shape).

        All that are further than `max_distance` have the same.
        """
        limit = self.max_distance
        table = self.weight[self.buckets]
        return table[relative.clamp(-limit, limit) + limit].movedim(-1, 0)

    def _load(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        num_heads = parameter.shape[1]
        first = get_tensor_model_parallel_rank() * num_heads
        parameter.data.copy_(loaded[:, first : first + num_heads])


def buckets_of(num_buckets: int, max_distance: int, *, looks_ahead: bool) -> Tensor:
    """The bucket of each relative position from -max_distance to max_distance, of that shape.

    Half of the buckets are for one distance each, the others for ranges that grow with it. Where
    attention looks ahead, half of either are for keys behind the query.
    """
    relative = torch.arange(-max_distance, max_distance + 1)
    if looks_ahead:
        num_buckets //= 2
        first = (relative > 0).long() * num_buckets
        distance = relative.abs()
    else:
        first = torch.zeros_like(relative)
        distance = (-relative).clamp(min=0)
    num_exact = num_buckets // 2
    # In FP32 and in this order, as models were trained with it: a bucket starts where it rounds to.
    share = torch.log(distance.float() / num_exact) / math.log(max_distance / num_exact)
    ranged = num_exact + (share * (num_buckets - num_exact)).clamp(min=0).long()
    return first + torch.where(distance < num_exact, distance, ranged.clamp(max=num_buckets - 1))


class RelativeBackend(AttentionBackend):  # type: ignore[misc]
    """vLLM's description of it."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type["RelativeImpl"]:
        return RelativeImpl

    @staticmethod
    def get_builder_cls() -> type["RelativeBuilder"]:
        return RelativeBuilder


@dataclass
class Alike:
    """Requests of a step that have equally many new tokens, `num_new`.

    `requests`, (n,), are their places in the batch, and `tokens`, (n * num_new,), those of their
    tokens in it. `positions` are of (n, num_new), and `max_length` is the longest one's.
    """

    requests: Tensor
    tokens: Tensor
    num_new: int
    positions: Tensor
    max_length: int


@dataclass
class RelativeMetadata:
    """A step's requests; `masks` are filled by the first layer, for all of them."""

    block_table: Tensor
    groups: list[Alike]
    masks: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class RelativeBuilder(AttentionMetadataBuilder[RelativeMetadata]):  # type: ignore[misc]
    """Makes a step's metadata."""

    def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> RelativeMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu[:-1]
        num_new = common.query_start_loc_cpu[1:] - starts
        lengths = common.seq_lens_cpu_upper_bound
        groups = []
        for count in num_new.unique().tolist():
            if count == 0:
                continue
            requests = (num_new == count).nonzero()[:, 0]
            new = torch.arange(count)
            tokens = (starts[requests, None] + new).flatten().to(self.device)
            on_device = requests.to(self.device)
            positions = common.seq_lens[on_device, None] - count + new.to(self.device)
            max_length = int(lengths[requests].max())
            groups.append(Alike(on_device, tokens, count, positions, max_length))
        return RelativeMetadata(common.block_table_tensor, groups)


class RelativeImpl(AttentionImpl[RelativeMetadata]):  # type: ignore[misc]
    """The arithmetic. The cache is of (blocks, heads, block size, 2 * head size): key, value."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        *,
        bias: RelativeBias,
    ) -> None:
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.kv_cache_dtype = kv_cache_dtype
        # Not a module of each layer's: it is the first one's.
        self.bias = bias

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        block_size = kv_cache.shape[2]
        slots = slot_mapping[: len(key)]
        new = torch.cat([key, value], dim=-1)
        kv_cache[slots // block_size, :, slots % block_size] = new

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: RelativeMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of queries (tokens, heads, head size), written to `output`, of that shape."""
        if attn_metadata is None:
            # vLLM warms up.
            return output.zero_()
        if not attn_metadata.masks:
            attn_metadata.masks = [
                self._blocks_and_mask(group, attn_metadata.block_table, kv_cache, query.dtype)
                for group in attn_metadata.groups
            ]
        for group, (blocks, mask) in zip(attn_metadata.groups, attn_metadata.masks, strict=True):
            shape = (len(group.requests), group.num_new, self.num_heads, self.head_size)
            queries = query.index_select(0, group.tokens).view(shape).transpose(1, 2)
            # (n, heads, blocks, block size, 2 * head size)
            cached = kv_cache[blocks[:, None], _counts(self.num_heads, query.device)]
            keys, values = cached.flatten(2, 3).split(self.head_size, dim=-1)
            attended = nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=self.scale
            )
            output[group.tokens] = attended.transpose(1, 2).reshape(-1, *output.shape[1:])
        return output

    def _blocks_and_mask(
        self, group: Alike, block_table: Tensor, kv_cache: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The blocks to gather, (n, blocks), and the mask, (n, heads, new tokens, keys)."""
        block_size = kv_cache.shape[2]
        num_blocks = -(-group.max_length // block_size)
        blocks = block_table[group.requests, :num_blocks].long()
        keys = torch.arange(num_blocks * block_size, device=blocks.device)
        relative = keys - group.positions[..., None]
        mask = self.bias(relative).to(dtype).masked_fill(relative > 0, -torch.inf)
        return blocks, mask.transpose(0, 1)


@cache
def _counts(count: int, device: torch.device) -> Tensor:
    """0, 1, ... as (count, 1): indices that go with others of (n, 1, blocks)."""
    return torch.arange(count, device=device)[:, None]
