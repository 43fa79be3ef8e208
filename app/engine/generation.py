"""The language of one generation: what is asked, what comes back.

Greedy decoding unless asked otherwise: with no sampling control a request is deterministic; giving
`temperature` above zero, `top_k`, `top_p` or `min_p` turns random sampling on, and `num_beams`
above one beam search.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.errors import InvalidRequest
from softserve.schema.controls import BEAMS, FILTERS, STRUCTURES, Sampling
from softserve.schema.generation import FinishReason
from softserve.schema.prompts import Message, Role

# vLLM silently raises a smaller temperature to this one (its sampling_params.py, _MAX_TEMP).
MIN_RANDOM_TEMPERATURE = 0.01

# Of a completion in its request: prompt index, index.
CompletionKey = tuple[int, int]


class Structure(NamedTuple):
    """What a completion has to be: the control that says so, and its value.

    A regular expression is as it is, anything else in JSON.
    """

    kind: str
    text: str


def structure_of(sampling: Sampling) -> Structure | None:
    """The structure that is asked for, if one is."""
    for kind in STRUCTURES:
        if (value := getattr(sampling, kind)) is not None:
            return Structure(kind, value if isinstance(value, str) else json.dumps(value))
    return None


def resolve_sampling(**given: Any) -> Sampling:
    """The controls in effect, from those that were given (None: not given).

    Raises:
        InvalidRequest: two controls contradict each other, or one would have no effect.
    """
    given = {name: value for name, value in given.items() if value is not None}
    filters = [name for name in FILTERS if name in given]
    temperature = given.setdefault("temperature", 1.0 if filters else 0.0)
    if 0.0 < temperature < MIN_RANDOM_TEMPERATURE:
        raise InvalidRequest(
            f"temperature is {temperature}: give 0 for greedy decoding, or at least "
            f"{MIN_RANDOM_TEMPERATURE}",
            param="temperature",
        )
    greedy = temperature == 0.0 and given.get("num_beams", 1) == 1
    # Of an answer, only what was set is sent: a default is shown as well.
    sampling = Sampling(**{**Sampling().model_dump(), **given, "greedy": greedy})
    _refuse_what_a_structure_contradicts(sampling)
    if sampling.num_beams > 1:
        _refuse_what_beams_contradict(sampling, filters)
    else:
        _refuse_without_beams(given)
    if sampling.greedy:
        _refuse_without_effect_when_greedy(sampling, filters)
    if sampling.min_new_tokens > sampling.max_new_tokens:
        raise InvalidRequest(
            f"min_new_tokens is {sampling.min_new_tokens:,} and max_new_tokens is "
            f"{sampling.max_new_tokens:,}: lower the first or raise the second",
            param="min_new_tokens",
        )
    return sampling


def _refuse_without_effect_when_greedy(sampling: Sampling, filters: Sequence[str]) -> None:
    advice = "the request is greedy: give a temperature above 0, or leave it out"
    if filters:
        raise InvalidRequest(
            f"{filters[0]} has no effect at temperature 0: "
            "raise the temperature, or leave one of the two out",
            param=filters[0],
        )
    if sampling.seed is not None:
        raise InvalidRequest(f"seed has no effect, because {advice}", param="seed")
    if sampling.n > 1:
        raise InvalidRequest(f"n above 1 would repeat one text, because {advice}", param="n")


def _refuse_without_beams(given: Mapping[str, Any]) -> None:
    for name in BEAMS:
        if name in given and name != "num_beams":
            raise InvalidRequest(
                f"{name} has no effect without beams: give num_beams above 1, or leave it out",
                param=name,
            )


def _refuse_what_beams_contradict(sampling: Sampling, filters: Sequence[str]) -> None:
    random = [
        *filters,
        *(["temperature"] if sampling.temperature else []),
        *(["seed"] if sampling.seed is not None else []),
    ]
    if random:
        raise InvalidRequest(
            f"{random[0]} is for random sampling, and num_beams asks for the most likely "
            "completions: leave one of the two out",
            param=random[0],
        )
    neutral = Sampling()
    for name in ("stop", "presence_penalty", "frequency_penalty", *STRUCTURES):
        if getattr(sampling, name) != getattr(neutral, name):
            raise InvalidRequest(
                f"a beam search takes no {name}: leave it or num_beams out", param=name
            )
    if sampling.repetition_penalty < 1.0:
        raise InvalidRequest(
            f"repetition_penalty is {sampling.repetition_penalty:g}, and a beam search takes none "
            "below 1: leave it or num_beams out",
            param="repetition_penalty",
        )
    if sampling.n > sampling.num_beams:
        raise InvalidRequest(
            f"n is {sampling.n:,} and num_beams is {sampling.num_beams:,}: lower the first or "
            "raise the second",
            param="n",
        )


def _refuse_what_a_structure_contradicts(sampling: Sampling) -> None:
    asked = [name for name in STRUCTURES if getattr(sampling, name) is not None]
    if not asked:
        return
    kind = asked[0]
    if len(asked) > 1:
        raise InvalidRequest(
            f"{kind} and {asked[1]} each say what a completion is: leave one of them out",
            param=asked[1],
        )
    for name in ("min_new_tokens", "ignore_eos"):
        if getattr(sampling, name):
            raise InvalidRequest(
                f"{name} would have a completion go on behind the end that {kind} gives it: leave "
                "one of them out",
                param=name,
            )


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages to be put into the model's chat template, which the field `asked_by` asks for."""

    messages: tuple[Message, ...]
    asked_by: str = "messages"

    @classmethod
    def of(cls, *texts: tuple[Role, str | None]) -> "Chat":
        """Messages of the server's own making, as `use_chat_template` asks for; None is none."""
        # What they say has been validated.
        messages = [
            Message.model_construct(role=role, content=text)
            for role, text in texts
            if text is not None
        ]
        return cls(tuple(messages), "use_chat_template")


# What a prompt is made from: a text, messages, or its tokens themselves.
PromptSource = str | Chat | list[int]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a client asks: `n` completions for every prompt, whatever the prompts are made from.

    `prompt_field` is the field that they come from, and `limit_field` the one with the most tokens
    to generate. `decoder_prompt` is what the decoder of an encoder-decoder model starts with, for
    every prompt.
    `logprobs` is the number of most likely tokens to report per position (None: report nothing).
    `adapter` and `soft_prompt` are each a name, or `name@version`, the second also with `#task`.
    Requests of one `session` get the same version of a name that several share. `timeout_seconds`
    begin with its admission; a higher `priority` comes first.
    """

    request_id: str
    num_prompts: int
    sampling: Sampling
    logprobs: int | None = None
    adapter: str | None = None
    soft_prompt: str | None = None
    session: str | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    prompt_field: str = "prompt"
    limit_field: str = "max_new_tokens"
    decoder_prompt: str | None = None

    @property
    def num_sequences(self) -> int:
        return self.num_prompts * self.sampling.num_sequences


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and the natural logarithm of its probability as the model gives it."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The token that was chosen at one position, and the most likely ones there, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """A piece of one completion, as the engine produces it.

    `text` holds whole characters only; `token_ids` are the tokens since the last chunk, whose text
    may still be held back. `num_cached_tokens` of the prompt and its soft prompt came from the
    prefix cache. `queue_seconds` are those before the engine's first step for it, `prefill_seconds`
    those from there to its first token.
    """

    prompt_index: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    queue_seconds: float
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    num_virtual_tokens: int = 0
    prefill_seconds: float = 0.0

    @property
    def key(self) -> CompletionKey:
        return self.prompt_index, self.index
