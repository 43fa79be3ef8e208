"""A tiny language model in this process: bytes are its tokens, and it likes to repeat the prompt.

The next token is the prompt's next byte with a probability of about one half; at the prompt's end
it is end-of-sequence. The other half falls on all tokens, low ids more than high ones. So greedy
decoding echoes the prompt, and random sampling strays from it. Penalties change nothing.

With adapters it echoes their digests first: a completion shows which versions it was made with.
Only a LoRA whose matrices B are zero changes nothing, as in any model.

With tokens that its decoder starts with, it echoes these before the prompt, and a colon.

With beams, each completion comes in one piece, at its end; every one after the first, the best,
lacks one more token of the echo's end.

With a structure it echoes that in place of the prompt, of `choice` the first text: a completion
shows that it was asked for. It refuses a regular expression that Python refuses.
"""

import asyncio
import codecs
import json
import random
import re
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from app.engine.generation import (
    Chat,
    GenerationChunk,
    PositionLogprobs,
    Structure,
    TokenLogprob,
    structure_of,
)
from app.engine.protocol import (
    AdapterFiles,
    Architecture,
    Decoding,
    EngineInfo,
    ModuleShape,
    Prompt,
    Weights,
)
from app.errors import AdapterRejected, EngineDied, EngineStarting, InvalidRequest
from app.serving.inspection import inspect_distribution
from app.tasks import end
from softserve.schema.adapters import WEIGHTS_FILE
from softserve.schema.controls import Sampling
from softserve.schema.generation import FinishReason
from tests.fake_openai import FakeOpenAI

END_OF_SEQUENCE = 256
END_OF_SEQUENCE_TEXT = "<|end|>"
VOCABULARY_SIZE = 257
LONG_TEXT_LENGTH = 1000
HIDDEN_SIZE = 8
ARCHITECTURE = Architecture(
    names=frozenset({"echo"}),
    hidden_size=HIDDEN_SIZE,
    modules={
        f"model.layers.0.self_attn.{name}": ModuleShape("linear", HIDDEN_SIZE, HIDDEN_SIZE)
        for name in ("q_proj", "v_proj")
    },
)


class FakeEngine:
    """`Engine` for tests, with a lever for everything that can happen to a real one."""

    def __init__(
        self,
        *,
        context_window: int = 256,
        has_chat_template: bool = True,
        schedules_by_priority: bool = False,
        encoder_window: int | None = None,
        forced_bos_token_id: int | None = None,
    ) -> None:
        self._info = EngineInfo(
            model="echo",
            device="none",
            dtype="float32",
            weights=Weights("fp32", "in this process", linear_bytes=256, other_bytes=4112),
            kv_cache_bytes=1024,
            context_window=context_window,
            vocabulary_size=VOCABULARY_SIZE,
            pauses_completions=True,
            max_running_sequences=8,
            schedules_by_priority=schedules_by_priority,
            lora_kernel=None,
            engine="fake",
            engine_version="1",
            encoder_window=encoder_window,
            forced_bos_token_id=forced_bos_token_id,
        )
        self._has_chat_template = has_chat_template
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._may_generate = asyncio.Event()
        self._may_generate.set()
        self._may_score = asyncio.Event()
        self._may_score.set()
        self._may_load = asyncio.Event()
        self._may_load.set()
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._started = False
        self._died = False
        self._failure: tuple[int, Exception] | None = None
        self._aborting = False
        self._aborted: dict[str, asyncio.Event] = {}
        self.start_failure: Exception | None = None
        self.num_stops = 0
        self.loaded: dict[str, AdapterFiles] = {}
        self.without_effect: set[str] = set()
        self.tokenized: list[str] = []
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.rejected: dict[str, str] = {}
        self._running: list[Prompt] = []
        self.open: list[str] = []
        self.paused: dict[str, asyncio.Event] = {}
        self.num_resumes = 0
        self.finished: list[str] = []
        self.left_early: list[str] = []

    # What a test does to the engine.

    def hold_start(self) -> None:
        self._may_start.clear()

    def release_start(self) -> None:
        self._may_start.set()

    def hold(self, *, scores: bool = True) -> None:
        """Let no completion go on, and no score come."""
        self._may_generate.clear()
        if scores:
            self._may_score.clear()

    def release(self) -> None:
        self._may_generate.set()
        self._may_score.set()

    def hold_loads(self) -> None:
        """Let no adapter finish loading."""
        self._may_load.clear()

    def release_loads(self) -> None:
        self._may_load.set()

    def stall(self) -> None:
        """Answer no ping and no abort."""
        self._may_answer.clear()

    def answer(self) -> None:
        self._may_answer.set()

    def reject(self, digest: str, reason: str) -> None:
        """Refuse to load a version."""
        self.rejected[digest] = reason

    def fail(self, error: Exception, *, at_chunk: int = 0) -> None:
        """Raise `error` in place of chunk `at_chunk` of every prompt from now on."""
        self._failure = at_chunk, error

    def die(self) -> None:
        self._died = True
        self._release_all()

    # What the server does with the engine.

    @property
    def info(self) -> EngineInfo:
        if not self._started:
            raise EngineStarting
        return self._info

    @property
    def architecture(self) -> Architecture:
        if not self._started:
            raise EngineStarting
        return ARCHITECTURE

    @property
    def died(self) -> bool:
        return self._died

    async def ping(self, *, is_busy: bool) -> None:
        await self._may_answer.wait()

    async def start(self) -> None:
        await self._may_start.wait()
        if self.start_failure is not None:
            raise self.start_failure
        self._started = True

    async def stop(self) -> None:
        self.num_stops += 1

    @property
    def openai(self) -> FakeOpenAI:
        return FakeOpenAI(self)

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset({END_OF_SEQUENCE_TEXT})

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.tokenized.append(text)
        return list(text.encode())

    async def fewest_tokens(self, text: str) -> int:
        return len(text) if len(text) > LONG_TEXT_LENGTH else 0

    def chat_prompt(self, chat: Chat) -> str:
        if not self._has_chat_template:
            raise InvalidRequest("this model has no chat template", param=chat.asked_by)
        return "".join(f"[{each.role}]{each.content}" for each in chat.messages) + "[assistant]"

    async def check_structure(self, sampling: Sampling) -> None:
        if sampling.regex is not None:
            try:
                re.compile(sampling.regex)
            except re.error as error:
                raise InvalidRequest(f"regex cannot be honoured: {error}", param="regex") from error

    def token_text(self, token_id: int) -> str:
        return token_text(token_id)

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        assert adapter.digest not in self.loaded, "it is loaded already"
        self.loads.append(adapter.digest)
        await self._may_load.wait()
        await asyncio.sleep(0)
        if adapter.digest in self.rejected:
            raise AdapterRejected(self.rejected[adapter.digest])
        assert adapter.folder.is_dir(), "its files are gone"
        self.loaded[adapter.digest] = adapter
        if not _has_effect(adapter):
            self.without_effect.add(adapter.digest)

    async def unload_adapter(self, adapter: AdapterFiles) -> None:
        running = {digest for prompt in self._running for digest in _adapters_of(prompt)}
        assert adapter.digest not in running, "a running prompt uses it"
        self.unloads.append(adapter.digest)
        await asyncio.sleep(0)
        del self.loaded[adapter.digest]

    async def pause(self, request_id: str, prompt_index: int) -> None:
        if (name := f"{request_id}-{prompt_index}") in self.open:
            self.paused.setdefault(name, asyncio.Event())

    async def resume(self, request_id: str, prompt_index: int) -> None:
        if resumed := self.paused.pop(f"{request_id}-{prompt_index}", None):
            resumed.set()
            self.num_resumes += 1

    async def abort(self, request_id: str, prompt_index: int) -> None:
        if (aborted := self._aborted.get(f"{request_id}-{prompt_index}")) is not None:
            aborted.set()

    async def abort_all(self) -> None:
        await self._may_answer.wait()
        self._aborting = True
        self._release_all()

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        self._check_loaded(prompt)
        await self._go_on(0, self._may_score)
        return next_token_logprobs(self._echo(prompt)[0])

    async def generate(
        self, request_id: str, prompt: Prompt, decoding: Decoding
    ) -> AsyncGenerator[GenerationChunk]:
        name = f"{request_id}-{prompt.index}"
        self._check_loaded(prompt)
        self._running.append(prompt)
        self.open.append(name)
        aborted = self._aborted[name] = asyncio.Event()
        echo = self._echo(prompt, structure_of(decoding.sampling))
        running = [Completion(prompt, echo, decoding, i) for i in range(decoding.sampling.n)]
        num_chunks = 0
        try:
            while running:
                for completion in list(running):
                    if (resumed := self.paused.get(name)) is not None:
                        await _first_of(resumed, aborted)
                    await self._go_on(num_chunks, self._may_generate, aborted)
                    ends = self._aborting or aborted.is_set()
                    chunk = completion.abort() if ends else completion.step()
                    num_chunks += 1
                    if chunk.finish_reason is not None:
                        running.remove(completion)
                    if (piece := completion.piece(chunk)) is not None:
                        yield piece
            self.finished.append(name)
        finally:
            if running:
                self.left_early.append(name)
            self.paused.pop(name, None)
            self.open.remove(name)
            del self._aborted[name]
            self._running.remove(prompt)

    def _release_all(self) -> None:
        self.release()
        for resumed in self.paused.values():
            resumed.set()

    def _check_loaded(self, prompt: Prompt) -> None:
        for digest in _adapters_of(prompt):
            assert digest in self.loaded, f"{digest} is not loaded"

    def _echo(self, prompt: Prompt, structure: Structure | None = None) -> list[int]:
        marks = []
        if prompt.lora is not None and prompt.lora not in self.without_effect:
            marks.append(adapter_mark(prompt.lora))
        if prompt.soft_prompt is not None:
            marks.append(adapter_mark(prompt.soft_prompt, prompt.task))
        start = [*prompt.decoder_ids, *b":"] if prompt.decoder_ids else []
        return [*"".join(marks).encode(), *start, *(_said(structure) or prompt.token_ids)]

    async def _go_on(
        self, num_chunks: int, permission: asyncio.Event, aborted: asyncio.Event | None = None
    ) -> None:
        await _first_of(permission, aborted or permission)
        if self._died:
            raise EngineDied("the engine has died: try again")
        if self._failure is not None and self._failure[0] == num_chunks:
            raise self._failure[1]
        await asyncio.sleep(0)


class Completion:
    """One completion on its way. Text that may begin a stop string is held back."""

    def __init__(self, prompt: Prompt, echo: list[int], decoding: Decoding, index: int) -> None:
        sampling = decoding.sampling
        self._prompt, self._decoding, self._index = prompt, decoding, index
        self._has_beams = sampling.num_beams > 1
        self._echo = echo[: len(echo) - index] if self._has_beams else echo
        seed = None if sampling.seed is None else f"{sampling.seed}/{prompt.index}/{index}"
        self._random = random.Random(seed)  # noqa: S311 (it samples tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._num_sent = 0
        self._num_tokens = 0
        self._chunks: list[GenerationChunk] = []

    def step(self) -> GenerationChunk:
        """One more token."""
        expected = self._expected()
        token = self._sample(expected)
        self._num_tokens += 1
        if token != END_OF_SEQUENCE:
            self._text += self._decoder.decode(bytes([token]))
        reason = self._finish_reason(token)
        if reason is not None:
            self._text += self._decoder.decode(b"", final=True)
        if self._cut_at_stop_string():
            reason = "stop"
        held_back = 0 if reason else max(map(len, self._decoding.sampling.stop), default=1) - 1
        return self._chunk(held_back, reason, (token,), (self._logprobs(expected, token),))

    def piece(self, chunk: GenerationChunk) -> GenerationChunk | None:
        """What is sent when this chunk is made: with beams all chunks as one, after the last."""
        if not self._has_beams:
            return chunk
        self._chunks.append(chunk)
        if chunk.finish_reason is None:
            return None
        return replace(
            chunk,
            text="".join(each.text for each in self._chunks),
            token_ids=tuple(chain.from_iterable(each.token_ids for each in self._chunks)),
            logprobs=tuple(chain.from_iterable(each.logprobs for each in self._chunks)),
        )

    def abort(self) -> GenerationChunk:
        return self._chunk(0, "abort", (), ())

    @property
    def _may_end(self) -> bool:
        sampling = self._decoding.sampling
        stops_there = not sampling.ignore_eos or END_OF_SEQUENCE_TEXT in sampling.stop
        return stops_there and self._num_tokens >= sampling.min_new_tokens

    def _expected(self) -> int:
        if self._num_tokens >= len(self._echo) and self._may_end:
            return END_OF_SEQUENCE
        return self._echo[self._num_tokens % len(self._echo)]

    def _sample(self, expected: int) -> int:
        sampling = self._decoding.sampling
        filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        weights = final_probabilities(expected, *filters)
        num_candidates = VOCABULARY_SIZE if self._may_end else END_OF_SEQUENCE
        return self._random.choices(range(num_candidates), weights[:num_candidates])[0]

    def _finish_reason(self, token: int) -> FinishReason | None:
        if token == END_OF_SEQUENCE:
            return "stop"
        return "length" if self._num_tokens == self._decoding.sampling.max_new_tokens else None

    def _cut_at_stop_string(self) -> bool:
        sampling = self._decoding.sampling
        if self._num_tokens < sampling.min_new_tokens:
            return False
        starts = [start for stop in sampling.stop if (start := self._text.find(stop)) >= 0]
        if starts:
            self._text = self._text[: min(starts)]
        return bool(starts)

    def _logprobs(self, expected: int, token: int) -> PositionLogprobs:
        logprobs = next_token_logprobs(expected)
        best = np.argsort(-logprobs, kind="stable")[: self._decoding.logprobs or 0]
        return PositionLogprobs(
            chosen=_token_logprob(logprobs, token),
            top=tuple(_token_logprob(logprobs, int(token_id)) for token_id in best),
        )

    def _chunk(
        self,
        held_back: int,
        reason: FinishReason | None,
        token_ids: tuple[int, ...],
        logprobs: tuple[PositionLogprobs, ...],
    ) -> GenerationChunk:
        until = max(self._num_sent, len(self._text) - held_back)
        text, self._num_sent = self._text[self._num_sent : until], until
        return GenerationChunk(
            prompt_index=self._prompt.index,
            index=self._index,
            text=text,
            token_ids=token_ids,
            num_prompt_tokens=self._prompt.num_tokens,
            num_cached_tokens=0,
            queue_seconds=0.0,
            logprobs=logprobs if self._decoding.logprobs is not None else (),
            finish_reason=reason,
            num_virtual_tokens=self._prompt.num_virtual_tokens,
        )


async def _first_of(*events: asyncio.Event) -> None:
    if any(event.is_set() for event in events):
        return
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(waiting)


def adapter_mark(digest: str, task: int | None = None) -> str:
    """What a completion begins with that was made with this version, or this task of it."""
    return f"<{digest[:8]}>" if task is None else f"<{digest[:8]}#{task}>"


def _said(structure: Structure | None) -> list[int] | None:
    match structure:
        case None:
            return None
        case Structure(kind="choice", text=text):
            return [*json.loads(text)[0].encode()]
        case _:
            return [*structure.text.encode()]


def _adapters_of(prompt: Prompt) -> list[str]:
    return [digest for digest in (prompt.lora, prompt.soft_prompt) if digest is not None]


def _has_effect(adapter: AdapterFiles) -> bool:
    """Whether a soft prompt, or any matrix B of a LoRA that is not all zero."""
    tensors = load_file(adapter.folder / WEIGHTS_FILE)
    return adapter.kind == "soft_prompt" or any(
        bool(tensor.any())
        for name, tensor in tensors.items()
        if re.search("lora_(embedding_)?B", name)
    )


def next_token_logprobs(expected: int) -> NDArray[np.float32]:
    """Half of the probability on the expected token, half on all, in proportion to 1 / (1 + id)."""
    probabilities = 1.0 / np.arange(1, VOCABULARY_SIZE + 1)
    probabilities /= 2 * probabilities.sum()
    probabilities[expected] += 0.5
    logprobs: NDArray[np.float32] = np.log(probabilities).astype(np.float32)
    return logprobs


@lru_cache(maxsize=1024)
def final_probabilities(
    expected: int, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> list[float]:
    """What a token is sampled with after all filters, by token id."""
    sampling = Sampling(
        greedy=temperature == 0.0, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    distribution = inspect_distribution(next_token_logprobs(expected), sampling, VOCABULARY_SIZE)
    by_id = {fate.token_id: fate.final for fate in distribution.tokens}
    return [by_id[token_id] for token_id in range(VOCABULARY_SIZE)]


def token_text(token_id: int) -> str:
    return "" if token_id == END_OF_SEQUENCE else bytes([token_id]).decode(errors="replace")


def _token_logprob(logprobs: NDArray[np.float32], token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, token_text(token_id), float(logprobs[token_id]))
