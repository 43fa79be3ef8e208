"""The wire format: what a body may hold, and what an answer holds, each field with an example.

Types and plain ranges are checked here; what needs the model, or two fields at once, is checked in
the domain.
"""

from dataclasses import asdict
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.controls import (
    AdapterChoice,
    FilterControls,
    NonEmptyText,
    PromptControls,
    SamplingFields,
    one_or_more,
    one_or_more_schema,
)
from app.engine.protocol import Prompt
from app.generation import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    PromptFormat,
    SamplingControls,
    resolve_sampling,
)
from app.inspection import Filter
from app.service import InspectionRequest
from app.settings import Limits

# Not a union: an error would be told once for each of its members.
Prompts = Annotated[
    list[NonEmptyText],
    Field(min_length=1),
    BeforeValidator(one_or_more),
    one_or_more_schema(min_items=1),
]


class GenerateBody(PromptControls, AdapterChoice, SamplingFields):
    """One prompt or several, and how to complete them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "What is the capital of France?",
                    "use_chat_template": True,
                    "max_new_tokens": 20,
                }
            ]
        }
    )

    prompt: Prompts = Field(
        description="The text to complete, or a list of texts, answered in order.",
        examples=["The capital of France is", ["One, two,", "Red, green,"]],
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Report each token's log probability as the model gives it (before the "
        "sampling controls), and this many of the most likely alternatives.",
        examples=[3],
    )
    return_token_ids: bool = Field(
        False, description="Report the ids of the generated tokens.", examples=[True]
    )
    stream: bool = Field(
        False, description="Answer with server-sent events, piece by piece.", examples=[True]
    )

    def to_request(self, request_id: str) -> GenerationRequest:
        """The request in the domain's terms. Raises `InvalidRequest`."""
        return GenerationRequest(
            request_id=request_id,
            prompts=tuple(self.prompt),
            format=PromptFormat(self.use_chat_template, self.system),
            sampling=resolve_sampling(**self.sampling_given()),
            logprobs=self.logprobs,
            adapter=self.adapter,
            soft_prompt=self.soft_prompt,
        )


class InspectBody(PromptControls, AdapterChoice, FilterControls):
    """A prompt, and the controls whose effect on its next token is asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "The sky is", "temperature": 0.7, "top_k": 40, "top_p": 0.95}]
        }
    )

    prompt: NonEmptyText = Field(
        description="The text whose next token is inspected.", examples=["The sky is"]
    )
    num_tokens: int = Field(
        10, ge=1, le=1000, description="How many of the most likely tokens to show.", examples=[5]
    )

    def to_request(self, request_id: str) -> InspectionRequest:
        """The request in the domain's terms. Raises `InvalidRequest`."""
        return InspectionRequest(
            request_id=request_id,
            prompt=self.prompt,
            format=PromptFormat(self.use_chat_template, self.system),
            sampling=resolve_sampling(
                max_new_tokens=1,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
            ),
            num_tokens=self.num_tokens,
            adapter=self.adapter,
            soft_prompt=self.soft_prompt,
        )


class TokenLogprobOut(BaseModel):
    """A token and its log probability as the model gives it."""

    token_id: int = Field(description="The token's id.", examples=[7042])
    token: str = Field(description="The token's text.", examples=[" Paris"])
    logprob: float = Field(description="Natural logarithm of its probability.", examples=[-0.21])


class PositionLogprobsOut(TokenLogprobOut):
    """The token that was chosen at one position, and the most likely ones there."""

    top: list[TokenLogprobOut] = Field(
        description="The most likely tokens at this position, best first; as many as asked for.",
        examples=[[{"token_id": 7042, "token": " Paris", "logprob": -0.21}]],
    )


class CompletionOut(BaseModel):
    """One completion of one prompt."""

    prompt_index: int = Field(description="Which prompt of the list, from 0.", examples=[0])
    index: int = Field(description="Which of the n completions, from 0.", examples=[0])
    text: str = Field(description="The generated text.", examples=["The capital is Paris."])
    finish_reason: FinishReason = Field(
        description="`stop`: an end-of-sequence token or a stop string; `length`: max_new_tokens; "
        "`abort`: the server ended it, for instance while draining.",
        examples=["stop"],
    )
    token_ids: list[int] | None = Field(
        None, description="The generated tokens, where asked for.", examples=[[504, 3575]]
    )
    logprobs: list[PositionLogprobsOut] | None = Field(
        None, description="One entry per generated token, where asked for.", examples=[[]]
    )


class SamplingOut(BaseModel):
    """The controls in effect, defaults filled in."""

    greedy: bool = Field(description="Whether decoding was greedy.", examples=[True])
    max_new_tokens: int = Field(description="The limit in effect.", examples=[128])
    min_new_tokens: int = Field(description="0 means no minimum.", examples=[0])
    temperature: float = Field(description="0 means greedy.", examples=[0.0])
    top_k: int | None = Field(description="null means no such filter.", examples=[None])
    top_p: float = Field(description="1 means no such filter.", examples=[1.0])
    min_p: float = Field(description="0 means no such filter.", examples=[0.0])
    repetition_penalty: float = Field(description="1 means none.", examples=[1.0])
    presence_penalty: float = Field(description="0 means none.", examples=[0.0])
    frequency_penalty: float = Field(description="0 means none.", examples=[0.0])
    seed: int | None = Field(description="null means a fresh one.", examples=[None])
    stop: list[str] = Field(description="The stop strings.", examples=[[]])
    n: int = Field(description="Completions of each prompt.", examples=[1])
    ignore_eos: bool = Field(description="Whether end-of-sequence is ignored.", examples=[False])

    @classmethod
    def of(cls, sampling: SamplingControls) -> "SamplingOut":
        return cls(**asdict(sampling) | {"stop": list(sampling.stop)}, greedy=sampling.greedy)


LORA_USED = {"name": "support-intent-lora", "version": "9f86d081884c7d65" * 4}
SOFT_PROMPT_USED = {"name": "support-intent-prompt", "version": "4d967a30111bf29f" * 4}


class AdapterUsed(BaseModel):
    """The version of an adapter that made an answer."""

    name: str = Field(description="The adapter's name.", examples=[LORA_USED["name"]])
    version: str = Field(
        description="The digest of the version's files.", examples=[LORA_USED["version"]]
    )


def adapters_used(
    asked: GenerationRequest | InspectionRequest, ran: GenerationChunk | Prompt
) -> dict[str, AdapterUsed]:
    """The fields of an answer that name the versions it was made with."""
    fields = {
        "adapter": (asked.adapter, ran.lora),
        "soft_prompt": (asked.soft_prompt, ran.soft_prompt),
    }
    return {
        field: AdapterUsed(name=reference.partition("@")[0], version=digest)
        for field, (reference, digest) in fields.items()
        if reference is not None and digest is not None
    }


class UsageOut(BaseModel):
    """Token counts of the whole request; a prompt counts once, whatever n is."""

    prompt_tokens: int = Field(
        description="Tokens of all prompts, without a soft prompt's.", examples=[37]
    )
    virtual_tokens: int = Field(
        description="Virtual tokens of the soft prompt, counted with every prompt.", examples=[0]
    )
    completion_tokens: int = Field(
        description="Tokens generated, an end-of-sequence token included.", examples=[8]
    )
    cached_tokens: int = Field(
        description="Prompt tokens, virtual ones included, that came from the prefix cache.",
        examples=[0],
    )


class TimingsOut(BaseModel):
    """Where the time went, in milliseconds."""

    queue: float = Field(
        description="Waiting in the engine, the longest of all completions.", examples=[0.1]
    )
    ttft: float = Field(description="From arrival to the first token.", examples=[41.7])
    total: float = Field(description="From arrival to the last token.", examples=[352.4])


class GenerateAnswer(BaseModel):
    """What `POST /generate` answers without `stream`."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=["0d5c3f2be1c04a54a6f1c6ea8b9f7f10"],
    )
    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    completions: list[CompletionOut] = Field(
        description="In order of prompt, then of index.",
        examples=[
            [
                {
                    "prompt_index": 0,
                    "index": 0,
                    "text": "The capital is Paris.",
                    "finish_reason": "stop",
                }
            ]
        ],
    )
    sampling: SamplingOut = Field(description="The controls in effect.")
    adapter: AdapterUsed | None = Field(
        None, description="The LoRA adapter, where one was named.", examples=[LORA_USED]
    )
    soft_prompt: AdapterUsed | None = Field(
        None, description="The soft prompt, where one was named.", examples=[SOFT_PROMPT_USED]
    )
    usage: UsageOut = Field(description="Token counts.")
    timings: TimingsOut = Field(description="Where the time went.")


class TokenFateOut(BaseModel):
    """One token on its way through the controls."""

    token_id: int = Field(description="The token's id.", examples=[4461])
    token: str = Field(description="The token's text.", examples=[" blue"])
    probability: float = Field(description="As the model gives it.", examples=[0.31])
    after_temperature: float = Field(description="After temperature.", examples=[0.44])
    kept_by: dict[Filter, bool | None] = Field(
        description="Whether each filter keeps it, in the order in which they run; null where an "
        "earlier one removed it.",
        examples=[{"min_p": True, "top_k": True, "top_p": True}],
    )
    final: float = Field(
        description="The probability with which it is sampled, renormalized.", examples=[0.46]
    )


class InspectAnswer(BaseModel):
    """What `POST /inspect` answers."""

    id: str = Field(
        description="The request's id, also in the x-request-id header.",
        examples=["0d5c3f2be1c04a54a6f1c6ea8b9f7f10"],
    )
    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    adapter: AdapterUsed | None = Field(
        None, description="The LoRA adapter, where one was named.", examples=[LORA_USED]
    )
    soft_prompt: AdapterUsed | None = Field(
        None, description="The soft prompt, where one was named.", examples=[SOFT_PROMPT_USED]
    )
    prompt_tokens: int = Field(
        description="Tokens of the prompt, without a soft prompt's.", examples=[3]
    )
    virtual_tokens: int = Field(description="Virtual tokens of the soft prompt.", examples=[0])
    vocabulary_size: int = Field(description="Tokens in all.", examples=[49152])
    tokens: list[TokenFateOut] = Field(
        description="The most likely tokens, best first.", examples=[[]]
    )
    num_surviving: int = Field(
        description="Tokens of the whole vocabulary that can be sampled.", examples=[17]
    )
    surviving_mass: float = Field(
        description="Their probability after temperature, together.", examples=[0.951]
    )
    sampling: SamplingOut = Field(description="The controls in effect.")


class WeightsOut(BaseModel):
    """How the model's weights are held in memory."""

    precision: str = Field(description="Their precision.", examples=["int8"])
    made: str = Field(
        description="How they came to be in it.",
        examples=["int8 weight-only (per channel), quantized at load"],
    )
    linear_bytes: int = Field(description="Bytes of the linear layers.", examples=[106_790_400])
    other_bytes: int = Field(
        description="Bytes of embeddings, norms and the output head.", examples=[143_992_544]
    )


class ModelInfo(BaseModel):
    """What is loaded."""

    model: str = Field(description="The base model.", examples=["SmolLM2-135M-Instruct"])
    device: str = Field(description="What it runs on.", examples=["cpu"])
    dtype: str = Field(
        description="The type of activations, and of weights that are not quantized.",
        examples=["float32"],
    )
    weights: WeightsOut = Field(description="How the weights are held.")
    kv_cache_bytes: int = Field(description="Bytes of the KV cache.", examples=[2_147_483_648])
    context_window: int = Field(description="Tokens in prompt and completion.", examples=[8192])
    vocabulary_size: int = Field(description="Tokens that it knows.", examples=[49152])
    engine: str = Field(description="The engine.", examples=["vllm"])
    engine_version: str = Field(description="The engine's version.", examples=["0.32.0"])
    server_version: str = Field(description="softserve's version.", examples=["0.1.0"])
    limits: Limits = Field(description="The limits in force.")


class Health(BaseModel):
    """Whether the server lives, or takes requests."""

    status: str = Field(description="`live` or `ready`.", examples=["ready"])


class ErrorDetail(BaseModel):
    """What was wrong."""

    type: str = Field(description="A stable name for programs.", examples=["invalid_request"])
    message: str = Field(
        description="A sentence that says what to do.",
        examples=["top_k has no effect at temperature 0: raise the temperature, or leave it out"],
    )
    param: str | None = Field(description="The field at fault, if one is.", examples=["top_k"])


class ErrorAnswer(BaseModel):
    """The one body of every error."""

    error: ErrorDetail = Field(description="What was wrong.")
