"""A process that tries structures: what is wrong with one, or takes too much, is known before.

    python -P structure_trial.py

The first line that it reads is the tokenizer; each one after it is a structure, and is answered
with a line. Every trial runs in a process of its own, which is forked from this one and may use
only so much time and memory. It ends with its input.
"""

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from llguidance import LLMatcher, LLTokenizer, grammar_from

MAX_CPU_SECONDS = 2
MAX_BYTES = 512 << 20
# What comes later than these tokens is bounded by llguidance's own limits for one step.
NUM_TOKENS = 64
MAX_REASON_LENGTH = 300
TOO_MUCH = "it takes too long or too much memory to compile: make it simpler"


def main() -> None:
    # What is sent to all of the server's processes: it goes on until it has drained.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    lines = sys.stdin.buffer
    why_not = _answers(**json.loads(lines.readline()))
    for line in lines:
        sys.stdout.write(json.dumps(why_not(*json.loads(line))) + "\n")
        sys.stdout.flush()


def _answers(rules: str, vocabulary_size: int, end: int | None) -> Callable[[str, str], str | None]:
    """What says why a structure is refused, of completions in this tokenizer's tokens."""
    try:
        tokenizer = LLTokenizer(rules, n_vocab=vocabulary_size, eos_token=end)
    except ValueError as error:
        reason = f"this model's tokenizer is not of the kind that structures need ({error})"
        return lambda _kind, _text: reason
    return partial(_tried_in_a_fork, tokenizer)


def _tried_in_a_fork(tokenizer: LLTokenizer, kind: str, text: str) -> str | None:
    """Why the structure is refused, None where it is not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _bound_this_process()
            os.write(writer, json.dumps(why_not(tokenizer, kind, text)).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        answer = told.read()
    # It is killed for its time; for its memory, which Rust ends it for, or for its stack.
    if os.waitpid(child, 0)[1] != 0:
        return TOO_MUCH
    reason: str | None = json.loads(answer)
    return reason


def _bound_this_process() -> None:
    with open("/proc/self/statm") as pages:  # noqa: PTH123 (pathlib takes longer to import)
        in_use = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_BYTES, in_use + MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a library has to say of its end is told by the status.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def why_not(tokenizer: LLTokenizer, kind: str, text: str) -> str | None:
    """What llguidance says of a structure, and of the first tokens of a completion that has it."""
    try:
        grammar = grammar_of(kind, text)
    except ValueError as error:
        return _main_line(str(error))
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    chance = random.Random(0)  # noqa: S311 (it chooses tokens)
    for _ in range(NUM_TOKENS):
        mask = matcher.compute_bitmask()
        if matcher.is_error() or matcher.is_stopped():
            break
        matcher.consume_token(_one_of(mask, chance))
    return _main_line(matcher.get_error()) if matcher.is_error() else None


def grammar_of(kind: str, text: str) -> str:
    """A structure for llguidance, as vLLM's backend writes it. Raises `ValueError`."""
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": True})
    return grammar_from("regex" if kind == "regex" else "choice", text)


def _one_of(mask: bytes, chance: random.Random) -> int:
    """A token that the mask allows; it has a bit for each."""
    allowed = int.from_bytes(mask, "little")
    place = chance.randrange(allowed.bit_length())
    from_there = allowed >> place
    return place + (from_there & -from_there).bit_length() - 1


def _main_line(text: str) -> str:
    """What an error says, without the picture of where it is."""
    lines = text.strip().split("\n")
    prefix = "error: "
    told = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    return (told or lines)[0][:MAX_REASON_LENGTH]


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
