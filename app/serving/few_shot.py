"""In-context learning: from a template, inputs and a number of shots to prompts and completions.

The plot: resolve the template, choose examples, fit them into the context window, score the labels
if there are any; the rest is a generation like any other.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.access.caller import Caller
from app.adapters.registry import Adapters
from app.engine.generation import Chat, GenerationChunk, GenerationRequest, resolve_sampling
from app.errors import ContextWindowExceeded, InvalidRequest, TemplateRejected
from app.serving.admitted import Admitted
from app.serving.generation import FewShotPrompt, FewShotPrompts, Generation
from app.serving.prompts import check_can_fit, exact_text, prompt_of, tokenize
from app.serving.service import Service, asker_of
from app.serving.shadowing import Again, Copy
from app.tasks import gather
from app.telemetry.traces import phase
from app.templates.compilation import ExampleSet, text_of_inputs
from app.templates.fitting import most_shots_that_fit
from app.templates.labels import score_labels
from app.templates.registry import ResolvedTemplate, TemplateRegistry
from app.templates.selection import as_shown, most_useful
from softserve.schema.controls import BEAMS, FILTERS, STRUCTURES
from softserve.schema.templates import Example, Inputs, Selection, Shots, Template

# One idea with several fields: a request that gives one of them replaces a template's of them all.
SELECTION_OF_TOKENS = {"temperature", *FILTERS, "seed", "n", *BEAMS}
GROUPS = (SELECTION_OF_TOKENS, {*STRUCTURES})
# Stands for the token that the engine starts a decoder with.
DECODER_START = -1


@dataclass(frozen=True, slots=True)
class FewShotRequest:
    """What a client asks.

    `template` is a name, `name@version`, or a template. `sampling`, `adapters` hold what was given:
    the template's own defaults fill in the rest. `examples` are used instead of the template's.
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
    session: str | None = None
    timeout_seconds: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A request whose template is known: everything but the prompts, which take tokens to make."""

    asked: FewShotRequest
    template: ResolvedTemplate
    examples: ExampleSet
    num_shots: int
    selection: Selection
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Draft:
    """A prompt without its examples. `chosen` are their indices, most useful first."""

    query: str
    continuations: tuple[str, ...]
    chosen: list[int]


class FewShot:
    """The operations on templates that need the model."""

    def __init__(self, service: Service, templates: TemplateRegistry) -> None:
        self._service = service
        self._engine = service.engine
        self._templates = templates

    @asynccontextmanager
    async def generate(
        self, caller: Caller, asked: FewShotRequest
    ) -> AsyncIterator[Generation[GenerationChunk]]:
        """As `Service.generate`, which says more of what is raised.

        Raises:
            NotPermitted: the caller may not use the template.
            TemplateNotFound: no such template or version.
            TemplateRejected: the template, or an example, is invalid.
            InvalidRequest: inputs, shots, selection or controls are wrong.
            ContextWindowExceeded: an input does not fit even with zero shots.
        """
        plan = await self.resolve(caller, asked)
        request = plan.request
        async with self._service.admit(caller, request, _texts(asked)) as admitted:
            admitted.ledger.use_template(plan.template)
            with phase("tokenize"):
                fitted = await self.fitted(plan, admitted.adapters)
            with phase("labels"):
                few_shot = await self._scored(plan, admitted, fitted)
            prompts = [each.prompt for each in few_shot.prompts]
            copies = [
                *self._service.copies(request, prompts, admitted.adapters),
                *self._copies(caller, plan),
            ]
            completing = self._service.complete(request, prompts, admitted, copies)
            async with aclosing(completing) as chunks:
                model = self._engine.info.model
                yield Generation(
                    request, model, admitted.adapters, admitted.ledger, chunks, few_shot
                )

    async def render(self, caller: Caller, asked: FewShotRequest) -> FewShotPrompts:
        """Make the prompts, and generate nothing. Raises as `generate` does."""
        plan = await self.resolve(caller, asked)
        async with self._service.admit(caller, plan.request, _texts(asked)) as admitted:
            return await self.fitted(plan, admitted.adapters)

    async def resolve(self, caller: Caller, asked: FewShotRequest) -> Plan:
        """What a request names, and all that can be checked without tokens."""
        self._service.check_serving()
        template = await self.find(caller, asked)
        compiled, fields = template.compiled, template.compiled.template
        for index, inputs in enumerate(asked.inputs):
            compiled.check_inputs(inputs, _which(index, asked))
        examples = compiled.examples
        if asked.examples is not None:
            examples = await asyncio.to_thread(compiled.example_set, asked.examples)
        selection = asked.selection or fields.selection
        if asked.selection_seed is not None and selection != "random":
            raise InvalidRequest(
                f"selection_seed has no effect with selection {selection}: leave it out, or set "
                "selection to random",
                param="selection_seed",
            )
        adapters = {"adapter": fields.adapter, "soft_prompt": fields.soft_prompt, **asked.adapters}
        return Plan(
            asked=asked,
            template=template,
            examples=examples,
            num_shots=_num_shots(asked.shots, len(examples), fields.max_shots),
            selection=selection,
            request=GenerationRequest(
                request_id=asked.request_id,
                num_prompts=len(asked.inputs),
                sampling=resolve_sampling(**_sampling(fields, asked.sampling)),
                logprobs=asked.logprobs,
                session=asked.session,
                timeout_seconds=asked.timeout_seconds,
                priority=asked.priority,
                prompt_field="inputs",
                adapter=adapters["adapter"],
                soft_prompt=adapters["soft_prompt"],
            ),
        )

    def _copies(self, caller: Caller, plan: Plan) -> list[Copy]:
        """What is to run again on a shadow of the template."""
        name, version = plan.template.name, plan.template.version
        if name is None:
            return []
        again = partial(self._again, caller, plan.asked, name)
        return self._service.shadowing.copies(self._templates.names, name, version, again)

    @asynccontextmanager
    async def _again(
        self, caller: Caller, asked: FewShotRequest, name: str, digest: str
    ) -> AsyncIterator[Again]:
        """A request again, on another version of its template."""
        plan = await self.resolve(caller, replace(asked, template=f"{name}@{digest}"))
        request, asker = plan.request, asker_of(caller, asked.session)
        async with self._service.registry.lease(
            request.adapter, request.soft_prompt, asker=asker, spare=True
        ) as adapters:
            few_shot = await self.fitted(plan, adapters)
            prompts = [each.prompt for each in few_shot.prompts]
            self._service.check_fit(prompts, request)
            self._service.check_has_encoder_if_asked(request)
            await self._engine.check_structure(request.sampling)
            yield Again(request.sampling, prompts)

    async def find(self, caller: Caller, asked: FewShotRequest) -> ResolvedTemplate:
        """The template that is named, or that came with the request."""
        template = asked.template
        if isinstance(template, str):
            caller.require_template(template, "template")
            asker = asker_of(caller, asked.session)
            return await self._templates.resolve(template, caller.may_use_template, asker)
        try:
            compiled = await self._templates.compiled(template)
        except TemplateRejected as error:
            raise TemplateRejected(error.message, param="template") from error
        return ResolvedTemplate(None, template.digest, compiled)

    async def fitted(self, plan: Plan, adapters: Adapters) -> FewShotPrompts:
        """Every prompt, with as many examples as fit."""
        indices = range(len(plan.asked.inputs))
        prompts = await gather(self._fit(plan, adapters, index) for index in indices)
        return FewShotPrompts(plan.template, plan.examples, plan.num_shots, prompts)

    async def _fit(self, plan: Plan, adapters: Adapters, index: int) -> FewShotPrompt:
        draft = await asyncio.to_thread(_draft, plan, plan.asked.inputs[index])

        def shown(num_shots: int) -> list[int]:
            return as_shown(plan.selection, draft.chosen[:num_shots])

        def source(num_shots: int) -> str | Chat:
            shots = [plan.examples.shots[each] for each in shown(num_shots)]
            return plan.template.compiled.prompt(shots, draft.query)

        async def tokens(num_shots: int) -> list[int]:
            return await tokenize(self._engine, source(num_shots))

        without_shots = await exact_text(self._engine, source(0))
        which = f"the prompt of {_which(index, plan.asked)}"
        await check_can_fit(self._engine, without_shots, which, "inputs")
        num_behind = await self._num_behind(draft, plan.request.sampling.max_new_tokens)
        info = self._engine.info
        behind = num_behind if info.encoder_window is None else 0
        room = info.prompt_window - adapters.num_virtual_tokens - behind
        num_shots, token_ids = await most_shots_that_fit(len(draft.chosen), tokens, room)
        if (excess := len(token_ids) - room) > 0:
            raise self._too_long(plan, adapters, index, len(token_ids), excess)
        return FewShotPrompt(
            prompt=prompt_of(index, token_ids, adapters),
            text=await exact_text(self._engine, source(num_shots)),
            shown=tuple(shown(num_shots)),
            dropped=tuple(draft.chosen[num_shots:]),
            continuations=draft.continuations,
        )

    async def _num_behind(self, draft: _Draft, max_new_tokens: int) -> int:
        """The tokens that have to fit behind a prompt: a completion, and each of the labels."""
        labels = [
            # One more, because tokens may fall otherwise where prompt and label meet.
            1 + len(await self._engine.tokenize(text, add_special_tokens=False))
            for text in draft.continuations
        ]
        return max([max_new_tokens, *labels])

    def _too_long(
        self, plan: Plan, adapters: Adapters, index: int, num_tokens: int, excess: int
    ) -> ContextWindowExceeded:
        num_virtual = adapters.num_virtual_tokens
        if (window := self._engine.info.encoder_window) is not None:
            return ContextWindowExceeded(
                f"{_which(index, plan.asked)} with zero shots make a prompt of {num_tokens:,} "
                f"tokens, its soft prompt has {num_virtual:,}; the encoder's window is "
                f"{window:,}: shorten the inputs by {excess:,} tokens",
                param="inputs",
            )
        return ContextWindowExceeded(
            f"{_which(index, plan.asked)} with zero shots make a prompt of {num_tokens:,} tokens"
            + (f", its soft prompt has {num_virtual:,}" if num_virtual else "")
            + f" and max_new_tokens is {plan.request.sampling.max_new_tokens:,}; the context "
            f"window is {self._engine.info.context_window:,}: shorten the inputs by {excess:,} "
            "tokens, or lower max_new_tokens",
            param="inputs",
        )

    async def _scored(
        self, plan: Plan, admitted: Admitted, fitted: FewShotPrompts
    ) -> FewShotPrompts:
        """The same prompts, with the scores of their labels."""
        if not plan.template.compiled.template.labels:
            return fitted
        prompts = await gather(self._score(plan, admitted, prompt) for prompt in fitted.prompts)
        return replace(fitted, prompts=prompts)

    async def _score(self, plan: Plan, admitted: Admitted, prompt: FewShotPrompt) -> FewShotPrompt:
        labels = plan.template.compiled.template.labels
        has_encoder = self._engine.info.encoder_window is not None
        sequences = await (self._decoded if has_encoder else self._continued)(plan, prompt)
        numbers = count()

        async def next_token_logprobs(token_ids: list[int]) -> NDArray[np.float32]:
            request_id = f"{plan.request.request_id}-label-{prompt.prompt.index}"
            index = next(numbers)
            asked = (
                prompt_of(index, prompt.prompt.token_ids, admitted.adapters, tuple(token_ids[1:]))
                if has_encoder
                else prompt_of(index, token_ids, admitted.adapters)
            )
            return await self._service.score(request_id, asked, admitted)

        return replace(prompt, labels=await score_labels(labels, sequences, next_token_logprobs))

    async def _continued(self, plan: Plan, prompt: FewShotPrompt) -> list[list[int]]:
        """The tokens of the prompt with each label behind it."""
        with_special_tokens = not plan.template.compiled.template.use_chat_template
        return [
            await self._engine.tokenize(prompt.text + each, add_special_tokens=with_special_tokens)
            for each in prompt.continuations
        ]

    async def _decoded(self, plan: Plan, prompt: FewShotPrompt) -> list[list[int]]:
        """What a decoder makes for each label: the token that it starts with, label and end."""
        return [
            [DECODER_START, *await self._engine.tokenize(each.lstrip())]
            for each in prompt.continuations
        ]


def _draft(plan: Plan, inputs: Inputs) -> _Draft:
    """Raises `InvalidRequest` where the inputs cannot be put into the template."""
    compiled = plan.template.compiled
    query = compiled.query(inputs)
    chosen = most_useful(
        plan.selection,
        plan.examples,
        plan.num_shots,
        text_of_inputs(inputs),
        plan.asked.selection_seed or 0,
    )
    return _Draft(query, tuple(compiled.continuations(inputs, query)), chosen)


def _texts(asked: FewShotRequest) -> list[str]:
    return [text_of_inputs(inputs) for inputs in asked.inputs]


def _which(index: int, asked: FewShotRequest) -> str:
    return "inputs" if len(asked.inputs) == 1 else f"inputs {index}"


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
    for group in GROUPS:
        if given.keys() & group:
            defaults = {name: each for name, each in defaults.items() if name not in group}
    if "max_new_tokens" in given and "min_new_tokens" in defaults:
        defaults["min_new_tokens"] = min(defaults["min_new_tokens"], given["max_new_tokens"])
    return defaults | dict(given)
