"""Beam searches in vLLM, which has none for encoder-decoder models.

In each step every beam is a request for one token, which has the beam's tokens for those that the
decoder starts with; all of a search run at a time, and go by its prompt's name.

This module imports vLLM, so it is imported when the engine starts.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.sampling_params import RequestOutputKind, SamplingParams

from app.engine.beam_search import Beam, BeamSearch, Candidates
from app.engine.generation import GenerationChunk, PositionLogprobs, TokenLogprob
from app.engine.model.decoder_tokens import DecoderTokens
from app.engine.protocol import Decoding, Prompt
from app.engine.vllm.detokenizer import text_of_completion, texts_of_tokens
from app.engine.vllm.outputs import queue_seconds_of
from app.tasks import end, gather
from softserve.schema.generation import FinishReason

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

# Of a request: its id, prompt, parameters and priority.
Outputs = Callable[[str, Prompt, SamplingParams, int], AsyncGenerator["RequestOutput"]]


@dataclass
class _Running:
    """A search that runs. `told` has, for each step, the candidates of each beam, if asked for."""

    request_id: str
    prompt: Prompt
    decoding: Decoding
    search: BeamSearch
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    began_at: float = field(default_factory=time.perf_counter)
    queue_seconds: float = 0.0
    told: list[list[Candidates]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        return self.request_id, self.prompt.index


class Beams:
    """The beam searches of an engine."""

    def __init__(
        self,
        outputs: Outputs,
        tokenizer: Any,
        vocabulary_size: int,
        decoder: DecoderTokens,
        ends: Collection[int],
    ) -> None:
        """`decoder` has what every decoder starts with, `ends` are the tokens that end one."""
        self._outputs = outputs
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._decoder = decoder
        self._ends = frozenset(ends)
        self._running: dict[tuple[str, int], _Running] = {}

    async def generate(
        self, request_id: str, prompt: Prompt, decoding: Decoding
    ) -> AsyncGenerator[GenerationChunk]:
        """The completions of a prompt, each in one chunk, once they are known."""
        sampling = decoding.sampling
        decoder = self._decoder
        ends = frozenset[int]() if sampling.ignore_eos else self._ends
        search = BeamSearch(
            sampling,
            ends,
            (decoder.start, *prompt.decoder_ids),
            forced_first=None if prompt.decoder_ids else decoder.forced_bos,
            forced_last=() if sampling.ignore_eos else decoder.forced_eos,
        )
        running = _Running(request_id, prompt, decoding, search)
        self._running[running.key] = running
        try:
            await self._run(running)
        finally:
            del self._running[running.key]
        for index, beam in enumerate(_filled(search.best(sampling.n), sampling.n)):
            yield self._chunk(running, index, beam)

    def abort(self, request_id: str, prompt_index: int) -> None:
        """End the search for a prompt with what it has, if one runs."""
        if (running := self._running.get((request_id, prompt_index))) is not None:
            running.aborted.set()

    def abort_all(self) -> None:
        """End all of them, with what they have."""
        for running in self._running.values():
            running.aborted.set()

    async def _run(self, running: _Running) -> None:
        search = running.search
        while not search.is_done:
            outputs = await _unless(running.aborted, self._step(running))
            if running.aborted.is_set():
                search.stop()
                return
            candidates = [_candidates(output) for output in outputs]
            if search.length == 0:
                running.queue_seconds = queue_seconds_of(outputs[0])
            if running.decoding.logprobs is not None:
                running.told.append(candidates)
            search.step(candidates)

    async def _step(self, running: _Running) -> "Sequence[RequestOutput]":
        """vLLM's outputs for the next token of each beam."""
        search, sampling = running.search, running.decoding.sampling
        wanted = max(search.num_candidates, running.decoding.logprobs or 0)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=min(wanted, self._vocabulary_size),
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # An end that is forced where a request is full comes only where the completion is.
            ignore_eos=sampling.ignore_eos or search.length + 1 < sampling.max_new_tokens,
        )
        return await gather(self._next(running, beam, params) for beam in search.beams)

    async def _next(self, running: _Running, beam: Beam, params: SamplingParams) -> "RequestOutput":
        prompt = running.prompt
        asked = replace(prompt, decoder_ids=(*prompt.decoder_ids, *beam.token_ids))
        outputs = self._outputs(running.request_id, asked, params, running.decoding.priority)
        async with aclosing(outputs):
            output = await anext(outputs)
        if not output.outputs[0].token_ids:
            # The engine has ended it, as it ends any other.
            running.aborted.set()
        return output

    def _chunk(self, running: _Running, index: int, beam: Beam) -> GenerationChunk:
        prompt, search = running.prompt, running.search
        ends = search.ends
        return GenerationChunk(
            prompt_index=prompt.index,
            index=index,
            text=text_of_completion(self._tokenizer, search.decoder_ids, beam.token_ids, ends),
            token_ids=beam.token_ids,
            num_prompt_tokens=prompt.num_tokens,
            num_cached_tokens=0,
            queue_seconds=running.queue_seconds,
            logprobs=self._logprobs(running, beam),
            finish_reason="abort" if running.aborted.is_set() else _finish_reason(beam, search),
            num_virtual_tokens=prompt.num_virtual_tokens,
            # The first token is known when the last one is.
            prefill_seconds=time.perf_counter() - running.began_at - running.queue_seconds,
        )

    def _logprobs(self, running: _Running, beam: Beam) -> tuple[PositionLogprobs, ...]:
        """What the model gave where the beam went; nothing where that was not asked for."""
        return tuple(
            self._position(token_id, candidates[place], running.decoding.logprobs or 0)
            for token_id, place, candidates in zip(
                beam.token_ids, beam.path, running.told, strict=False
            )
        )

    def _position(
        self, chosen_id: int, candidates: Candidates, num_logprobs: int
    ) -> PositionLogprobs:
        token_ids, logprobs = candidates.token_ids.tolist(), candidates.logprobs.tolist()
        places = [token_ids.index(chosen_id), *range(num_logprobs)]
        texts = texts_of_tokens(self._tokenizer, [token_ids[place] for place in places])
        chosen, *top = (
            TokenLogprob(token_ids[place], text, logprobs[place])
            for place, text in zip(places, texts, strict=True)
        )
        return PositionLogprobs(chosen, tuple(top))


async def _unless(aborted: asyncio.Event, step: Any) -> "Sequence[RequestOutput]":
    """The outputs of a step; of one that is ended, because it was aborted, there are none."""
    stepping = asyncio.create_task(step)
    waiting = asyncio.create_task(aborted.wait())
    try:
        await asyncio.wait([stepping, waiting], return_when=asyncio.FIRST_COMPLETED)
        return stepping.result() if stepping.done() else []
    finally:
        await end([stepping, waiting])


def _candidates(output: "RequestOutput") -> Candidates:
    """The most likely next tokens, the best first; one that is forced comes behind them."""
    scores = output.outputs[0].logprobs
    # The chosen token comes first, and once more at its rank if it is among the best.
    token_ids = [*scores.token_ids[1:], scores.token_ids[0]]
    logprobs = [*scores.logprobs[1:], scores.logprobs[0]]
    count = len(token_ids) - (scores.token_ids[0] in scores.token_ids[1:])
    return Candidates(
        np.asarray(token_ids[:count], dtype=np.int64),
        np.asarray(logprobs[:count], dtype=np.float32),
    )


def _finish_reason(beam: Beam, search: BeamSearch) -> FinishReason:
    last = beam.token_ids[-1]
    is_forced = search.is_full(beam) and last in search.forced_last
    return "stop" if last in search.ends and not is_forced else "length"


def _filled(beams: list[Beam], number: int) -> list[Beam]:
    """So many: there are fewer where a search was aborted at once, or all tokens were forced."""
    return [*beams, *(beams[-1:] or [Beam()]) * (number - len(beams))]
