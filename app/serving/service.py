"""What happens to a request, whatever transport it came by.

Admit, hold its adapters, tokenize, generate when it is its turn; its ledger records.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.access.caller import ANONYMOUS, Caller
from app.access.usage import UsageBook
from app.adapters.registry import AdapterRegistry, Adapters, ResolvedAdapter
from app.engine.generation import (
    Chat,
    GenerationChunk,
    GenerationRequest,
    PromptSource,
    structure_of,
)
from app.engine.protocol import Engine, Prompt
from app.errors import ContextWindowExceeded, InvalidRequest
from app.serving.admission import Admission, Demand
from app.serving.admitted import Admitted
from app.serving.completing import Completing
from app.serving.generation import Generation
from app.serving.inspection import Distribution, inspect_distribution
from app.serving.ledger import Ledger
from app.serving.prompts import (
    about_how_many_tokens,
    check_can_fit,
    exact_text,
    prompt_of,
    tokenize_exact,
)
from app.serving.run import Run, Unread
from app.serving.shadowing import Again, Copy, Shadowing
from app.settings import Settings
from app.tasks import gather
from app.telemetry.metrics import Metrics
from app.telemetry.traces import phase
from app.versions.splits import Asker
from softserve.schema.controls import Sampling

T = TypeVar("T")


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
        shadowing: Shadowing,
        book: UsageBook,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.registry = registry
        self.admission = admission
        self.shadowing = shadowing
        self.book = book
        self.metrics = metrics
        self.settings = settings

    @asynccontextmanager
    async def generate(
        self,
        caller: Caller,
        request: GenerationRequest,
        sources: Sequence[PromptSource],
    ) -> AsyncIterator[Generation[GenerationChunk]]:
        """Complete prompts made from these. Leaving early aborts what is still running.

        Raises:
            AdapterError: a named adapter is not there, or cannot be loaded.
            InvalidRequest: a prompt does not fit, or the model cannot honour a control.
            NotPermitted: the caller may not do this.
            QuotaExceeded: the caller is over one of its quotas.
            Unavailable: the server is full, starting, draining, its engine has died, or the
                request's time was up before the engine worked for it.
        """
        async with self.admit(caller, request, sources) as admitted:
            with phase("tokenize"):
                prompts = await gather(
                    self.prompt(request, index, source, admitted.adapters)
                    for index, source in enumerate(sources)
                )
            copies = self.copies(request, prompts, admitted.adapters)
            async with aclosing(self.complete(request, prompts, admitted, copies)) as chunks:
                yield Generation(
                    request, self.engine.info.model, admitted.adapters, admitted.ledger, chunks
                )

    async def inspect(
        self,
        caller: Caller,
        request: GenerationRequest,
        source: PromptSource,
        num_tokens: int,
    ) -> Inspection:
        """What the request's controls do to the token after a prompt. Raises as `generate` does."""
        async with self.admit(caller, request, [source]) as admitted:
            prompt = await self.prompt(request, 0, source, admitted.adapters)
            self.check_fit([prompt], request)
            asked = prompt.behind_forced(self.engine.info)
            logprobs = await self.score(request.request_id, asked, admitted)
            distribution = await asyncio.to_thread(
                inspect_distribution, logprobs, request.sampling, num_tokens
            )
            return Inspection(prompt, admitted.adapters, distribution)

    @asynccontextmanager
    async def admit(
        self, caller: Caller, request: GenerationRequest, sources: Sequence[PromptSource]
    ) -> AsyncIterator[Admitted]:
        """Hold a request's adapters, and count it. Its ledger begins. Raises as `generate` does.

        `sources` are what its prompts are made from, which tells about how long they are.
        """
        caller.require_adapter(request.adapter, "adapter")
        caller.require_adapter(request.soft_prompt, "soft_prompt")
        self._check_limits(request, sources)
        self._check_scheduling(caller, request)
        deadline = self._deadline(request)
        until_begun = asyncio.timeout_at(deadline)
        with (
            self.admission.admit(caller, _demand(request, sources)) as ticket,
            self.metrics.requests_in_flight.track_inprogress(),
            closing(Ledger(self.metrics, self.book, caller)) as ledger,
        ):
            self.check_has_encoder_if_asked(request)
            self._check_top_k(request.sampling)
            self._check_stop(request.sampling)
            try:
                async with until_begun, AsyncExitStack() as lease:
                    await self.engine.check_structure(request.sampling)
                    adapters = await lease.enter_async_context(
                        self.registry.lease(
                            request.adapter,
                            request.soft_prompt,
                            caller.may_use_adapter,
                            asker_of(caller, request.session),
                        )
                    )
                    ledger.hold(adapters)
                    yield Admitted(ticket, adapters, ledger, deadline, until_begun, lease)
            except TimeoutError as error:
                if not until_begun.expired():
                    raise
                raise self.admission.timed_out() from error

    async def complete(
        self,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        admitted: Admitted,
        copies: Sequence[Copy] = (),
    ) -> AsyncGenerator[GenerationChunk]:
        """The chunks of a request that is admitted, as they come. Raises as `generate` does."""
        self.check_fit(prompts, request)
        admitted.ledger.begin_generation(self.engine.info.model, request.sampling)
        admitted.ticket.know_prompt_tokens(sum(prompt.num_tokens for prompt in prompts))
        run: Run[GenerationChunk] = self.run(request, admitted)
        completing = run.items(Completing(self.engine, request, prompts, run))
        running = self.shadowing.follow(request, completing, admitted.ledger, copies)
        async with aclosing(running) as chunks:
            async for chunk in chunks:
                yield chunk

    def run(self, request: GenerationRequest, admitted: Admitted) -> Run[T]:
        """What does the work of a request that is admitted."""
        unread: Unread[T] = Unread(self.settings.max_unread_tokens)
        slow_reader = self.settings.slow_reader
        return Run(self.engine, request.request_id, admitted, unread, slow_reader)

    def copies(
        self, request: GenerationRequest, prompts: Sequence[Prompt], adapters: Adapters
    ) -> list[Copy]:
        """What is to run again on shadows of the request's adapters."""
        return [
            copy
            for adapter in adapters.all
            for copy in self.shadowing.copies(
                self.registry.names,
                adapter.name,
                adapter.version.digest,
                partial(self._again, request, prompts, adapters, adapter),
            )
        ]

    @asynccontextmanager
    async def _again(
        self,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        adapters: Adapters,
        shadowed: ResolvedAdapter,
        digest: str,
    ) -> AsyncIterator[Again]:
        """A request again, on another version of one of its adapters."""

        def reference(each: ResolvedAdapter | None) -> str | None:
            if each is None:
                return None
            return each.reference(digest if each is shadowed else each.version.digest)

        lora, soft_prompt = reference(adapters.lora), reference(adapters.soft_prompt)
        async with self.registry.lease(lora, soft_prompt, spare=True) as held:
            again = [
                prompt_of(prompt.index, prompt.token_ids, held, prompt.decoder_ids)
                for prompt in prompts
            ]
            self.check_fit(again, request)
            yield Again(request.sampling, again)

    async def score(
        self, request_id: str, prompt: Prompt, admitted: Admitted
    ) -> NDArray[np.float32]:
        """The log probabilities after a prompt of a request that is admitted, of (vocabulary,)."""
        async with admitted.ticket.place(1, prompt.num_tokens):
            return await self.engine.next_token_logprobs(request_id, prompt)

    def check_serving(self) -> None:
        """Raises `Unavailable` while the server starts or drains, or its engine has died."""
        if self.admission.refusal is not None:
            raise self.admission.refusal

    def check_fit(self, prompts: Sequence[Prompt], request: GenerationRequest) -> None:
        """Raises `ContextWindowExceeded` or `InvalidRequest` for a prompt that does not fit."""
        for prompt in prompts:
            self._check_fits(prompt, request)

    async def prompt(
        self,
        request: GenerationRequest,
        index: int,
        source: PromptSource,
        adapters: Adapters,
        *,
        add_special_tokens: bool = True,
    ) -> Prompt:
        """One of a request's prompts, as the engine takes it. Raises `InvalidRequest`."""
        which = _which(index, request)
        decoder_ids: tuple[int, ...] = ()
        if (start := request.decoder_prompt) is not None:
            decoder_ids = tuple(await self.engine.tokenize(start, add_special_tokens=False))
        if isinstance(source, list):
            self._check_token_ids(source, which, request.prompt_field)
            return prompt_of(index, source, adapters, decoder_ids)
        text = await exact_text(self.engine, source)
        await check_can_fit(self.engine, text, which, request.prompt_field)
        token_ids = await tokenize_exact(
            self.engine, text, source, add_special_tokens=add_special_tokens
        )
        return prompt_of(index, token_ids, adapters, decoder_ids)

    def _deadline(self, request: GenerationRequest) -> float | None:
        seconds = request.timeout_seconds or self.settings.max_timeout_seconds
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    def _check_scheduling(self, caller: Caller, request: GenerationRequest) -> None:
        seconds, most = request.timeout_seconds, self.settings.max_timeout_seconds
        if seconds is not None and most is not None and seconds > most:
            raise InvalidRequest(
                f"timeout_seconds is {seconds:g} and the server's limit is {most:g}: lower it",
                param="timeout_seconds",
            )
        if request.priority and not self.engine.info.schedules_by_priority:
            raise InvalidRequest(
                "priority has no effect on this server: leave it out, or start the server with "
                "--engine-arg scheduling-policy=priority",
                param="priority",
            )
        caller.require_priority(request.priority)

    def _check_limits(self, request: GenerationRequest, sources: Sequence[PromptSource]) -> None:
        stop, limits, field = request.sampling.stop, self.settings, request.prompt_field
        num_messages = sum(len(each.messages) for each in sources if isinstance(each, Chat))
        counts = [
            (field, request.num_prompts, limits.max_prompts, "prompts"),
            (field, num_messages, limits.max_messages, "messages"),
            ("n", request.sampling.n, limits.max_n, "completions of each prompt"),
            ("stop", len(stop), limits.max_stop_strings, "stop strings"),
            ("stop", max(map(len, stop), default=0), limits.max_stop_length, "characters in one"),
        ]
        if (structure := structure_of(request.sampling)) is not None:
            length = len(structure.text)
            counts.append((structure.kind, length, limits.max_structure_length, "characters"))
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
            raise InvalidRequest(
                f"{which} has no tokens: write something in it", param=request.prompt_field
            )
        num_tokens = len(prompt.token_ids) + num_virtual
        if (encoder_window := self.engine.info.encoder_window) is not None:
            self._check_fits_encoder(prompt, request, encoder_window)
            self._check_fits_decoder(prompt, request)
            return
        if (excess := num_tokens + max_new_tokens - window) > 0:
            can_be_shortened = excess < len(prompt.token_ids)
            room = window - num_tokens
            cures = [f"shorten the prompt by {excess:,} tokens"] if can_be_shortened else []
            cures += [f"lower max_new_tokens to {room:,}"] if room > 0 else []
            both = f"shorten the prompt by at least {1 - room:,} tokens and lower max_new_tokens"
            raise ContextWindowExceeded(
                f"{which} has {len(prompt.token_ids):,} tokens"
                + (f", its soft prompt {num_virtual:,}" if num_virtual else "")
                + f" and max_new_tokens is {max_new_tokens:,}; "
                f"the context window is {window:,}: {', or '.join(cures) or both}",
                param=request.prompt_field if can_be_shortened else "max_new_tokens",
            )

    def _check_fits_encoder(self, prompt: Prompt, request: GenerationRequest, window: int) -> None:
        num_tokens, num_virtual = len(prompt.token_ids), prompt.num_virtual_tokens
        if (excess := num_tokens + num_virtual - window) > 0:
            raise ContextWindowExceeded(
                f"{_which(prompt.index, request)} has {num_tokens:,} tokens"
                + (f" and its soft prompt {num_virtual:,}" if num_virtual else "")
                + f"; the encoder's window is {window:,}: shorten the prompt by {excess:,} tokens, "
                "or start the server with a larger --encoder-window",
                param=request.prompt_field,
            )

    def _check_fits_decoder(self, prompt: Prompt, request: GenerationRequest) -> None:
        window, max_new_tokens = self.engine.info.context_window, request.sampling.max_new_tokens
        limit = request.limit_field
        # It starts with a token of its own.
        room = window - 1 - len(prompt.decoder_ids)
        if max_new_tokens > room:
            has = f"decoder_prompt has {len(prompt.decoder_ids):,} tokens, "
            cure = f"lower {limit} to {room:,}" if room > 0 else "shorten decoder_prompt"
            raise ContextWindowExceeded(
                f"{has if prompt.decoder_ids else ''}{limit} is {max_new_tokens:,} and the "
                f"decoder starts with a token of its own; its context window is {window:,}: {cure}",
                param=limit if room > 0 else "decoder_prompt",
            )

    def check_has_encoder_if_asked(self, request: GenerationRequest) -> None:
        """Raises `InvalidRequest` for what only an encoder-decoder model has."""
        if self.engine.info.encoder_window is not None:
            return
        if request.decoder_prompt is not None:
            raise InvalidRequest(
                "decoder_prompt is for encoder-decoder models, and this one has no encoder: put it "
                "at the end of the prompt",
                param="decoder_prompt",
            )
        if request.sampling.num_beams > 1:
            raise InvalidRequest(
                "num_beams is for encoder-decoder models, and this one has no encoder: leave it "
                "out",
                param="num_beams",
            )

    def _check_token_ids(self, token_ids: Sequence[int], which: str, param: str) -> None:
        vocabulary = self.engine.info.vocabulary_size
        if (highest := max(token_ids)) >= vocabulary:
            raise InvalidRequest(
                f"{which} has the token id {highest:,} and the vocabulary has {vocabulary:,} "
                f"tokens: send ids from 0 to {vocabulary - 1:,}",
                param=param,
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


def asker_of(caller: Caller, session: str | None) -> Asker:
    """By what a request keeps to its version of a name that is split."""
    # All who come without a key would get the same version.
    key = None if caller.name == ANONYMOUS.name else caller.name
    return Asker(key, session or None)


def _demand(request: GenerationRequest, sources: Sequence[PromptSource]) -> Demand:
    return Demand(
        num_sequences=request.num_sequences,
        num_prompt_tokens=sum(map(about_how_many_tokens, sources)),
        max_new_tokens=request.sampling.max_new_tokens,
        priority=request.priority,
        field="num_beams" if request.sampling.num_beams > 1 else "n",
    )


def _which(index: int, request: GenerationRequest) -> str:
    return "the prompt" if request.num_prompts == 1 else f"prompt {index}"
