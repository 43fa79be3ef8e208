"""What can be chosen beside locust's own options. All of it travels to workers as plain text."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadtest.figures.objective import Objective
from loadtest.users.mix import Mix

if TYPE_CHECKING:
    # The import of locust replaces the standard library's sockets.
    from locust.argument_parser import LocustArgumentParser


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """`16:64`, or one number.

        Raises:
            ValueError: it is neither.
        """
        if not (match := re.fullmatch(r"(\d+)(?::(\d+))?", text)):
            raise ValueError(f"{text!r} is neither a number nor a range as 16:64")
        low = int(match[1])
        high = int(match[2] or low)
        if not 0 < low <= high:
            raise ValueError(f"{text!r} is no range from a smaller to a larger number")
        return cls(low, high)


@dataclass(frozen=True, slots=True)
class Options:
    """The options, parsed."""

    key: str | None
    adapters: list[str]
    soft_prompts: list[str]
    templates: list[str]
    mix: Mix
    requests_per_second: float
    prompt_words: Range
    long_prompt_words: Range
    new_tokens: Range
    objective: Objective
    max_retries: int
    compared_share: float
    swap_files: list[str]
    swap_seconds: float

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> "Options":
        return cls(
            key=parsed.key or None,
            adapters=_names(parsed.adapters),
            soft_prompts=_names(parsed.soft_prompts),
            templates=_names(parsed.templates),
            mix=Mix.parse(parsed.mix),
            requests_per_second=parsed.rate,
            prompt_words=Range.parse(parsed.prompt_words),
            long_prompt_words=Range.parse(parsed.long_prompt_words),
            new_tokens=Range.parse(parsed.new_tokens),
            objective=Objective.parse(parsed.slo),
            max_retries=parsed.retries,
            compared_share=parsed.check_texts,
            swap_files=_names(parsed.swap_files),
            swap_seconds=parsed.swap_seconds,
        )


def add_options(parser: "LocustArgumentParser") -> None:
    """They are shown in the web interface too, as fields of the form that starts a load."""
    add: Callable[..., Any] = parser.add_argument
    add(
        "--key",
        env_var="SOFTSERVE_API_KEY",
        default="",
        is_secret=True,
        help="The server's API key.",
    )
    add("--adapters", default="", help="LoRAs, as in a request, by commas. Default: all.")
    add("--soft-prompts", default="", help="Soft prompts, in the same way. Default: all.")
    add("--templates", default="", help="Prompt templates. Default: all that have labels.")
    add(
        "--mix",
        default="zipf:1",
        type=_checked(Mix.parse),
        help="How AdapterMixUser chooses among LoRAs: zipf:EXPONENT (the first is the most asked "
        "for), round-robin, or weights:5,3,1. Default: zipf:1.",
    )
    add(
        "--rate",
        default=0.0,
        type=float,
        help="Requests a second of each user, in Poisson arrivals that wait for no answer (open "
        "loop). Default 0: a user asks again when it has its answer (closed loop).",
    )
    add(
        "--prompt-words",
        default="16:96",
        type=_checked(Range.parse),
        help="Words of a prompt, about a token each: a number, or a range. Default: 16:96.",
    )
    add(
        "--long-prompt-words",
        default="800:1200",
        type=_checked(Range.parse),
        help="Words of LongPromptUser's prompts. Default: 800:1200.",
    )
    add(
        "--new-tokens",
        default="16:64",
        type=_checked(Range.parse),
        help="Tokens of a completion. Default: 16:64.",
    )
    add(
        "--slo",
        default="ttft=2s,itl=500ms",
        type=_checked(Objective.parse),
        help="What a good answer keeps, for the goodput: ttft, itl (its longest pause), tpot, e2e. "
        "Default: ttft=2s,itl=500ms.",
    )
    add(
        "--retries",
        default=3,
        type=int,
        help="How often a refused request (429, 503) is sent again, after Retry-After. Default: 3.",
    )
    add(
        "--check-texts",
        default=0.0,
        type=float,
        metavar="SHARE",
        help="The share of requests whose greedy text is compared with what the version says "
        "alone, before the load. Needs FP32. Default: 0.",
    )
    add("--swap-files", default="", help="Two folders of LoRAs, by a comma, for SwapUser.")
    add(
        "--swap-seconds",
        default=5.0,
        type=float,
        help="Between two changes of SwapUser. Default: 5.",
    )
    add(
        "--report",
        default="",
        include_in_web_ui=False,
        help="Write PATH.html and PATH.json at the end.",
        metavar="PATH",
    )


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """The text itself, once it can be parsed."""

    def text(value: str) -> str:
        try:
            parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
