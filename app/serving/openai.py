"""OpenAI's protocol: names of models, and calls that are admitted and run as `/generate` is.

The plot: find what a model's name stands for, admit, and have the engine answer the call, whose
prompts each have their turn here.
"""

import difflib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from app.access.caller import Caller, name_in
from app.adapters.registry import Adapters
from app.engine.generation import GenerationRequest, PromptSource
from app.engine.openai import OpenAICall, Operation, max_tokens_of
from app.engine.protocol import Prompt
from app.errors import AdapterNotFound, InvalidRequest
from app.serving.admitted import Admitted
from app.serving.few_shot import FewShot, FewShotRequest, Plan
from app.serving.generation import Generation
from app.serving.prompts import prompt_of
from app.serving.run import Run, Turn
from app.serving.service import Service
from app.tasks import gather
from app.versions.records import Record
from softserve.schema.controls import BEAMS, CONTROLS, STRUCTURES, Sampling
from softserve.schema.openai import ModelOut
from softserve.schema.templates import Inputs, Template

# Between the names of a LoRA and a soft prompt; no name has it.
PAIR = "+"
# Of a prompt that a decoder does not go on with: what would have no meaning.
NOT_OF_ENCODERS = {
    "echo": "a completion does not go on with the prompt",
    "prompt_logprobs": "the prompt's tokens have no probabilities",
    "use_beam_search": "beams would go on with the prompt",
}
# The protocol has a beam search of its own, of decoder-only models.
SHARED_CONTROLS = tuple(name for name in CONTROLS if name not in BEAMS)
# What OpenAI calls otherwise.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """What a client asks.

    `fields` are those of the protocol that were given. `sources` are what its prompts are made
    from, texts or tokens. With a `template`, the texts are its inputs, unless it has others.
    `decoder_prompt` is as in `GenerationRequest`.
    """

    request_id: str
    operation: Operation
    model: str | None
    fields: Mapping[str, Any]
    sources: list[str] | list[list[int]]
    session: str | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    template: FewShotRequest | None = None
    decoder_prompt: str | None = None


class OpenAIService:
    """The operations of the protocol."""

    def __init__(self, service: Service, few_shot: FewShot) -> None:
        self._service = service
        self._engine = service.engine
        self._few_shot = few_shot
        self._names = service.registry.names
        self._started_at = int(time.time())

    @asynccontextmanager
    async def answer(
        self, caller: Caller, asked: OpenAIRequest
    ) -> AsyncIterator[Generation[bytes]]:
        """The bytes of the answer, as they come. Leaving early aborts what is running.

        Raises as `Service.generate`, `FewShot.generate`, and `adapters_of`.
        """
        self._service.check_serving()
        if self._has_encoder:
            _check_of_encoder(asked.fields)
        named = self.adapters_of(caller, asked.model)
        plan = None if asked.template is None else await self._plan(caller, asked, named)
        request = self._request(asked, named) if plan is None else plan.request
        self._check_messages(asked)
        async with self._service.admit(caller, request, asked.sources) as admitted:
            for tool in asked.fields.get("tools", ()):
                await self._check_tool(tool)
            prompts = await self._prompts(plan, asked, request, admitted)
            fields = _with_prompts(asked.fields, plan, prompts)
            model = self._model_of(admitted.adapters)
            call = OpenAICall(asked.request_id, asked.operation, fields, model, asked.priority)
            admitted.ledger.begin_generation(self._engine.info.model, request.sampling)
            run: Run[bytes] = self._service.run(request, admitted)

            async def work() -> None:
                turns = _Turns(run, admitted, prompts[0].decoder_ids if prompts else ())
                async with aclosing(self._engine.openai.answer(call, turns)) as pieces:
                    async for piece in pieces:
                        run.put(piece)

            async with aclosing(run.items(work)) as pieces:
                yield Generation(request, model, admitted.adapters, admitted.ledger, pieces)

    @property
    def _has_encoder(self) -> bool:
        return self._engine.info.encoder_window is not None

    def adapters_of(self, caller: Caller, model: str | None) -> dict[str, str]:
        """The adapters that the name of a model stands for, by the fields that take them.

        Raises:
            AdapterNotFound: there is no such model; the message has those that are near.
            NotPermitted: the caller may not use it.
            InvalidRequest: two adapters of one kind.
        """
        adapters: dict[str, str] = {}
        if model is None or model == self._engine.info.model:
            return adapters
        for reference in model.split(PAIR):
            caller.require_adapter(reference, "model")
            record = self._find(caller, model, name_in(reference))
            param = "adapter" if record.kind == "lora" else "soft_prompt"
            if param in adapters:
                raise InvalidRequest(
                    f"model names {adapters[param]} and {reference}, which are of one kind: join a "
                    f"LoRA adapter and a soft prompt with {PAIR}",
                    param="model",
                )
            adapters[param] = reference
        return adapters

    def models(self, caller: Caller) -> list[ModelOut]:
        """Every model that the caller may name, but for pairs."""
        names = [name for name in self._names.live if caller.may_use_adapter(name)]
        return [self.model(caller, name) for name in (self._engine.info.model, *sorted(names))]

    def model(self, caller: Caller, name: str) -> ModelOut:
        """One model, by any name that a request may give it. Raises as `adapters_of`."""
        references = self.adapters_of(caller, name).values()
        versions = [
            self._names.resolve(reference.partition("#")[0], "model") for reference in references
        ]
        records = [self._names.find(each, "model") for each, _ in versions]
        kinds = [record.kind or "" for record in records] or ["base"]
        created = [
            int(entry.created_at.timestamp())
            for record, (_, digest) in zip(records, versions, strict=True)
            for entry in record.history
            if entry.digest == digest
        ]
        return ModelOut(
            id=name,
            created=max(created, default=self._started_at),
            owned_by="softserve",
            kind="pair" if len(kinds) > 1 else kinds[0],
            parent=self._engine.info.model if records else None,
            version=PAIR.join(digest for _, digest in versions) or None,
            max_model_len=self._engine.info.context_window,
        )

    async def tokenize(self, caller: Caller, model: str | None, fields: Mapping[str, Any]) -> bytes:
        """The tokens of a text or of messages: all models have one tokenizer."""
        self._service.check_serving()
        if self._has_encoder:
            _check_of_encoder(fields)
        self.adapters_of(caller, model)
        return await self._engine.openai.tokenize(fields)

    async def detokenize(self, caller: Caller, model: str | None, token_ids: list[int]) -> bytes:
        """The text of tokens."""
        self._service.check_serving()
        self.adapters_of(caller, model)
        return await self._engine.openai.detokenize(token_ids)

    def _find(self, caller: Caller, model: str, name: str) -> Record:
        """The record of a name in that of a model."""
        record = self._names.store.record(name)
        if record is not None and record.is_visible:
            return record
        live = [each for each in self._names.live if caller.may_use_adapter(each)]
        close = difflib.get_close_matches(name, [self._engine.info.model, *live], n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "GET /v1/models lists them"
        which = (
            f"no model is called {model[:64]!r}" if model == name else f"no adapter {name[:64]!r}"
        )
        raise AdapterNotFound(f"{which}: {advice}", param="model")

    def _model_of(self, adapters: Adapters) -> str:
        """What an answer says: it can be asked for by that name."""
        used = [each.reference(each.version.digest) for each in adapters.all]
        return PAIR.join(used) or self._engine.info.model

    def _request(self, asked: OpenAIRequest, adapters: Mapping[str, str]) -> GenerationRequest:
        given = controls_of(asked.fields)
        # Of a prompt that is only shown, one token is made, and left out.
        most = max_tokens_of(asked.fields)
        given["max_new_tokens"] = self._engine.info.context_window if most is None else max(1, most)
        sampling = Sampling(**given, greedy=given.get("temperature") == 0.0)
        return GenerationRequest(
            request_id=asked.request_id,
            num_prompts=max(1, len(asked.sources)),
            sampling=sampling,
            session=asked.session,
            timeout_seconds=asked.timeout_seconds,
            priority=asked.priority,
            adapter=adapters.get("adapter"),
            soft_prompt=adapters.get("soft_prompt"),
            limit_field=OPENAI_NAMES["max_new_tokens"],
            decoder_prompt=asked.decoder_prompt,
        )

    def _check_messages(self, asked: OpenAIRequest) -> None:
        """Raises `InvalidRequest` for more than one request may have."""
        most = self._service.settings.max_messages
        for name in ("messages", "input"):
            given = asked.fields.get(name)
            if isinstance(given, list) and len(given) > most:
                raise InvalidRequest(
                    f"{name} has {len(given):,} messages and the limit is {most:,}: send fewer",
                    param=name,
                )

    async def _check_tool(self, tool: Mapping[str, Any]) -> None:
        """Raises `InvalidRequest` where the engine could not keep its arguments to the schema."""
        # Responses have no `function` around it.
        schema = tool.get("function", tool).get("parameters")
        most = self._service.settings.max_structure_length
        if schema is None:
            return
        if (length := len(json.dumps(schema))) > most:
            raise InvalidRequest(
                f"a tool's parameters have {length:,} characters and the limit is {most:,}: make "
                "them simpler",
                param="tools",
            )
        try:
            await self._engine.check_structure(Sampling(json_schema=schema))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"the parameters of a tool: {error.message}", param="tools"
            ) from error

    async def _plan(
        self, caller: Caller, asked: OpenAIRequest, adapters: Mapping[str, str]
    ) -> Plan:
        """What a template makes of the request. Raises as `FewShot.resolve`."""
        assert asked.template is not None
        template = await self._few_shot.find(caller, asked.template)
        inputs = asked.template.inputs or _inputs(asked.sources, template.compiled.template)
        filled = replace(asked.template, inputs=inputs, adapters=adapters)
        if template.name is not None:
            # A name that is split may stand for another version the next time.
            filled = replace(filled, template=f"{template.name}@{template.version}")
        plan = await self._few_shot.resolve(caller, filled)
        if plan.request.sampling.num_beams > 1:
            raise InvalidRequest(
                "the template asks for num_beams, which OpenAI's protocol has not: leave it out "
                "there, or ask POST /icl/generate",
                param="template",
            )
        return plan

    async def _prompts(
        self,
        plan: Plan | None,
        asked: OpenAIRequest,
        request: GenerationRequest,
        admitted: Admitted,
    ) -> Sequence[Prompt]:
        """The prompts that are made here: those of a template, and all that an encoder gets.

        The engine makes the others.
        """
        prompts: Sequence[Prompt] = ()
        if plan is not None:
            admitted.ledger.use_template(plan.template)
            few_shot = await self._few_shot.fitted(plan, admitted.adapters)
            prompts = [each.prompt for each in few_shot.prompts]
        elif self._has_encoder:
            sources: Sequence[PromptSource] = asked.sources
            whole = asked.fields.get("add_special_tokens", True)
            prompts = await gather(
                self._service.prompt(
                    request, index, source, admitted.adapters, add_special_tokens=whole
                )
                for index, source in enumerate(sources)
            )
        if self._has_encoder:
            self._service.check_fit(prompts, request)
        return prompts


def controls_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The controls that fields of the protocol ask for, by softserve's names."""
    given = {
        name: fields[wire]
        for name in SHARED_CONTROLS
        if (wire := OPENAI_NAMES.get(name, name)) in fields
    }
    structured = fields.get("structured_outputs", {})
    formats = [
        fields.get("response_format", {}).get("json_schema", {}),
        # In Responses.
        fields.get("text", {}).get("format", {}),
    ]
    schemas = [structured.get("json"), *(each.get("schema") for each in formats)]
    structure = {
        "json_schema": next(filter(None, schemas), None),
        "regex": structured.get("regex"),
        "choice": structured.get("choice"),
    }
    return given | {name: value for name, value in structure.items() if value is not None}


def _check_of_encoder(fields: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for what has no meaning where the prompt is an encoder's."""
    for name in ("messages", "input"):
        if name in fields:
            raise InvalidRequest(
                "an encoder-decoder model has no chat template: write the whole prompt yourself "
                "and send it as prompt, to POST /v1/completions for an answer",
                param=name,
            )
    for name, reason in NOT_OF_ENCODERS.items():
        # 0 asks for something, too.
        if name in fields and fields[name] is not False:
            raise InvalidRequest(
                f"{name} is not for encoder-decoder models, because {reason}: leave it out",
                param=name,
            )


def _with_prompts(
    fields: Mapping[str, Any], plan: Plan | None, prompts: Sequence[Prompt]
) -> Mapping[str, Any]:
    """The call's fields, with the prompts that were made here, and a template's controls."""
    if not prompts:
        return fields
    controls = {} if plan is None else _fields_of(plan.request.sampling)
    return {**fields, **controls, "prompt": [prompt.token_ids for prompt in prompts]}


def _fields_of(sampling: Sampling) -> dict[str, Any]:
    """The other way round, whatever the fields of a client were."""
    controls = sampling.model_dump(include=set(SHARED_CONTROLS), exclude_none=True)
    structure = {name: controls.pop(name) for name in STRUCTURES if name in controls}
    fields = {OPENAI_NAMES.get(name, name): value for name, value in controls.items()}
    if structure:
        wire = {"json" if name == "json_schema" else name: structure[name] for name in structure}
        fields |= {"structured_outputs": wire, "response_format": {"type": "text"}}
    return fields


class _Turns:
    """Gives the prompts of one call their adapters and their turns."""

    def __init__(
        self, run: Run[bytes], admitted: Admitted, decoder_ids: tuple[int, ...] = ()
    ) -> None:
        self._run = run
        self._admitted = admitted
        self._decoder_ids = decoder_ids
        self._num_prompts = 0
        self._num_prompt_tokens = 0
        self._has_begun = False

    def prompt(self, token_ids: list[int]) -> Prompt:
        prompt = prompt_of(self._num_prompts, token_ids, self._admitted.adapters, self._decoder_ids)
        self._num_prompts += 1
        self._num_prompt_tokens += prompt.num_tokens
        return prompt

    def begin(self, prompt: Prompt, num_sequences: int) -> AbstractAsyncContextManager[Turn]:
        # Once: all prompts are there before the first begins, and steps of a beam are no prompts.
        if not self._has_begun:
            self._has_begun = True
            self._admitted.ticket.know_prompt_tokens(self._num_prompt_tokens)
        return self._run.turn(prompt, num_sequences)


def _inputs(sources: Sequence[str | list[int]], template: Template) -> tuple[Inputs, ...]:
    """The inputs of a template that has one alone."""
    names = template.input_variables
    if len(names) != 1:
        raise InvalidRequest(
            f"the template has the inputs {', '.join(names)}: give them in inputs, not in prompt",
            param="inputs",
        )
    texts = [source for source in sources if isinstance(source, str)]
    if not sources or len(texts) < len(sources):
        raise InvalidRequest(
            f"the template's {names[0]} is missing: give it as prompt, a text or several",
            param="prompt",
        )
    return tuple({names[0]: text} for text in texts)
