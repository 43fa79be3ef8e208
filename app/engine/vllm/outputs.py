"""From vLLM's outputs to chunks."""

from math import inf
from typing import TYPE_CHECKING, Any

from app.engine.generation import GenerationChunk, PositionLogprobs, TokenLogprob
from app.engine.protocol import Prompt
from softserve.schema.generation import FinishReason

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput


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
        queue_seconds=metrics.scheduled_ts - metrics.queued_ts if scheduled else 0.0,
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
