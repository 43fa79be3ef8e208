"""What happens to a request, whatever transport it came by.

Admit, hold its adapters, tokenize, generate; its ledger records.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass

from app.adapters.registry import AdapterRegistry, Adapters
from app.engine.generation import GenerationChunk, GenerationRequest, PromptStyle
from app.engine.protocol import Decoding, Engine, Prompt
from app.errors import ContextWindowExceeded, InvalidRequest
from app.serving.admission import Admission
from app.serving.generation import Generation
from app.serving.inspection import Distribution, inspect_distribution
from app.serving.ledger import Ledger
from app.serving.merging import merge
from app.tasks import gather
from app.telemetry.metrics import Metrics
from softserve.schema.controls import Sampling
from softserve.schema.server import Limits


@dataclass(frozen=True, slots=True)
class Inspection:
    """The next-token distribution after a prompt, and the adapters that it was made with."""

    prompt: Prompt
    adapters: Adapters
    distribution: Distribution


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

    @asynccontextmanager
    async def generate(
        self, request: GenerationRequest, texts: Sequence[str], style: PromptStyle
    ) -> AsyncIterator[Generation]:
        """Complete these texts. Leaving early aborts what is still running.

        Raises:
            AdapterError: a named adapter is not there, or cannot be loaded.
            InvalidRequest: a prompt does not fit, or the model cannot honour a control.
            Unavailable: the server is full, starting, draining, or its engine has died.
        """
        async with self.admit(request) as (adapters, ledger):
            prompts = await gather(
                self._prompt(request, index, text, style, adapters)
                for index, text in enumerate(texts)
            )
            async with aclosing(self.complete(request, prompts, ledger)) as chunks:
                yield Generation(request, self.engine.info.model, adapters, ledger, chunks)

    async def inspect(
        self, request: GenerationRequest, text: str, style: PromptStyle, num_tokens: int
    ) -> Inspection:
        """What the request's controls do to the token after a text. Raises as `generate` does."""
        async with self.admit(request) as (adapters, _):
            prompt = await self._prompt(request, 0, text, style, adapters)
            self._check_fits(prompt, request)
            logprobs = await self.engine.next_token_logprobs(request.request_id, prompt)
            distribution = await asyncio.to_thread(
                inspect_distribution, logprobs, request.sampling, num_tokens
            )
            return Inspection(prompt, adapters, distribution)

    @asynccontextmanager
    async def admit(self, request: GenerationRequest) -> AsyncIterator[tuple[Adapters, Ledger]]:
        """Hold a request's slots and adapters. Its ledger begins. Raises as `generate` does."""
        self._check_limits(request)
        with (
            self.admission.slot(request.num_sequences),
            self.metrics.requests_in_flight.track_inprogress(),
            closing(Ledger(self.metrics)) as ledger,
        ):
            self._check_top_k(request.sampling)
            self._check_stop(request.sampling)
            async with self.registry.lease(request.adapter, request.soft_prompt) as adapters:
                ledger.hold(adapters.names)
                yield adapters, ledger

    async def complete(
        self, request: GenerationRequest, prompts: Sequence[Prompt], ledger: Ledger
    ) -> AsyncGenerator[GenerationChunk]:
        """The chunks of a request that is admitted, as they come. Raises as `generate` does."""
        for prompt in prompts:
            self._check_fits(prompt, request)
        decoding = Decoding(request.sampling, request.logprobs)
        sources = [self.engine.generate(request.request_id, prompt, decoding) for prompt in prompts]
        async with aclosing(sources[0] if len(sources) == 1 else merge(sources)) as chunks:
            async for chunk in chunks:
                ledger.add(chunk)
                yield chunk

    def check_serving(self) -> None:
        """Raises `Unavailable` while the server starts or drains, or its engine has died."""
        if self.admission.refusal is not None:
            raise self.admission.refusal

    async def _prompt(
        self,
        request: GenerationRequest,
        index: int,
        text: str,
        style: PromptStyle,
        adapters: Adapters,
    ) -> Prompt:
        exact = exact_text(self.engine, text, style)
        await check_can_fit(self.engine, exact, _which(index, request), "prompt")
        return prompt_of(index, await tokenize_exact(self.engine, exact, style), adapters)

    def _check_limits(self, request: GenerationRequest) -> None:
        stop, limits = request.sampling.stop, self.limits
        counts = [
            ("prompt", request.num_prompts, limits.max_prompts, "prompts"),
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

    def _check_fits(self, prompt: Prompt, request: GenerationRequest) -> None:
        which = _which(prompt.index, request)
        window = self.engine.info.context_window
        num_virtual, max_new_tokens = prompt.num_virtual_tokens, request.sampling.max_new_tokens
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

    def _check_stop(self, sampling: Sampling) -> None:
        special_tokens = self.engine.special_tokens
        for stop in sampling.stop:
            held = [token for token in special_tokens if token in stop]
            if held and stop not in special_tokens:
                raise InvalidRequest(
                    f"stop has {stop!r}, which never comes: the text of a completion leaves the "
                    f"special token {max(held, key=len)} out; give that alone to stop there",
                    param="stop",
                )


def exact_text(engine: Engine, text: str, style: PromptStyle) -> str:
    """What the tokens are made from, the chat template's text included. Raises `InvalidRequest`."""
    return engine.chat_prompt(text, style.system) if style.use_chat_template else text


async def tokenize(engine: Engine, text: str, style: PromptStyle) -> list[int]:
    """The token ids of a text in this style. Raises `InvalidRequest`."""
    return await tokenize_exact(engine, exact_text(engine, text, style), style)


async def tokenize_exact(engine: Engine, exact: str, style: PromptStyle) -> list[int]:
    # A chat template has all special tokens.
    return await engine.tokenize(exact, add_special_tokens=not style.use_chat_template)


async def check_can_fit(engine: Engine, text: str, which: str, param: str) -> None:
    """Raises `ContextWindowExceeded` where it is certain before the text is tokenized."""
    window = engine.info.context_window
    if (excess := await engine.fewest_tokens(text) - window) > 0:
        raise ContextWindowExceeded(
            f"{which} has {window + excess:,} tokens or more; the context window is {window:,}: "
            f"shorten the {param} by at least {excess:,} tokens",
            param=param,
        )


def prompt_of(index: int, token_ids: list[int], adapters: Adapters) -> Prompt:
    """A prompt for the engine, with the adapters that the request holds."""
    return Prompt(
        index,
        token_ids,
        lora=adapters.lora_digest,
        soft_prompt=adapters.soft_prompt_digest,
        num_virtual_tokens=adapters.num_virtual_tokens,
        task=adapters.task,
    )


def _which(index: int, request: GenerationRequest) -> str:
    return "the prompt" if request.num_prompts == 1 else f"prompt {index}"
