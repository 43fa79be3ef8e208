"""OpenAI's protocol on vLLM's own serving objects; the only importer of `vllm.entrypoints`.

The plot: vLLM reads a call, renders its prompts and writes the answer. Each call gets a copy of the
serving object, whose engine is a view of the real one: there, each prompt waits for its turn, gets
its adapters, and is counted. No header of a client comes this far. Of an encoder in the model vLLM
is told nothing here: the view gives the prompt to it.

This module imports vLLM, so it is imported when the engine starts.
"""

import asyncio
import copy
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from app.engine.generation import GenerationChunk
from app.engine.openai import OpenAICall, Operation, Turns, max_tokens_of
from app.engine.protocol import Prompt
from app.engine.vllm.outputs import chunk_of
from app.engine.vllm.structures import laid_out
from app.errors import ContextWindowExceeded, InvalidRequest
from app.tasks import end

if TYPE_CHECKING:
    from vllm.config import ModelConfig

    from app.engine.vllm.engine import VLLMEngine

RequestT = TypeVar("RequestT", bound=BaseModel)

# It logs with a traceback what is told to the client, or raised and logged here.
LOGGER = "vllm.entrypoints"
DONE = "data: [DONE]\n\n"
ERROR = 'data: {"error":'
# What vLLM says of a prompt that does not fit, by the parameter that it names.
TOO_LONG = ("input_tokens", "input_text", "input")

REQUESTS: dict[Operation, type[BaseModel]] = {
    "completions": CompletionRequest,
    "chat": ChatCompletionRequest,
    "responses": ResponsesRequest,
}


class VLLMOpenAI:
    """`OpenAI` on a started `VLLMEngine`."""

    def __init__(self, engine: "VLLMEngine", tool_parser: str | None) -> None:
        self._engine = engine
        self._calls_tools = tool_parser is not None
        logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
        llm = engine.llm
        config = llm.model_config
        self._config = _WithoutEncoder(config) if config.is_encoder_decoder else config
        template = getattr(llm.renderer.get_tokenizer(), "chat_template", None)
        self._shows_tools = not isinstance(template, str) or "tools" in template
        models = OpenAIServingModels(llm, [BaseModelPath(llm.model_config.model, "")])
        chat: dict[str, Any] = {
            "request_logger": None,
            "chat_template": None,
            "chat_template_content_format": "auto",
        }
        tools: dict[str, Any] = {
            "enable_auto_tools": self._calls_tools,
            "tool_parser": tool_parser,
        }
        details: dict[str, Any] = {"enable_prompt_tokens_details": True}
        renderer = OnlineRenderer(self._config, llm.renderer, **chat, **tools)
        self._serving: dict[Operation, Any] = {
            "completions": OpenAIServingCompletion(
                llm, models, online_renderer=renderer, request_logger=None, **details
            ),
            "chat": OpenAIServingChat(
                llm, models, "assistant", online_renderer=renderer, **chat, **tools, **details
            ),
            "responses": OpenAIServingResponses(llm, models, renderer, **chat, **tools, **details),
        }
        self._tokenization = ServingTokenization(models, renderer, **chat)
        self._tokenization.model_config = llm.model_config

    async def answer(self, call: OpenAICall, turns: Turns) -> AsyncGenerator[bytes]:
        self._check_tools(call)
        view = _EngineView(self._engine, call, turns)
        try:
            with _told_as_ours():
                answer = await self._create(call, view)(self._request(call))
            if not isinstance(answer, AsyncGenerator):
                yield _json(answer)
                return
            async with aclosing(answer) as events:
                async for event in events:
                    view.check()
                    if (sent := _event(event)) is not None:
                        yield sent
        finally:
            await view.close()

    async def tokenize(self, fields: Mapping[str, Any]) -> bytes:
        kind = TokenizeChatRequest if "messages" in fields else TokenizeCompletionRequest
        with _told_as_ours():
            request: BaseModel = _parsed(kind, fields)
            return _json(await self._tokenization.create_tokenize(request, None))

    async def detokenize(self, token_ids: list[int]) -> bytes:
        with _told_as_ours():
            request = DetokenizeRequest(tokens=token_ids)
            return _json(await self._tokenization.create_detokenize(request, None))

    def _request(self, call: OpenAICall) -> BaseModel:
        """The call as vLLM reads it. Models are not its affair: it is told of none."""
        names = self._engine.special_tokens.intersection(call.fields.get("stop", ()))
        fields = {**call.fields, "request_id": call.request_id}
        if names:
            # A special token is not in the text, where stop strings are looked for.
            ids = self._engine.ids_of_special_tokens(names)
            fields["stop_token_ids"] = [*fields.get("stop_token_ids", ()), *ids]
        with _told_as_ours():
            return _parsed(REQUESTS[call.operation], fields)

    def _create(self, call: OpenAICall, view: "_EngineView") -> Callable[[Any], Awaitable[Any]]:
        serving = copy.copy(self._serving[call.operation])
        serving.engine_client = view
        serving.model_config = self._config
        serving.models = SimpleNamespace(model_name=lambda _: call.model, lora_requests={})
        create: dict[Operation, str] = {
            "completions": "create_completion",
            "chat": "create_chat_completion",
            "responses": "create_responses",
        }
        method: Callable[[Any], Awaitable[Any]] = getattr(serving, create[call.operation])
        return method

    def _check_tools(self, call: OpenAICall) -> None:
        if not call.fields.get("tools") or call.fields.get("tool_choice") == "none":
            return
        if not self._calls_tools:
            raise InvalidRequest(
                "this server reads no calls of tools from the model's text: leave tools out, or "
                "start it with --tool-parser",
                param="tools",
            )
        if call.fields.get("tool_choice", "auto") != "auto":
            return
        # Responses have no `function` around it.
        if any(tool.get("function", tool).get("strict") for tool in call.fields["tools"]):
            raise InvalidRequest(
                "strict has no effect where the model may choose: set tool_choice to required, or "
                "to a tool, whose arguments always follow the schema; or leave strict out",
                param="tools",
            )
        if not self._shows_tools:
            raise InvalidRequest(
                "the model's chat template does not show it the tools, so that it would never "
                "choose one: set tool_choice to required, or to a tool",
                param="tool_choice",
            )


class _EngineView:
    """The engine as one call sees it. What is not here is the engine's own."""

    def __init__(self, engine: "VLLMEngine", call: OpenAICall, turns: Turns) -> None:
        self._engine = engine
        self._call = call
        self._turns = turns
        self._failure: Exception | None = None
        self._working: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.llm, name)

    def generate(
        self, prompt: Mapping[str, Any], sampling_params: SamplingParams, *_: Any, **__: Any
    ) -> AsyncGenerator[RequestOutput]:
        """As vLLM's; of what it is given besides, nothing is the caller's to say."""
        asked = self._turns.prompt(prompt["prompt_token_ids"])
        return self._outputs(asked, sampling_params, self._room(asked, sampling_params))

    @property
    def _has_encoder(self) -> bool:
        return self._engine.info.encoder_window is not None

    def check(self) -> None:
        """Raises what has failed here: vLLM makes an event of it."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """End what is running."""
        await end(self._working)

    async def _outputs(
        self, asked: Prompt, params: SamplingParams, max_tokens: int
    ) -> AsyncGenerator[RequestOutput]:
        """The work is a task of this call: vLLM may leave early what it iterates over."""
        made: asyncio.Queue[RequestOutput | None] = asyncio.Queue()
        task = asyncio.create_task(self._work(asked, params, max_tokens, made))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        while (output := await made.get()) is not None:
            yield output
        self.check()

    async def _work(
        self,
        asked: Prompt,
        params: SamplingParams,
        max_tokens: int,
        made: asyncio.Queue[RequestOutput | None],
    ) -> None:
        try:
            async with aclosing(self._generate(asked, params, max_tokens)) as outputs:
                if params.output_kind == RequestOutputKind.DELTA:
                    async for output in outputs:
                        made.put_nowait(output)
                else:
                    made.put_nowait(await _whole(outputs))
        # It is raised where the answer is written.
        except Exception as error:  # noqa: BLE001
            self._failure = self._failure or error
        finally:
            made.put_nowait(None)

    async def _generate(
        self, asked: Prompt, params: SamplingParams, max_tokens: int
    ) -> AsyncGenerator[RequestOutput]:
        """Piece by piece, whatever the call wants: what is made is counted as it is."""
        params = copy.copy(params)
        params.output_kind = RequestOutputKind.DELTA
        params.max_tokens = max_tokens
        params.structured_outputs = _as_tried(params.structured_outputs)
        async with self._turns.begin(asked, params.n) as turn:
            running = self._engine.outputs(turn.request_id, asked, params, self._call.priority)
            async with aclosing(running) as outputs:
                async for output in outputs:
                    for completion in output.outputs:
                        chunk = chunk_of(asked, output, completion, params.logprobs)
                        turn.record(self._counted(chunk))
                    yield _as_asked(output, asked, has_encoder=self._has_encoder)
                    await turn.keep_pace()

    def _counted(self, chunk: GenerationChunk) -> GenerationChunk:
        """A step of a beam is a prompt of its own only to the engine."""
        if not self._call.fields.get("use_beam_search"):
            return chunk
        return replace(chunk, prompt_index=0, index=chunk.prompt_index)

    def _room(self, asked: Prompt, params: SamplingParams) -> int:
        """The tokens to generate at most: vLLM knows of no virtual ones."""
        if self._has_encoder:
            # It is checked where the prompt is made.
            return int(params.max_tokens)
        window = self._engine.info.context_window
        room = window - len(asked.token_ids) - asked.num_virtual_tokens
        most: int = params.max_tokens
        if room >= most or (room > 0 and max_tokens_of(self._call.fields) is None):
            return min(room, most)
        raise ContextWindowExceeded(
            f"the prompt has {len(asked.token_ids):,} tokens, its soft prompt "
            f"{asked.num_virtual_tokens:,} and {most:,} are to be generated; the "
            f"context window is {window:,}: shorten the prompt by {most - room:,} "
            "tokens, or ask for fewer",
            param="prompt",
        )


def _as_tried(structure: StructuredOutputsParams | None) -> StructuredOutputsParams | None:
    """The structure as the engine compiles it elsewhere, and has tried it."""
    if structure is None or structure.json is None:
        return structure
    schema = json.loads(structure.json) if isinstance(structure.json, str) else structure.json
    return StructuredOutputsParams(json=laid_out(schema))


async def _whole(outputs: AsyncGenerator[RequestOutput]) -> RequestOutput:
    """All pieces as one, its completions in their order."""
    whole = await anext(outputs)
    async for output in outputs:
        whole.add(output, aggregate=True)
    whole.outputs.sort(key=lambda completion: completion.index)
    return whole


class _WithoutEncoder:
    """A model's configuration as if it had no encoder: vLLM's serving knows of none of texts."""

    is_encoder_decoder = False

    def __init__(self, config: "ModelConfig") -> None:
        self._config = config
        # A prompt and its completion, each as long as it may be.
        self.max_model_len = config.hf_config.encoder_window + config.max_model_len

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _as_asked(output: RequestOutput, asked: Prompt, *, has_encoder: bool) -> RequestOutput:
    """With the prompt as it was given: without virtual tokens, and what an encoder has of it."""
    if not (asked.num_virtual_tokens or has_encoder):
        return output
    if output.prompt_token_ids is not None:
        output.prompt_token_ids = [*asked.token_ids, *asked.decoder_ids]
    if output.prompt_logprobs is not None:
        output.prompt_logprobs = output.prompt_logprobs[asked.num_virtual_tokens :]
    if output.num_cached_tokens is not None:
        output.num_cached_tokens = max(0, output.num_cached_tokens - asked.num_virtual_tokens)
    return output


def _parsed(kind: type[RequestT], fields: Mapping[str, Any]) -> RequestT:
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        # The others tell alternatives apart, and are no fields.
        where = "".join(f"[{part}]" for part in first["loc"][1:] if isinstance(part, int))
        param = str(first["loc"][0]) if first["loc"] else None
        what = f"{param}{where}: " if param else ""
        raise InvalidRequest(f"{what}{first['msg']}", param=param) from error
    return request


@contextmanager
def _told_as_ours() -> Iterator[None]:
    """What vLLM says of a client's mistake, as softserve's own error.

    By vLLM's convention, that is also what every ValueError of its is.
    """
    from jinja2.exceptions import TemplateError

    try:
        yield
    except VLLMValidationError as error:
        raise _refusal(str(error), error.parameter) from error
    except (VLLMClientError, TemplateError, ValueError, NotImplementedError) as error:
        raise InvalidRequest(str(error)) from error


def _error_of(error: ErrorInfo) -> Exception:
    """What vLLM tells in place of an answer."""
    if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return RuntimeError(error.message)
    return _refusal(error.message, error.param)


def _refusal(message: str, param: str | None) -> InvalidRequest:
    if param in TOO_LONG and "context length" in message:
        return ContextWindowExceeded(message, param="prompt")
    return InvalidRequest(message, param=param)


def _event(event: str | BaseModel) -> bytes | None:
    """An event as it is sent. Raises what it tells of a failure; the last one is not here."""
    if isinstance(event, BaseModel):
        kind = event.type  # type: ignore[attr-defined]
        return f"event: {kind}\ndata: {event.model_dump_json(by_alias=True)}\n\n".encode()
    if event.startswith(ERROR):
        raise _error_of(ErrorInfo(**json.loads(event.removeprefix("data: "))["error"]))
    return None if event == DONE else event.encode()


def _json(answer: BaseModel) -> bytes:
    if isinstance(answer, ErrorResponse):
        raise _error_of(answer.error)
    return answer.model_dump_json().encode()
