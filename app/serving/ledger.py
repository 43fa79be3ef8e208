"""The tokens and times of one request, for its answer, its metrics and its log line alike."""

import time
from collections.abc import Collection
from dataclasses import dataclass

from app.engine.generation import CompletionKey, GenerationChunk
from app.telemetry.metrics import Metrics
from softserve.schema.generation import TimingsOut, UsageOut


@dataclass(slots=True)
class _Completion:
    num_tokens: int = 0
    last_token_at: float | None = None


class Ledger:
    """Begins at the request's admission. `add` records its chunks as they come, `close` its end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._admitted_at = time.perf_counter()
        self._first_token_at: float | None = None
        self._last_token_at: float | None = None
        self._queue_seconds = 0.0
        self._adapter_use = metrics.adapter_requests.begin()
        # The first chunk of each prompt, which says what is true of them all.
        self._prompts: dict[int, GenerationChunk] = {}
        self._completions: dict[CompletionKey, _Completion] = {}

    def hold(self, adapters: Collection[str]) -> None:
        """The request holds these adapters until it ends."""
        self._adapter_use.names = adapters

    def add(self, chunk: GenerationChunk) -> None:
        if (completion := self._completions.get(chunk.key)) is None:
            completion = self._begin(chunk)
        self._queue_seconds = max(self._queue_seconds, chunk.queue_seconds)
        if chunk.token_ids:
            self._add_tokens(completion, len(chunk.token_ids))

    def close(self) -> None:
        self._metrics.adapter_requests.end(self._adapter_use)
        self._metrics.request_duration.observe(self._seconds_until(self._last_token_at))

    def usage(self) -> UsageOut:
        """Of the whole request."""
        return _usage(self._prompts.values(), self._completions.values())

    def usage_of(self, key: CompletionKey) -> UsageOut:
        """Of one completion and its prompt."""
        return _usage([self._prompts[key[0]]], [self._completions[key]])

    def timings(self) -> TimingsOut:
        """Until now, as far as there are no tokens."""
        return TimingsOut(
            queue=_milliseconds(self._queue_seconds),
            ttft=_milliseconds(self._seconds_until(self._first_token_at)),
            total=_milliseconds(self._seconds_until(self._last_token_at)),
        )

    def summary(self) -> dict[str, int | float]:
        """For the request's log line; nothing where it generated nothing."""
        if self._first_token_at is None:
            return {}
        usage = self.usage()
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "ttft_ms": self.timings().ttft,
        }

    def _begin(self, chunk: GenerationChunk) -> _Completion:
        if chunk.prompt_index not in self._prompts:
            self._prompts[chunk.prompt_index] = chunk
            self._metrics.prompt_tokens.inc(chunk.num_prompt_tokens)
            self._metrics.cached_tokens.inc(chunk.num_cached_tokens)
        return self._completions.setdefault(chunk.key, _Completion())

    def _add_tokens(self, completion: _Completion, num_tokens: int) -> None:
        now = time.perf_counter()
        self._metrics.completion_tokens.inc(num_tokens)
        if self._first_token_at is None:
            self._first_token_at = now
            self._metrics.time_to_first_token.observe(now - self._admitted_at)
            self._adapter_use.has_tokens = True
        if completion.last_token_at is not None:
            latency = (now - completion.last_token_at) / num_tokens
            self._metrics.inter_token_latency.observe(latency)
        completion.num_tokens += num_tokens
        completion.last_token_at = self._last_token_at = now

    def _seconds_until(self, moment: float | None) -> float:
        return (time.perf_counter() if moment is None else moment) - self._admitted_at


def _usage(prompts: Collection[GenerationChunk], completions: Collection[_Completion]) -> UsageOut:
    return UsageOut(
        prompt_tokens=sum(prompt.num_prompt_tokens for prompt in prompts),
        virtual_tokens=sum(prompt.num_virtual_tokens for prompt in prompts),
        completion_tokens=sum(completion.num_tokens for completion in completions),
        cached_tokens=sum(prompt.num_cached_tokens for prompt in prompts),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)
