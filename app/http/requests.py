"""From the wire to the domain: what a body asks for."""

from app.engine.generation import GenerationRequest, PromptStyle, resolve_sampling
from app.serving.few_shot import FewShotRequest
from softserve.schema.controls import AdapterChoice, PromptControls
from softserve.schema.generation import GenerateBody
from softserve.schema.icl import IclGenerateBody, RenderBody
from softserve.schema.inspection import InspectBody


def generation_request(body: GenerateBody, request_id: str) -> GenerationRequest:
    """Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request_id,
        num_prompts=len(body.prompt),
        sampling=resolve_sampling(**body.sampling_given()),
        logprobs=body.logprobs,
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
    )


def inspection_request(body: InspectBody, request_id: str) -> GenerationRequest:
    """The request for the one token that is inspected. Raises `InvalidRequest`."""
    return GenerationRequest(
        request_id=request_id,
        num_prompts=1,
        sampling=resolve_sampling(**body.sampling_given(), max_new_tokens=1),
        adapter=body.adapter,
        soft_prompt=body.soft_prompt,
    )


def prompt_style(body: PromptControls) -> PromptStyle:
    """Raises `InvalidRequest`."""
    return PromptStyle(body.use_chat_template, body.system)


def few_shot_request(body: RenderBody, request_id: str) -> FewShotRequest:
    """What a template is to be filled with."""
    return FewShotRequest(
        request_id=request_id,
        template=body.template,
        inputs=tuple(body.inputs),
        shots=body.shots,
        selection=body.selection,
        selection_seed=body.selection_seed,
        examples=None if body.examples is None else tuple(body.examples),
        sampling=body.sampling_given(),
        adapters=body.model_dump(include=set(AdapterChoice.model_fields), exclude_unset=True),
        logprobs=body.logprobs if isinstance(body, IclGenerateBody) else None,
    )
