"""From OpenAI's wire to the domain: what a body of `/v1` asks for."""

from typing import Any

from fastapi import Request

from app.engine.openai import Operation
from app.errors import InvalidRequest
from app.http.requests import SESSION_HEADER
from app.serving.few_shot import FewShotRequest
from app.serving.openai import OpenAIRequest, controls_of
from softserve.schema.controls import DecoderPrompt, Scheduling
from softserve.schema.openai import (
    CallerTags,
    ChatBody,
    CompletionsBody,
    OpenAISampling,
    ResponsesBody,
    TemplateFields,
)

OPERATIONS: dict[type[OpenAISampling], Operation] = {
    CompletionsBody: "completions",
    ChatBody: "chat",
    ResponsesBody: "responses",
}
# What is softserve's own.
OWN_FIELDS = {
    *("model", *Scheduling.model_fields),
    *(*TemplateFields.model_fields, *DecoderPrompt.model_fields),
}
# What a search of beams goes by, beside what a prompt is made from and how it is answered.
BEAM_FIELDS = {
    *("prompt", "messages", "use_beam_search", "n", "length_penalty", "temperature", "ignore_eos"),
    *("max_tokens", "max_completion_tokens", "include_stop_str_in_output", "skip_special_tokens"),
    *("echo", "logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids"),
    *("add_special_tokens", "add_generation_prompt", "continue_final_message"),
    *("chat_template_kwargs", "stream"),
}


def openai_request(body: OpenAISampling, request: Request) -> OpenAIRequest:
    """Raises `InvalidRequest` for fields that contradict each other, or would have no effect."""
    fields = _fields(body)
    _check(body, fields)
    return OpenAIRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        operation=OPERATIONS[type(body)],
        model=body.model,
        fields=fields,
        sources=_sources(body),
        timeout_seconds=body.timeout_seconds,
        priority=body.priority,
        template=_template(body, request),
        decoder_prompt=body.decoder_prompt if isinstance(body, CompletionsBody) else None,
    )


def _fields(body: OpenAISampling) -> dict[str, Any]:
    """The protocol's own fields, as they were given."""
    # Responses repeat the caller's tags.
    tags = set() if isinstance(body, ResponsesBody) else set(CallerTags.model_fields)
    fields = body.model_dump(
        by_alias=True, exclude_unset=True, exclude_none=True, exclude=OWN_FIELDS | tags
    )
    if isinstance(body, CompletionsBody) and body.template is None:
        fields["max_tokens"] = body.max_tokens
    if isinstance(body, ResponsesBody):
        fields["store"] = False
    return fields


def _sources(body: OpenAISampling) -> list[str] | list[list[int]]:
    """About what the prompts are made from."""
    match body:
        case CompletionsBody():
            return body.prompt or []
        case ChatBody():
            return [str([message.content for message in body.messages])]
        case ResponsesBody():
            return [f"{body.instructions}{body.input}"]
        case _:
            raise TypeError(body)


def _template(body: OpenAISampling, request: Request) -> FewShotRequest | None:
    if not isinstance(body, CompletionsBody) or body.template is None:
        return None
    return FewShotRequest(
        request_id=request.state.request_id,
        session=request.headers.get(SESSION_HEADER),
        template=body.template,
        inputs=tuple(body.inputs or ()),
        shots=body.shots,
        selection=body.selection,
        selection_seed=body.selection_seed,
        examples=None if body.examples is None else tuple(body.examples),
        sampling=controls_of(_fields(body)),
        timeout_seconds=body.timeout_seconds,
        priority=body.priority,
    )


def _check(body: OpenAISampling, fields: dict[str, Any]) -> None:
    match body:
        case CompletionsBody():
            _check_prompt(body)
        case ChatBody():
            if body.max_tokens is not None and body.max_completion_tokens is not None:
                raise InvalidRequest(
                    "max_tokens and max_completion_tokens are the same limit: leave max_tokens out",
                    param="max_tokens",
                )
        case ResponsesBody():
            if body.top_logprobs is not None and not body.include:
                raise InvalidRequest(
                    "top_logprobs has no effect without include: add message.output_text.logprobs",
                    param="top_logprobs",
                )
    _check_beams(fields)


def _check_prompt(body: CompletionsBody) -> None:
    if body.template is None:
        if given := sorted(TemplateFields.model_fields.keys() & body.model_fields_set):
            raise InvalidRequest(
                f"{given[0]} has no effect without a template: name one, or leave it out",
                param=given[0],
            )
        if body.prompt is None:
            raise InvalidRequest("prompt is missing: it is required", param="prompt")
        return
    if body.decoder_prompt is not None:
        raise InvalidRequest(
            "decoder_prompt has no effect with a template: leave one of them out",
            param="decoder_prompt",
        )
    if (body.prompt is None) == (body.inputs is None):
        raise InvalidRequest(
            "a template takes its inputs either from prompt or from inputs: give one of them",
            param="inputs",
        )


def _check_beams(fields: dict[str, Any]) -> None:
    if not fields.get("use_beam_search"):
        if "length_penalty" in fields:
            raise InvalidRequest(
                "length_penalty has no effect without use_beam_search: leave it out",
                param="length_penalty",
            )
        return
    if ignored := sorted(fields.keys() - BEAM_FIELDS):
        raise InvalidRequest(
            f"{ignored[0]} has no effect on a search of beams: leave one of the two out",
            param=ignored[0],
        )
    if fields.get("stream"):
        raise InvalidRequest("a search of beams has no stream: leave one out", param="stream")
    if len(fields.get("prompt", ["one"])) > 1:
        raise InvalidRequest("a search of beams takes one prompt: send one each", param="prompt")
