"""In-context learning: from a template, inputs and a number of shots to prompts and completions.

The plot: resolve the template, choose examples, fit them into the context window, score the labels
if there are any; the rest is a generation like any other.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from app.adapters.registry import Adapters
from app.engine.generation import GenerationChunk, GenerationRequest, PromptFormat, resolve_sampling
from app.engine.protocol import Engine, Prompt
from app.errors import ContextWindowExceeded, InvalidRequest, TemplateRejected
from app.serving.service import Service, prompt_of, tokenize
from app.templates.compilation import CompiledTemplate, ExampleSet, text_of_inputs
from app.templates.fitting import most_shots_that_fit
from app.templates.labels import LabelScore, score_labels
from app.templates.registry import ResolvedTemplate, TemplateRegistry
from app.templates.selection import as_shown, most_useful
from softserve.schema.templates import Example, Inputs, Selection, Shots, Template

log = structlog.get_logger(__name__)

# One idea with several fields: a request that gives one of them replaces a template's of them all.
RANDOM_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "seed", "n"}


@dataclass(frozen=True, slots=True)
class InContextRequest:
    """What a client asks.

    `template` is a name, `name@version`, or a template. `sampling`, `adapters` hold what was given:
    the template's own defaults fill in the rest. `examples` take the place of the template's.
    """

    request_id: str
    template: str | Template
    inputs: tuple[Inputs, ...]
    shots: Shots = "auto"
    selection: Selection | None = None
    selection_seed: int | None = None
    examples: tuple[Example, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, str | None] = field(default_factory=dict)
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class FewShotPrompt:
    """A prompt as the model gets it.

    `shown` are the places of the examples in it, in its order; `dropped` of those that were chosen
    and did not fit.
    """

    index: int
    text: str
    num_tokens: int
    num_virtual_tokens: int
    shown: tuple[int, ...]
    dropped: tuple[int, ...]
    labels: tuple[LabelScore, ...] = ()


class Preparation:
    """A request whose template is known; `prompts` are there once they have been fitted."""

    def __init__(
        self,
        asked: InContextRequest,
        template: ResolvedTemplate,
        examples: ExampleSet,
        num_shots: int,
        selection: Selection,
        request: GenerationRequest,
    ) -> None:
        self.asked = asked
        self.template = template
        self.examples = examples
        self.num_shots = num_shots
        self.selection = selection
        self.request = request
        self.prompts: list[FewShotPrompt] = []

    @property
    def compiled(self) -> CompiledTemplate:
        return self.template.compiled

    def continuations(self, index: int) -> list[str]:
        """The texts of the labels as they follow one of the queries. Raises `InvalidRequest`."""
        return self.compiled.continuations(self.asked.inputs[index], self.request.prompts[index])


class InContext:
    """The operations on templates that need the model."""

    def __init__(self, service: Service, templates: TemplateRegistry) -> None:
        self._service = service
        self._engine = service.engine
        self._templates = templates

    async def prepare(self, asked: InContextRequest) -> Preparation:
        """Resolve what a request names, and check what can be without tokens.

        Raises:
            TemplateNotFound: no such template or version.
            TemplateRejected: the template, or an example, is invalid.
            InvalidRequest: inputs, shots, selection or controls are wrong.
            Unavailable: the server takes no work.
        """
        self._service.check_serving()
        template = await self._resolve(asked.template)
        compiled, fields = template.compiled, template.compiled.template
        for index, inputs in enumerate(asked.inputs):
            compiled.check_inputs(inputs, _which(index, len(asked.inputs)))
        if asked.examples is None:
            examples = compiled.examples
        else:
            examples = await asyncio.to_thread(compiled.example_set, asked.examples)
        selection = asked.selection or fields.selection
        if asked.selection_seed is not None and selection != "random":
            raise InvalidRequest(
                f"selection_seed has no effect with selection {selection}: leave it out, or set "
                "selection to random",
                param="selection_seed",
            )
        adapters = {"adapter": fields.adapter, "soft_prompt": fields.soft_prompt, **asked.adapters}
        queries = await asyncio.to_thread(
            lambda: tuple(compiled.query(inputs) for inputs in asked.inputs)
        )
        request = GenerationRequest(
            request_id=asked.request_id,
            prompts=queries,
            sampling=resolve_sampling(**_sampling(fields, asked.sampling)),
            format=PromptFormat(fields.use_chat_template, fields.system),
            logprobs=asked.logprobs,
            **adapters,
        )
        num_shots = _num_shots(asked.shots, len(examples), fields.max_shots)
        return Preparation(asked, template, examples, num_shots, selection, request)

    async def render(self, prepared: Preparation) -> list[Prompt]:
        """Make the prompts, and generate nothing. Raises as `generate` does."""
        async with self._service.holding(prepared.request) as adapters:
            return await self._encode(prepared, adapters, with_labels=False)

    async def generate(self, prepared: Preparation) -> AsyncGenerator[GenerationChunk]:
        """As `Service.generate`; the prompts are fitted before the first chunk.

        Raises:
            ContextWindowExceeded: an input does not fit even with zero shots.
        """

        async def encode(adapters: Adapters) -> list[Prompt]:
            return await self._encode(prepared, adapters, with_labels=True)

        async with aclosing(self._service.generate(prepared.request, encode)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _resolve(self, template: str | Template) -> ResolvedTemplate:
        if isinstance(template, str):
            return await self._templates.resolve(template)
        try:
            compiled = await self._templates.compiled(template)
        except TemplateRejected as error:
            raise TemplateRejected(error.message, param="template") from error
        return ResolvedTemplate(None, template.digest, compiled)

    async def _encode(
        self, prepared: Preparation, adapters: Adapters, *, with_labels: bool
    ) -> list[Prompt]:
        """Fit every prompt, score its labels, and keep what is told of it."""
        fitted = await asyncio.gather(
            *(self._fit(prepared, adapters, index) for index in range(len(prepared.asked.inputs)))
        )
        prepared.prompts = [described for described, _ in fitted]
        if with_labels and prepared.compiled.template.labels:
            numbers = count()
            prepared.prompts = await asyncio.gather(
                *(self._scored(prepared, adapters, each, numbers) for each in prepared.prompts)
            )
        return [prompt for _, prompt in fitted]

    async def _fit(
        self, prepared: Preparation, adapters: Adapters, index: int
    ) -> tuple[FewShotPrompt, Prompt]:
        """The prompt of one of the inputs, with as many examples as fit."""
        chosen = await asyncio.to_thread(
            most_useful,
            prepared.selection,
            prepared.examples,
            prepared.num_shots,
            text_of_inputs(prepared.asked.inputs[index]),
            prepared.asked.selection_seed or 0,
        )
        draft = _Draft(self._engine, prepared, index, chosen)
        num_kept = await self._num_kept(prepared, index)
        room = self._engine.info.context_window - adapters.num_virtual_tokens - num_kept
        num_shots, token_ids = await most_shots_that_fit(len(chosen), draft.tokens, room)
        if (excess := len(token_ids) - room) > 0:
            raise self._too_long(prepared, adapters, index, len(token_ids), excess)
        described = FewShotPrompt(
            index=index,
            text=draft.exact_text(num_shots),
            num_tokens=len(token_ids),
            num_virtual_tokens=adapters.num_virtual_tokens,
            shown=tuple(draft.shown(num_shots)),
            dropped=tuple(chosen[num_shots:]),
        )
        return described, prompt_of(index, token_ids, adapters)

    async def _num_kept(self, prepared: Preparation, index: int) -> int:
        """The tokens that have to fit behind a prompt: a completion, and each of the labels."""
        labels = [
            # One more, because tokens may fall otherwise where prompt and label meet.
            1 + len(await self._engine.tokenize(text, add_special_tokens=False))
            for text in prepared.continuations(index)
        ]
        return max([prepared.request.sampling.max_new_tokens, *labels])

    def _too_long(
        self,
        prepared: Preparation,
        adapters: Adapters,
        index: int,
        num_tokens: int,
        excess: int,
    ) -> ContextWindowExceeded:
        soft_prompt = (
            f", its soft prompt has {adapters.num_virtual_tokens:,}"
            if adapters.num_virtual_tokens
            else ""
        )
        return ContextWindowExceeded(
            f"{_which(index, len(prepared.asked.inputs))} with zero shots make a prompt of "
            f"{num_tokens:,} tokens{soft_prompt} and max_new_tokens is "
            f"{prepared.request.sampling.max_new_tokens:,}; the context window is "
            f"{self._engine.info.context_window:,}: shorten the inputs by {excess:,} tokens, or "
            "lower max_new_tokens",
            param="inputs",
        )

    async def _scored(
        self,
        prepared: Preparation,
        adapters: Adapters,
        prompt: FewShotPrompt,
        numbers: "count[int]",
    ) -> FewShotPrompt:
        """The prompt with the scores of its labels."""
        is_chat = prepared.request.format.use_chat_template
        sequences = [
            await self._engine.tokenize(prompt.text + each, add_special_tokens=not is_chat)
            for each in prepared.continuations(prompt.index)
        ]

        async def next_token_logprobs(token_ids: list[int]) -> NDArray[np.float32]:
            request_id = f"{prepared.request.request_id}-label"
            asked = prompt_of(next(numbers), token_ids, adapters)
            return await self._engine.next_token_logprobs(request_id, asked)

        labels = prepared.compiled.template.labels
        scores = await score_labels(labels, sequences, next_token_logprobs)
        return replace(prompt, labels=scores)


class _Draft:
    """The prompts that one of the inputs can have, by their number of shots."""

    def __init__(
        self, engine: Engine, prepared: Preparation, index: int, chosen: list[int]
    ) -> None:
        self._engine = engine
        self._prepared = prepared
        self._query = prepared.request.prompts[index]
        self._format = prepared.request.format
        self._chosen = chosen

    def shown(self, num_shots: int) -> list[int]:
        """The places of the examples, in the order of the prompt."""
        return as_shown(self._prepared.selection, self._chosen[:num_shots])

    async def tokens(self, num_shots: int) -> list[int]:
        return await tokenize(self._engine, self._text(num_shots), self._format)

    def exact_text(self, num_shots: int) -> str:
        """What the tokens are made from, the chat template included."""
        text = self._text(num_shots)
        if self._format.use_chat_template:
            return self._engine.chat_prompt(text, self._format.system)
        return text

    def _text(self, num_shots: int) -> str:
        texts = [self._prepared.examples.texts[place] for place in self.shown(num_shots)]
        return self._prepared.compiled.prompt(texts, self._query)


def _which(index: int, num_inputs: int) -> str:
    return "inputs" if num_inputs == 1 else f"inputs {index}"


def _num_shots(shots: Shots, num_examples: int, max_shots: int) -> int:
    if shots == "auto":
        return min(max_shots, num_examples)
    if shots > num_examples:
        has = f"there are {num_examples:,}" if num_examples else "there are none"
        raise InvalidRequest(
            f"shots asks for {shots:,} examples and {has}: lower shots, or give examples",
            param="shots",
        )
    return shots


def _sampling(template: Template, given: Mapping[str, Any]) -> dict[str, Any]:
    """The controls of a request over those of a template."""
    defaults: dict[str, Any] = template.sampling_given()
    if given.keys() & RANDOM_SAMPLING:
        defaults = {name: each for name, each in defaults.items() if name not in RANDOM_SAMPLING}
    if "max_new_tokens" in given and "min_new_tokens" in defaults:
        defaults["min_new_tokens"] = min(defaults["min_new_tokens"], given["max_new_tokens"])
    return defaults | dict(given)
