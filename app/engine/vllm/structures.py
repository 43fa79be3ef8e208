"""Structures are tried before vLLM compiles them inside the engine, where all would wait for one.

The trial runs in a process that can be killed (`structure_trial.py`), which starts with the first
structure that is asked for. What is known of a structure is kept: most requests bring known ones.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from pathlib import Path
from typing import Any

from app.engine.generation import Structure, structure_of
from app.engine.vllm.tokenizer import Tokenizer
from app.errors import InvalidRequest, ServerFull
from softserve.schema.controls import Sampling

TRIAL = Path(__file__).with_name("structure_trial.py")
# A trial may use much less of a processor: this is for a machine that has much else to do.
MAX_SECONDS = 30.0
TOO_LONG = "it takes too long to compile: make it simpler"
NO_RULES = "this model's tokenizer is not of the kind that structures need"
NOT_ALL_CHARACTERS = (
    "this model's tokenizer has no tokens for some characters, so that a completion could come to "
    "a place where it cannot go on: give choice, or a template with labels"
)
NOT_TRIED = "structures cannot be tried at the moment: try again"
MAX_KNOWN = 1024
# Where any white space is allowed, a small model can write it without end.
LAYOUT = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}


def compiled_structure(sampling: Sampling) -> Structure | None:
    """The structure that is asked for, if one is, exactly as it is tried and then compiled."""
    if sampling.json_schema is not None:
        return Structure("json_schema", laid_out(sampling.json_schema))
    return structure_of(sampling)


def laid_out(schema: dict[str, Any]) -> str:
    """A schema as it is compiled: what follows it is on one line."""
    return json.dumps(LAYOUT | schema)


class Structures:
    """What is known of structures, and the process that tries others, one after the other."""

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        # Tasks, because a client that leaves must not leave the process's answer unread.
        self._trials: OrderedDict[Structure, asyncio.Task[str | None]] = OrderedDict()

    async def check(self, structure: Structure) -> None:
        """Raises `InvalidRequest` where it cannot be compiled, or takes too much to do so."""
        if structure not in self._trials:
            self._trials[structure] = self._begin(structure)
        self._trials.move_to_end(structure)
        reason = await asyncio.shield(self._trials[structure])
        if reason is not None:
            raise InvalidRequest(
                f"{structure.kind} cannot be honoured: {reason}", param=structure.kind
            )

    async def stop(self) -> None:
        """End what runs."""
        for trial in self._trials.values():
            trial.cancel()
        await self._end_process()

    def _begin(self, structure: Structure) -> asyncio.Task[str | None]:
        def forget_a_failure(trial: asyncio.Task[str | None]) -> None:
            if trial.cancelled() or trial.exception() is not None:
                self._trials.pop(structure, None)

        trial = asyncio.create_task(self._why_not(structure))
        trial.add_done_callback(forget_a_failure)
        if len(self._trials) >= MAX_KNOWN:
            self._trials.popitem(last=False)
        return trial

    async def _why_not(self, structure: Structure) -> str | None:
        """Why a structure is refused, None where it is not. Raises `ServerFull`."""
        rules = self._tokenizer.rules
        if rules is None:
            return NO_RULES
        if self._tokenizer.has_sentence_pieces and (unsaid := self._cannot_say(structure)):
            return unsaid
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    answer = await self._ask(structure, rules)
            except TimeoutError:
                await self._end_process()
                return TOO_LONG
            if not answer:
                self._process = None
                raise ServerFull(NOT_TRIED)
            reason: str | None = json.loads(answer)
            return reason

    def _cannot_say(self, structure: Structure) -> str | None:
        """Why tokens that are pieces of text do not make all that a structure asks for."""
        if structure.kind != "choice":
            return NOT_ALL_CHARACTERS
        if missing := self._tokenizer.missing_characters("".join(json.loads(structure.text))):
            return f"this model's tokenizer has no token for {missing[0]!r}: leave it out"
        return None

    async def _ask(self, structure: Structure, rules: str) -> bytes:
        """The process's answer; nothing where it has ended."""
        process = await self._running(rules)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(structure).encode() + b"\n")
            await process.stdin.drain()
        except ConnectionError:
            return b""
        return await process.stdout.readline()

    async def _running(self, rules: str) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(TRIAL), stdin=PIPE, stdout=PIPE
            )
            tokenizer = {
                "rules": rules,
                "vocabulary_size": max(self._vocabulary_size, self._tokenizer.size),
                "end": self._tokenizer.end,
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(tokenizer).encode() + b"\n")
        return self._process

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
