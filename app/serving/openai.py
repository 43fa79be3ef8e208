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
from app.engine.generation import GenerationRequest
from app.engine.openai import OpenAICall, Operation, max_tokens_of
from app.engine.protocol import Prompt
from app.errors import AdapterNotFound, InvalidRequest
from app.serving.admitted import Admitted
from app.serving.few_shot import FewShot, FewShotRequest, Plan
from app.serving.generation import Generation
from app.serving.prompts import prompt_of
from app.serving.run import Run, Turn
from app.serving.service import Service
from app.versions.records import Record
from softserve.schema.controls import CONTROLS, STRUCTURES, Sampling
from softserve.schema.openai import ModelOut
from softserve.schema.templates import Inputs, Template

# Between the names of a LoRA and a soft prompt; no name has it.
PAIR = "+"
# What OpenAI calls otherwise.
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """What a client asks.

    `fields` are those of the protocol that were given. `sources` are what its prompts are made
    from, texts or tokens. With a `template`, the texts are its inputs, unless it has others.
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
        self._check_has_no_encoder()
        named = self.adapters_of(caller, asked.model)
        plan = None if asked.template is None else await self._plan(caller, asked, named)
        request = self._request(asked, named) if plan is None else plan.request
        self._check_messages(asked)
        async with self._service.admit(caller, request, asked.sources) as admitted:
            for tool in asked.fields.get("tools", ()):
                await self._check_tool(tool)
            fields = asked.fields if plan is None else await self._filled(plan, asked, admitted)
            model = self._model_of(admitted.adapters)
            call = OpenAICall(asked.request_id, asked.operation, fields, model, asked.priority)
            admitted.ledger.begin_generation(self._engine.info.model, request.sampling)
            run: Run[bytes] = self._service.run(request, admitted)

            async def work() -> None:
                turns = _Turns(run, admitted)
                async with aclosing(self._engine.openai.answer(call, turns)) as pieces:
                    async for piece in pieces:
                        run.put(piece)

            async with aclosing(run.items(work)) as pieces:
                yield Generation(request, model, admitted.adapters, admitted.ledger, pieces)

    def _check_has_no_encoder(self) -> None:
        if self._engine.info.encoder_window is not None:
            raise InvalidRequest(
                "OpenAI's protocol is not spoken with encoder-decoder models: send the prompt to "
                "POST /generate",
                param="model",
            )

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
        self._check_has_no_encoder()
        self.adapters_of(caller, model)
        return await self._engine.openai.tokenize(fields)

    async def detokenize(self, caller: Caller, model: str | None, token_ids: list[int]) -> bytes:
        """The text of tokens."""
        self._service.check_serving()
        self._check_has_no_encoder()
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
        return await self._few_shot.resolve(caller, filled)

    async def _filled(self, plan: Plan, asked: OpenAIRequest, admitted: Admitted) -> dict[str, Any]:
        """The call's fields, with the prompts and the controls that come from a template."""
        admitted.ledger.use_template(plan.template)
        few_shot = await self._few_shot.fitted(plan, admitted.adapters)
        prompts = [each.prompt.token_ids for each in few_shot.prompts]
        return {**asked.fields, **_fields_of(plan.request.sampling), "prompt": prompts}


def controls_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The controls that fields of the protocol ask for, by softserve's names."""
    given = {
        name: fields[wire] for name in CONTROLS if (wire := OPENAI_NAMES.get(name, name)) in fields
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


def _fields_of(sampling: Sampling) -> dict[str, Any]:
    """The other way round, whatever the fields of a client were."""
    controls = sampling.model_dump(include=set(CONTROLS), exclude_none=True)
    structure = {name: controls.pop(name) for name in STRUCTURES if name in controls}
    fields = {OPENAI_NAMES.get(name, name): value for name, value in controls.items()}
    if structure:
        wire = {"json" if name == "json_schema" else name: structure[name] for name in structure}
        fields |= {"structured_outputs": wire, "response_format": {"type": "text"}}
    return fields


class _Turns:
    """Gives the prompts of one call their adapters and their turns."""

    def __init__(self, run: Run[bytes], admitted: Admitted) -> None:
        self._run = run
        self._admitted = admitted
        self._num_prompts = 0
        self._num_prompt_tokens = 0
        self._has_begun = False

    def prompt(self, token_ids: list[int]) -> Prompt:
        prompt = prompt_of(self._num_prompts, token_ids, self._admitted.adapters)
        self._num_prompts += 1
        self._num_prompt_tokens += len(token_ids)
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
