"""What happens to a request, whatever transport it came by.

Admit, resolve its adapters, tokenize, generate, record.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from app.adapters.registry import AdapterRegistry, Adapters
from app.engine.generation import AS_IT_IS, GenerationChunk, GenerationRequest, Place, PromptFormat
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import ContextWindowExceeded, InvalidRequest
from app.serving.admission import Admission
from app.serving.inspection import Distribution, inspect_distribution
from app.serving.merging import merge
from app.telemetry.metrics import Metrics
from softserve.schema.controls import Sampling
from softserve.schema.server import Limits


@dataclass(frozen=True, slots=True)
class InspectionRequest:
    """A prompt whose next-token distribution is asked for, under these controls."""

    request_id: str
    prompt: str
    sampling: Sampling
    num_tokens: int
    format: PromptFormat = AS_IT_IS
    adapter: str | None = None
    soft_prompt: str | None = None


# Makes the prompts of a request that holds these adapters.
Encode = Callable[[Adapters], Awaitable[list[Prompt]]]


class Service:
    """The operations of the server."""

    def __init__(
        self,
        engine: Engine,
        registry: AdapterRegistry,
        admission: Admission,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.admission = admission
        self.metrics = metrics
        self.limits = limits

    async def generate(
        self, request: GenerationRequest, encode: Encode | None = None
    ) -> AsyncGenerator[GenerationChunk]:
        """Yield the chunks of all completions as they come. Leaving early frees their place.

        `encode` makes the prompts in place of the request's texts, one for each of them.

        Raises:
            AdapterError: a named adapter is not there, or cannot be loaded.
            InvalidRequest: a prompt does not fit, or the model cannot honour a control.
            Unavailable: the server is full, starting, draining, or its engine has died.
        """
        async with self.holding(request) as adapters:
            prompts = await (encode or partial(self._encode_all, request))(adapters)
            for prompt in prompts:
                self._check_fits(prompt, request.sampling, len(prompts))
            decoding = Decoding(request.sampling, request.logprobs)
            sources = [
                self.engine.generate(request.request_id, prompt, decoding) for prompt in prompts
            ]
            observe = self._observer()
            async with aclosing(sources[0] if len(sources) == 1 else merge(sources)) as chunks:
                async for chunk in chunks:
                    observe(chunk)
                    yield chunk

    async def inspect(self, request: InspectionRequest) -> tuple[Prompt, Distribution]:
        """The next-token distribution after a prompt. Raises as `generate` does."""
        async with (
            self._admitted(1),
            self.registry.lease(request.adapter, request.soft_prompt) as adapters,
        ):
            self._check_top_k(request.sampling)
            prompt = await self._encode(0, request.prompt, request.format, adapters)
            self._check_fits(prompt, request.sampling, 1)
            logprobs = await self.engine.next_token_logprobs(request.request_id, prompt)
            return prompt, await asyncio.to_thread(
                inspect_distribution, logprobs, request.sampling, request.num_tokens
            )

    @asynccontextmanager
    async def holding(self, request: GenerationRequest) -> AsyncIterator[Adapters]:
        """A place for the request, and its adapters. Raises as `generate` does."""
        self._check_limits(request)
        async with (
            self._admitted(request.num_sequences),
            self.registry.lease(request.adapter, request.soft_prompt) as adapters,
        ):
            self._check_top_k(request.sampling)
            yield adapters

    def check_serving(self) -> None:
        """Raises `Unavailable` while the server starts or drains, or its engine has died."""
        if self.admission.refusal is not None:
            raise self.admission.refusal

    @asynccontextmanager
    async def _admitted(self, num_sequences: int) -> AsyncIterator[None]:
        """Hold a place, and show that it is held."""
        with (
            self.admission.slot(num_sequences),
            self.metrics.requests_in_flight.track_inprogress(),
            self.metrics.request_duration.time(),
        ):
            yield

    async def _encode_all(self, request: GenerationRequest, adapters: Adapters) -> list[Prompt]:
        return await asyncio.gather(
            *(
                self._encode(index, text, request.format, adapters)
                for index, text in enumerate(request.prompts)
            )
        )

    async def _encode(
        self, index: int, text: str, format: PromptFormat, adapters: Adapters
    ) -> Prompt:
        return prompt_of(index, await tokenize(self.engine, text, format), adapters)

    def _check_limits(self, request: GenerationRequest) -> None:
        stop, limits = request.sampling.stop, self.limits
        counts = [
            ("prompt", len(request.prompts), limits.max_prompts, "prompts"),
            ("n", request.sampling.n, limits.max_n, "completions of each prompt"),
            ("stop", len(stop), limits.max_stop_strings, "stop strings"),
            ("stop", max(map(len, stop), default=0), limits.max_stop_length, "characters in one"),
        ]
        for param, count, limit, what in counts:
            if count > limit:
                raise InvalidRequest(
                    f"{param} asks for {count:,} {what} and the limit is {limit:,}: send fewer",
                    param=param,
                )

    def _check_fits(self, prompt: Prompt, sampling: Sampling, num_prompts: int) -> None:
        which = "the prompt" if num_prompts == 1 else f"prompt {prompt.index}"
        window = self.engine.info.context_window
        num_virtual, max_new_tokens = prompt.num_virtual_tokens, sampling.max_new_tokens
        if not prompt.token_ids:
            raise InvalidRequest(f"{which} has no tokens: write something in it", param="prompt")
        num_tokens = len(prompt.token_ids) + num_virtual
        if (excess := num_tokens + max_new_tokens - window) > 0:
            shorter = f"shorten the prompt by {excess:,} tokens"
            if excess < max_new_tokens:
                shorter += f", or lower max_new_tokens to {max_new_tokens - excess:,}"
            elif num_tokens < window:
                shorter += f", or lower max_new_tokens to {window - num_tokens:,}"
            raise ContextWindowExceeded(
                f"{which} has {len(prompt.token_ids):,} tokens"
                + (f", its soft prompt {num_virtual:,}" if num_virtual else "")
                + f" and max_new_tokens is {max_new_tokens:,}; "
                f"the context window is {window:,}: {shorter}",
                param="prompt",
            )

    def _check_top_k(self, sampling: Sampling) -> None:
        vocabulary = self.engine.info.vocabulary_size
        if sampling.top_k is not None and sampling.top_k > vocabulary:
            raise InvalidRequest(
                f"top_k is {sampling.top_k:,} and the vocabulary has {vocabulary:,} tokens: "
                "lower top_k, or leave it out",
                param="top_k",
            )

    def _observer(self) -> Callable[[GenerationChunk], None]:
        """A function that records the latencies and token counts of one request's chunks."""
        started = time.perf_counter()
        last_token_at: dict[Place, float] = {}
        prompts_seen: set[int] = set()

        def observe(chunk: GenerationChunk) -> None:
            now = time.perf_counter()
            if chunk.prompt_index not in prompts_seen:
                prompts_seen.add(chunk.prompt_index)
                self.metrics.prompt_tokens.inc(chunk.num_prompt_tokens)
                self.metrics.cached_tokens.inc(chunk.num_cached_tokens)
            num_tokens = len(chunk.token_ids)
            if num_tokens == 0:
                return
            self.metrics.completion_tokens.inc(num_tokens)
            if not last_token_at:
                self.metrics.time_to_first_token.observe(now - started)
            if chunk.place in last_token_at:
                self.metrics.inter_token_latency.observe(
                    (now - last_token_at[chunk.place]) / num_tokens
                )
            last_token_at[chunk.place] = now

        return observe


async def tokenize(engine: Engine, text: str, format: PromptFormat) -> list[int]:
    """The token ids of a text in this format. Raises `InvalidRequest`."""
    if format.use_chat_template:
        chat = engine.chat_prompt(text, format.system)
        return await engine.tokenize(chat, add_special_tokens=False)
    return await engine.tokenize(text)


def prompt_of(index: int, token_ids: list[int], adapters: Adapters) -> Prompt:
    """A prompt for the engine, with the adapters that the request holds."""
    return Prompt(
        index,
        token_ids,
        lora=adapters.lora_digest,
        soft_prompt=adapters.soft_prompt_digest,
        num_virtual_tokens=adapters.num_virtual_tokens,
    )
