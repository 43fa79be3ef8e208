"""The language of one generation: what is asked, what comes back.

Greedy decoding unless asked otherwise: with no sampling control a request is deterministic; giving
`temperature` above zero, `top_k`, `top_p` or `min_p` turns random sampling on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.errors import InvalidRequest

FinishReason = Literal["stop", "length", "abort"]
# Of a completion in its request: prompt index, index.
Place = tuple[int, int]

DEFAULT_MAX_NEW_TOKENS = 128

# vLLM silently raises a smaller temperature to this one (its sampling_params.py, _MAX_TEMP).
MIN_RANDOM_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class SamplingControls:
    """The effective controls of a request; every field holds the value that the engine uses."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    n: int
    ignore_eos: bool

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def resolve_sampling(
    *,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    n: int = 1,
    ignore_eos: bool = False,
) -> SamplingControls:
    """Turn the controls that were given (None: not given) into the effective ones.

    Raises:
        InvalidRequest: two controls contradict each other, or one would have no effect.
    """
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    given_filters = [name for name, value in filters.items() if value is not None]
    if temperature is None:
        temperature = 1.0 if given_filters else 0.0
    if 0.0 < temperature < MIN_RANDOM_TEMPERATURE:
        raise InvalidRequest(
            f"temperature is {temperature}: give 0 for greedy decoding, or at least "
            f"{MIN_RANDOM_TEMPERATURE}",
            param="temperature",
        )
    if temperature == 0.0:
        _refuse_without_effect_when_greedy(given_filters, seed, n)

    controls = SamplingControls(
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens,
        min_new_tokens=min_new_tokens or 0,
        temperature=temperature,
        top_k=top_k,
        top_p=1.0 if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
        presence_penalty=0.0 if presence_penalty is None else presence_penalty,
        frequency_penalty=0.0 if frequency_penalty is None else frequency_penalty,
        seed=seed,
        stop=tuple(stop),
        n=n,
        ignore_eos=ignore_eos,
    )
    if controls.min_new_tokens > controls.max_new_tokens:
        raise InvalidRequest(
            f"min_new_tokens is {controls.min_new_tokens:,} and max_new_tokens is "
            f"{controls.max_new_tokens:,}: lower the first or raise the second",
            param="min_new_tokens",
        )
    return controls


def _refuse_without_effect_when_greedy(
    given_filters: Sequence[str], seed: int | None, n: int
) -> None:
    advice = "the request is greedy: give a temperature above 0, or leave it out"
    if given_filters:
        raise InvalidRequest(
            f"{given_filters[0]} has no effect at temperature 0: "
            "raise the temperature, or leave one of the two out",
            param=given_filters[0],
        )
    if seed is not None:
        raise InvalidRequest(f"seed has no effect, because {advice}", param="seed")
    if n > 1:
        raise InvalidRequest(f"n above 1 would repeat one text, because {advice}", param="n")


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a text becomes a prompt: as it is, or as a user message in the model's chat template.

    Raises:
        InvalidRequest: a system message without a chat template.
    """

    use_chat_template: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if self.system is not None and not self.use_chat_template:
            raise InvalidRequest(
                "system needs the model's chat template: set use_chat_template to true",
                param="system",
            )


AS_IT_IS = PromptFormat()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a client asks: `n` completions for every prompt.

    `logprobs` is the number of most likely tokens to report per position (None: report nothing).
    `adapter` and `soft_prompt` are each a name, or `name@version`.
    """

    request_id: str
    prompts: tuple[str, ...]
    sampling: SamplingControls
    format: PromptFormat = AS_IT_IS
    logprobs: int | None = None
    adapter: str | None = None
    soft_prompt: str | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.sampling.n


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
    prefix cache. `lora` and `soft_prompt` are the digests of the versions that made it.
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
    lora: str | None = None
    soft_prompt: str | None = None
    num_virtual_tokens: int = 0

    @property
    def place(self) -> Place:
        return self.prompt_index, self.index
