"""What `softserve generate` and `softserve chat` print: texts, and what they took."""

from collections.abc import Iterable

import typer

from softserve.client import CompletionEnd, Piece
from softserve.schema.generation import FinishReason, GenerateAnswer
from softserve.schema.versions import short

# Why a text may not be whole.
ENDINGS: dict[FinishReason, str] = {
    "length": "ended by max_new_tokens",
    "timeout": "ended by its time limit",
    "abort": "ended by the server",
}


def print_events(events: Iterable[Piece | CompletionEnd]) -> list[CompletionEnd]:
    """The text as it comes, and a line feed; the ends of the completions."""
    ends = []
    for event in events:
        typer.echo(event.text, nl=False)
        if isinstance(event, CompletionEnd):
            ends.append(event)
    typer.echo()
    return ends


def print_event(event: Piece | CompletionEnd) -> None:
    """An event in a line, as JSON."""
    typer.echo(event.model_dump_json(exclude_unset=True))


def print_texts(answer: GenerateAnswer) -> None:
    """The texts, with a blank line between two."""
    typer.echo("\n\n".join(completion.text for completion in answer.completions))


def print_summary(answer: GenerateAnswer | CompletionEnd) -> None:
    """How fast it came, who made it, and why it may not be whole; to standard error."""
    typer.echo(f"[{'; '.join(_summary(answer))}]", err=True)


def _summary(answer: GenerateAnswer | CompletionEnd) -> Iterable[str]:
    num_tokens, timings = answer.usage.completion_tokens, answer.timings
    tokens = "1 token" if num_tokens == 1 else f"{num_tokens:,} tokens"
    yield f"{tokens} in {timings.total / 1000:.2f} s"
    yield f"{1000 * num_tokens / timings.total:.1f} tokens a second" if timings.total else "at once"
    yield f"the first after {timings.ttft:.0f} ms"
    for used in (answer.adapter, answer.soft_prompt):
        if used is not None:
            yield f"{used.name}@{short(used.version)}"
    endings = [answer] if isinstance(answer, CompletionEnd) else answer.completions
    for reason in dict.fromkeys(each.finish_reason for each in endings):
        if reason in ENDINGS:
            yield ENDINGS[reason]
