"""From vLLM's outputs to chunks."""

from collections.abc import Collection
from math import inf
from typing import TYPE_CHECKING, Any

from app.engine.generation import GenerationChunk, PositionLogprobs, TokenLogprob
from app.engine.protocol import Prompt
from softserve.schema.generation import FinishReason

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams


def chunk_of(
    prompt: Prompt,
    output: "RequestOutput",
    completion: "CompletionOutput",
    num_logprobs: int | None,
) -> GenerationChunk:
    """What an output has of one completion."""
    metrics = output.metrics
    scheduled = metrics is not None and metrics.scheduled_ts > 0
    return GenerationChunk(
        prompt_index=prompt.index,
        index=completion.index,
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        num_prompt_tokens=prompt.num_tokens,
        num_cached_tokens=output.num_cached_tokens or 0,
        queue_seconds=queue_seconds_of(output),
        # A stop string can cut the tokens behind it, but not their log probabilities.
        logprobs=tuple(
            _position_logprobs(position, token_id, num_logprobs)
            for position, token_id in zip(
                completion.logprobs or (), completion.token_ids, strict=False
            )
        )
        if num_logprobs is not None
        else (),
        finish_reason=_finish_reason(completion.finish_reason),
        num_virtual_tokens=prompt.num_virtual_tokens,
        prefill_seconds=metrics.first_token_ts - metrics.scheduled_ts if scheduled else 0.0,
    )


def queue_seconds_of(output: "RequestOutput") -> float:
    """Those before the engine's first step for it."""
    metrics = output.metrics
    if metrics is None or metrics.scheduled_ts <= 0:
        return 0.0
    return float(metrics.scheduled_ts - metrics.queued_ts)


def tell_limit(
    output: "RequestOutput", params: "SamplingParams", forced_eos: Collection[int]
) -> None:
    """Have no completion be said to have stopped where a limit has ended it.

    `forced_eos` are the tokens of which one is forced at the limit, so that vLLM finds an end.
    """
    if output.metrics is None or output.metrics.num_generation_tokens != params.max_tokens:
        return
    for completion in output.outputs:
        ended_at = completion.token_ids[-1] if completion.token_ids else None
        if completion.finish_reason == "stop" and ended_at in forced_eos:
            completion.finish_reason = "length"


def _position_logprobs(
    position: dict[int, Any], chosen_id: int, num_logprobs: int
) -> PositionLogprobs:
    tokens = {
        token_id: TokenLogprob(token_id, entry.decoded_token or "", entry.logprob)
        for token_id, entry in position.items()
    }
    by_rank = sorted(position, key=lambda token_id: position[token_id].rank)
    return PositionLogprobs(
        chosen=tokens[chosen_id],
        # A structure leaves no probability to the tokens that it does not allow.
        top=tuple(
            tokens[token_id]
            for token_id in by_rank[:num_logprobs]
            if tokens[token_id].logprob > -inf
        ),
    )


def _finish_reason(reason: str | None) -> FinishReason | None:
    match reason:
        case None | "stop" | "length" | "abort":
            return reason
        case _:
            return "abort"
