"""The tokens and times of one request, for its answer, its metrics and its log line alike."""

import time
from collections.abc import Collection
from dataclasses import dataclass

from app.access.caller import Caller
from app.access.usage import Consumer, UsageBook
from app.adapters.registry import Adapters
from app.engine.generation import CompletionKey, GenerationChunk
from app.telemetry import traces
from app.telemetry.metrics import Metrics
from app.telemetry.usage import Name, Outcome
from app.templates.registry import ResolvedTemplate
from softserve.schema.controls import Sampling
from softserve.schema.generation import FinishReason, TimingsOut, UsageOut


@dataclass(slots=True)
class _Completion:
    num_tokens: int = 0
    last_token_at: float | None = None
    finish_reason: FinishReason | None = None


class Ledger:
    """Begins at the request's admission. `add` records its chunks as they come, `close` its end.

    What is measured counts for all requests, for the caller's key, and for whatever else the
    request uses by name from then on.
    """

    def __init__(self, metrics: Metrics, book: UsageBook, caller: Caller) -> None:
        self._metrics = metrics
        self._book = book
        self._caller = caller
        self._adapters: Adapters | None = None
        self._admitted_at = time.perf_counter()
        self._begun_at: float | None = None
        self._first_token_at: float | None = None
        self._last_token_at: float | None = None
        self._submitted_at: float | None = None
        self._prefill_seconds = 0.0
        self._queue_seconds = 0.0
        self._in_flight = metrics.usage.begin()
        self._measures = self._in_flight.measures
        # How long each prompt has waited for its turn, before it came to the engine.
        self._turn_seconds: dict[int, float] = {}
        # The first chunk of each prompt, which says what is true of them all.
        self._prompts: dict[int, GenerationChunk] = {}
        self._completions: dict[CompletionKey, _Completion] = {}
        metrics.usage.use(self._in_flight, Name("key", caller.name))
        traces.until_now("admission")

    def hold(self, adapters: Adapters) -> None:
        """The request holds these adapters until it ends."""
        self._adapters = adapters
        if (lora := adapters.lora) is not None:
            self._use(Name.of_version("adapter", lora.name, lora.version.digest))
        if (soft_prompt := adapters.soft_prompt) is not None:
            self._use(Name.of_version("soft_prompt", soft_prompt.name, soft_prompt.version.digest))

    def use_template(self, template: ResolvedTemplate) -> None:
        """The request's prompts are made from it. One that came with the request has no name."""
        if template.name is not None:
            self._use(Name.of_version("template", template.name, template.version))

    def begin_generation(self, model: str, sampling: Sampling) -> None:
        """Its prompts go to the engine."""
        self._submitted_at = time.perf_counter()
        if traces.is_recording():
            traces.tell(_asked(model, sampling))

    def has_turn(self, prompt_index: int, waited_seconds: float) -> None:
        """A prompt goes to the engine now, and has waited for that so long."""
        if self._begun_at is None:
            self._begun_at = time.perf_counter()
        self._turn_seconds[prompt_index] = waited_seconds

    def add(self, chunk: GenerationChunk) -> None:
        if (completion := self._completions.get(chunk.key)) is None:
            completion = self._begin(chunk)
        if chunk.token_ids:
            self._add_tokens(completion, chunk)
        if chunk.finish_reason is not None:
            completion.finish_reason = chunk.finish_reason

    def close(self) -> None:
        self._metrics.usage.end(self._in_flight)
        if self._adapters is not None:
            used = Consumer(
                self._caller.name, self._adapters.lora_name, self._adapters.soft_prompt_name
            )
            self._book.add(used, self.usage())
        self._metrics.request_duration.observe(self._seconds_until(self._last_token_at))
        if traces.is_recording():
            self._trace()

    def count(self, outcome: Outcome) -> None:
        """How the answer ended."""
        for measures in self._measures:
            measures.outcomes[outcome] += 1

    @property
    def num_completion_tokens(self) -> int:
        return sum(completion.num_tokens for completion in self._completions.values())

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

    def seconds_in_engine(self) -> float:
        """From the first prompt's turn to the last token."""
        if self._begun_at is None or self._last_token_at is None:
            return 0.0
        return self._last_token_at - self._begun_at

    def summary(self) -> dict[str, str | int | float]:
        """For the request's log line: what it used by name, and what it generated."""
        if self._first_token_at is None:
            return {**self._names()}
        usage = self.usage()
        return {
            **self._names(),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "ttft_ms": self.timings().ttft,
        }

    def _trace(self) -> None:
        """Its span says what it used and generated; those of the engine's phases are in it."""
        traces.tell({f"softserve.{kind}": name for kind, name in self._names().items()})
        began_at, first_at, last_at = self._submitted_at, self._first_token_at, self._last_token_at
        if began_at is None or first_at is None or last_at is None:
            return
        usage = self.usage()
        reasons = [completion.finish_reason for completion in self._completions.values()]
        traces.tell(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.response.finish_reasons": [reason for reason in reasons if reason],
            }
        )
        scheduled_at = max(began_at, first_at - self._prefill_seconds)
        moments = (began_at, scheduled_at, first_at, last_at)
        traces.past_phases(("queue", "prefill", "decode"), moments)

    def _names(self) -> dict[str, str]:
        return {
            name.kind: f"{name.name}@{name.version}" if name.version else name.name
            for name in self._in_flight.names
        }

    def _use(self, name: Name) -> None:
        self._metrics.usage.use(self._in_flight, name)

    def _begin(self, chunk: GenerationChunk) -> _Completion:
        queue_seconds = chunk.queue_seconds + self._turn_seconds.get(chunk.prompt_index, 0.0)
        if chunk.prompt_index not in self._prompts:
            self._prompts[chunk.prompt_index] = chunk
            for measures in self._measures:
                measures.prompt_tokens += chunk.num_prompt_tokens
                measures.cached_tokens += chunk.num_cached_tokens
                measures.queue_time.observe(queue_seconds)
        self._queue_seconds = max(self._queue_seconds, queue_seconds)
        return self._completions.setdefault(chunk.key, _Completion())

    def _add_tokens(self, completion: _Completion, chunk: GenerationChunk) -> None:
        now, num_tokens = time.perf_counter(), len(chunk.token_ids)
        if self._first_token_at is None:
            self._first_token_at = now
            self._prefill_seconds = chunk.prefill_seconds
            self._in_flight.has_tokens = True
            for measures in self._measures:
                measures.time_to_first_token.observe(now - self._admitted_at)
        for measures in self._measures:
            measures.completion_tokens += num_tokens
        if completion.last_token_at is not None:
            latency = (now - completion.last_token_at) / num_tokens
            for measures in self._measures:
                measures.inter_token_latency.observe(latency)
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


def _asked(model: str, sampling: Sampling) -> dict[str, str | int | float]:
    """By the conventions for generative AI."""
    return {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "softserve",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.choice.count": sampling.n,
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)
