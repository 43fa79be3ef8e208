"""What the rest of softserve needs from an engine."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.engine.generation import Chat, GenerationChunk
from softserve.schema.adapters import AdapterKind
from softserve.schema.controls import Sampling

if TYPE_CHECKING:
    from app.engine.openai import OpenAI


@dataclass(frozen=True, slots=True)
class Weights:
    """How the weights are held, how they were made so, and the bytes that they take up.

    `other_bytes` are those of embeddings, norms and the output head.
    """

    precision: str
    made: str
    linear_bytes: int
    other_bytes: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a running engine has loaded. `context_window` and `vocabulary_size` are in tokens.

    `dtype` is the type of activations, and of weights that are not quantized. At most
    `max_running_sequences` completions are generated at a time; `schedules_by_priority` is whether
    the more important ones go first, and `pauses_completions` whether `pause` is understood.
    `lora_kernel` is what multiplies with LoRAs on a CPU, `native` or `torch`; None elsewhere, and
    without LoRAs. An encoder-decoder model has an `encoder_window` for prompts and their soft
    prompts, and its `context_window` is the decoder's; of others it is None. Completions begin with
    `forced_bos_token_id` where a prompt has no `decoder_ids`; where it is None, with any token.
    """

    model: str
    device: str
    dtype: str
    weights: Weights
    kv_cache_bytes: int
    context_window: int
    vocabulary_size: int
    max_running_sequences: int
    schedules_by_priority: bool
    pauses_completions: bool
    lora_kernel: str | None
    engine: str
    engine_version: str
    encoder_window: int | None = None
    forced_bos_token_id: int | None = None

    @property
    def prompt_window(self) -> int:
        """The most tokens of a prompt and its soft prompt, if nothing were generated."""
        return self.context_window if self.encoder_window is None else self.encoder_window


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A weight that a LoRA can target: for an embedding, `in_features` is the vocabulary."""

    kind: Literal["linear", "embedding"]
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an adapter has to fit.

    `names` are the names that the base model goes by; `modules` has PEFT's name of every module
    that a LoRA can target (`model.layers.0.self_attn.q_proj`). `no_soft_prompts` is the reason why
    this model cannot take a soft prompt, None where it can. `folder` has the base model's weights,
    with which copies of them are compared. `unadapted` are those of the modules to
    which the engine adds no LoRA. `tied` has, by a head's name, the embedding whose weights it has.
    `fused` has, by the name of a module that is several in other models, how many of its rows are
    which one's, in their order; only where that order is known. With `has_encoder` it is an
    encoder-decoder model.
    """

    names: frozenset[str]
    hidden_size: int
    modules: Mapping[str, ModuleShape]
    no_loras: str | None = None
    no_soft_prompts: str | None = None
    folder: Path | None = None
    unadapted: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    has_encoder: bool = False


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A version of an adapter as the engine loads it: a PEFT folder that never changes.

    `digest` is its name in the engine, so that no KV cache of another version is ever reused.
    """

    digest: str
    kind: AdapterKind
    folder: Path


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenized prompt, its index in the request, and the digests of its loaded adapters.

    `num_virtual_tokens` is the soft prompt's; they come before the prompt's own. `task` is which of
    its tasks, where it has several; no KV cache of another task is ever reused. `decoder_ids` are
    what the decoder of an encoder-decoder model starts with, behind the token that starts them all.
    """

    index: int
    token_ids: list[int]
    lora: str | None = None
    soft_prompt: str | None = None
    num_virtual_tokens: int = 0
    task: int | None = None
    decoder_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Those that were asked for, wherever they go."""
        return len(self.token_ids) + len(self.decoder_ids)

    def behind_forced(self, info: EngineInfo) -> "Prompt":
        """The same with what is forced at first in the decoder, so that the model chooses next."""
        if info.forced_bos_token_id is None or self.decoder_ids:
            return self
        return replace(self, decoder_ids=(info.forced_bos_token_id,))


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the completions of a prompt are made, and what is reported of each position.

    A higher `priority` is more important, where the engine schedules by it.
    """

    sampling: Sampling
    logprobs: int | None = None
    priority: int = 0


class Engine(Protocol):
    """A base model that tokenizes, generates and scores.

    Every method but `start` needs a started engine. Each may raise `EngineDied`.
    """

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineStarting` until `start` has returned."""

    @property
    def architecture(self) -> Architecture:
        """Raises `EngineStarting` until `start` has returned."""

    @property
    def died(self) -> bool:
        """Whether a started engine can never answer again."""

    async def ping(self, *, is_busy: bool) -> None:
        """Return when the engine has answered: late, or never, where it hangs.

        Where it `is_busy`, all of its processes have to answer, else perhaps the first alone.
        """

    async def start(self) -> None:
        """Load the model. Raises `StartError` with a sentence for the operator."""

    async def stop(self) -> None:
        """End the engine's processes. Safe to call in any state, more than once."""

    @property
    def openai(self) -> "OpenAI":
        """OpenAI's protocol on this engine."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """The texts that the tokenizer takes for special tokens; no completion's text has them."""

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`, with the model's own special tokens around it."""

    async def fewest_tokens(self, text: str) -> int:
        """A lower bound of a text's tokens, without making them, which can take long."""

    def chat_prompt(self, chat: Chat) -> str:
        """Messages in the model's chat template, which has all special tokens.

        Raises:
            InvalidRequest: the model has no chat template, or its template refuses the messages or
                leaves one out.
        """

    async def check_structure(self, sampling: Sampling) -> None:
        """Whether completions can be kept to the structure that is asked for, if one is.

        Raises:
            InvalidRequest: they cannot, or it takes too much to find out.
            ServerFull: that cannot be found out at the moment.
        """

    def token_text(self, token_id: int) -> str:
        """The text of one token alone; a part of a character shows as U+FFFD."""

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        """Make a version ready for prompts that name its digest.

        Raises:
            AdapterRejected: the engine cannot load it; it goes on as before.
        """

    async def unload_adapter(self, adapter: AdapterFiles) -> None:
        """Free what a loaded version holds. No running prompt may use it."""

    def generate(
        self, request_id: str, prompt: Prompt, decoding: Decoding
    ) -> AsyncGenerator[GenerationChunk]:
        """Yield the chunks of all completions of one prompt. Leaving early aborts them.

        A structure must have passed `check_structure`.
        A stop string that is a special token ends a completion at that token.
        """

    async def pause(self, request_id: str, prompt_index: int) -> None:
        """Generate no more for a prompt that is being generated, and hold nothing for it.

        The few tokens that are being made still come. Nothing happens to a prompt that has ended.
        Only where `info.pauses_completions`.
        """

    async def resume(self, request_id: str, prompt_index: int) -> None:
        """Go on with a paused prompt where it was, as if there had been no pause."""

    async def abort(self, request_id: str, prompt_index: int) -> None:
        """End a prompt's completions as `abort_all` does. One that has ended is left alone."""

    async def abort_all(self) -> None:
        """End every completion in flight, with the text it has and finish_reason `abort`."""

    async def next_token_logprobs(self, request_id: str, prompt: Prompt) -> NDArray[np.float32]:
        """The model's log probabilities after a prompt, of shape (vocabulary_size,)."""
