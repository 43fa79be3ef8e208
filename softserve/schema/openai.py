"""OpenAI's protocol under `/v1`: the fields that are honoured, and no other.

What a field does is OpenAI's and vLLM's; beside them are the fields of softserve's own.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from softserve.schema.controls import DecoderPrompt, Scheduling, as_given
from softserve.schema.fields import (
    MAX_INTEGER,
    SHOWN_DIGEST,
    Body,
    Count,
    JsonObject,
    NonEmptyText,
    PositiveCount,
    StopStrings,
    Text,
    one_or_more,
)
from softserve.schema.icl import TemplateChoice
from softserve.schema.templates import SHOWN_TEMPLATE, Examples, Inputs, Selection, ShotsField

MAX_LOGPROBS = 20
MAX_MODEL_LENGTH = 512
SHOWN_MODEL = "support-intent-lora"
SHOWN_QUESTION = "Tell me the capital of France."
SHOWN_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


SHOWN_FORMAT = {"name": "answer", "schema": SHOWN_SCHEMA}
ITEMS = ("message", "function_call", "function_call_output")
PARTS = ("input_text", "output_text")


def _an_item(item: dict[str, Any]) -> dict[str, Any]:
    """Of what a conversation holds, the kinds that a text model can be given."""
    kind = item.get("type", "message")
    if kind not in ITEMS:
        raise PydanticCustomError(
            "item",
            "has the type {kind}: send one of {known}",
            {"kind": kind, "known": ", ".join(ITEMS)},
        )
    content = item.get("content")
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") not in PARTS:
            raise PydanticCustomError(
                "part",
                "has a part that is no text: send parts of type {known}",
                {"known": ", ".join(PARTS)},
            )
    return item


TokenId = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
TokenIds = list[TokenId]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def _prompts(value: Any) -> Any:
    """A list of texts or of token lists: one of these is a list of itself."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_number(value[0])):
        return [value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


OpenAIPrompts = Annotated[
    list[NonEmptyText] | list[Annotated[TokenIds, Field(min_length=1)]],
    Field(min_length=1),
    BeforeValidator(_prompts),
]


class JsonSchema(Body):
    """A JSON schema that a completion follows."""

    name: NonEmptyText = Field(description="What it is called.", examples=["answer"])
    description: Text | None = Field(
        None, description="What it is for; the model does not see it.", examples=["A city."]
    )
    json_schema: JsonObject | None = Field(
        None, alias="schema", description="The schema.", examples=[SHOWN_SCHEMA]
    )
    strict: bool | None = Field(
        None, description="It is always followed to the letter.", examples=[True]
    )


class ResponseFormat(Body):
    """What form a completion has."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="Any text, any JSON object, or JSON that follows a schema.",
        examples=["json_object"],
    )
    json_schema: JsonSchema | None = Field(
        None, description="Of the type `json_schema`.", examples=[SHOWN_FORMAT]
    )


class StructuredOutputs(Body):
    """What form a completion has; one of the three."""

    json_schema: JsonObject | None = Field(
        None, alias="json", description="JSON that follows this schema.", examples=[SHOWN_SCHEMA]
    )
    regex: NonEmptyText | None = Field(
        None, description="A text that this expression matches.", examples=[r"\d{4}"]
    )
    choice: list[NonEmptyText] | None = Field(
        None, description="One of these texts.", examples=[["yes", "no"]]
    )


class StreamOptions(Body):
    """What a stream has besides the pieces of text."""

    include_usage: bool = Field(
        False, description="One more event at the end, with the token counts.", examples=[True]
    )
    continuous_usage_stats: bool = Field(
        False, description="Token counts in every event.", examples=[False]
    )


class CallerTags(Body):
    """What clients send for their own books. It is taken, and changes nothing."""

    user: Text | None = Field(
        None, description="The caller's name for its own user; changes nothing.", examples=["u-7"]
    )
    metadata: JsonObject | None = Field(
        None, description="The caller's own notes; change nothing.", examples=[{"job": "7"}]
    )
    safety_identifier: Text | None = Field(
        None, description="As `user`; changes nothing.", examples=["u-7"]
    )
    prompt_cache_key: Text | None = Field(
        None,
        description="Equal beginnings of prompts are cached by themselves; changes nothing.",
        examples=["support"],
    )
    service_tier: Literal["auto", "default"] | None = Field(
        None, description="There is only one tier.", examples=["auto"]
    )
    store: Literal[False] | None = Field(
        None, description="Answers are not kept: `false` alone.", examples=[False]
    )


_SHARED = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")


class OpenAISampling(
    as_given([*_SHARED, "frequency_penalty", "ignore_eos"]),  # type: ignore[misc]
    Scheduling,
    CallerTags,
):
    """What every generation of the protocol takes."""

    model: Annotated[Text, Field(min_length=1, max_length=MAX_MODEL_LENGTH)] | None = Field(
        None,
        description="The base model, a LoRA adapter, a soft prompt, or both as "
        "`adapter+soft_prompt`, each also as `name@version`; without it, the base model.",
        examples=[SHOWN_MODEL],
    )
    temperature: float | None = Field(
        None,
        ge=0.0,
        le=2.0,
        description="0 is greedy decoding. The default is what the model's own generation_config "
        "says, else 1.",
        examples=[0.7],
    )
    seed: Count | None = Field(
        None, description="The same seed and request give the same text.", examples=[7]
    )
    stop: StopStrings | None = Field(
        None,
        description="End a completion before this text, or before any of these.",
        examples=[["\n\n"]],
    )
    stop_token_ids: TokenIds | None = Field(
        None, description="End a completion at any of these tokens.", examples=[[2]]
    )
    include_stop_str_in_output: bool = Field(
        False, description="Leave the stop string in the text.", examples=[False]
    )
    skip_special_tokens: bool = Field(
        True, description="Leave special tokens out of the text.", examples=[True]
    )
    logit_bias: dict[str, float] | None = Field(
        None,
        description="Added to the scores of tokens, by id, from -100 to 100.",
        examples=[{"7042": 5.0}],
    )
    structured_outputs: StructuredOutputs | None = Field(
        None,
        description="The form of the completion: vLLM's `json`, `regex` or `choice`.",
        examples=[{"choice": ["yes", "no"]}],
    )
    stream: bool = Field(False, description="Answer with server-sent events.", examples=[True])


class OpenAIDecoding(OpenAISampling):
    """What completions and chats take, and responses do not."""

    n: PositiveCount = Field(1, description="Completions of each prompt.", examples=[2])
    min_tokens: Count = Field(
        0,
        description="Tokens to generate before an end-of-sequence token or a stop string counts.",
        examples=[8],
    )
    stream_options: StreamOptions | None = Field(
        None, description="Only with `stream`.", examples=[{"include_usage": True}]
    )
    response_format: ResponseFormat | None = Field(
        None, description="The form of the completion.", examples=[{"type": "json_object"}]
    )
    prompt_logprobs: Logprobs | None = Field(
        None,
        description="Report the prompt's tokens with so many alternatives; not with `stream`.",
        examples=[1],
    )
    logprob_token_ids: Annotated[TokenIds, Field(max_length=MAX_LOGPROBS)] | None = Field(
        None,
        description="Report these tokens' log probabilities at every position.",
        examples=[[7042]],
    )
    allowed_token_ids: TokenIds | None = Field(
        None, description="Sample among these tokens only.", examples=[[504, 7042]]
    )
    bad_words: list[NonEmptyText] | None = Field(
        None, description="Texts that no completion has.", examples=[["Paris"]]
    )
    use_beam_search: bool = Field(
        False,
        description="The `n` best of so many beams; of one prompt, and not with `stream`.",
        examples=[False],
    )
    length_penalty: float | None = Field(
        None, description="Only with `use_beam_search`.", examples=[1.0]
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Whether the tokenizer adds its special tokens: to a prompt unless `false`, "
        "to a chat, whose template has them, only if `true`.",
        examples=[True],
    )
    echo: bool = Field(
        False,
        description="Put the prompt before the completion, or a chat's last message if it is the "
        "assistant's.",
        examples=[False],
    )
    return_token_ids: bool = Field(
        False,
        description="Report the ids of the prompt's and the generated tokens.",
        examples=[True],
    )
    return_tokens_as_token_ids: bool = Field(
        False, description="Write tokens in log probabilities as `token_id:ID`.", examples=[False]
    )


class TemplateFields(Body):
    """A template that makes the prompts, as in `/icl/generate`."""

    template: TemplateChoice | None = Field(
        None,
        description="Make the prompts from a template: its name, `name@version`, or a whole one.",
        examples=[SHOWN_TEMPLATE],
    )
    inputs: Annotated[list[Inputs], Field(min_length=1), one_or_more(dict, "an object")] | None = (
        Field(
            None,
            description="The template's inputs by name, where it has several; no `prompt` then.",
            examples=[[{"review": "The soup was cold."}]],
        )
    )
    shots: ShotsField = Field(
        "auto", description="Of a template: how many examples to show.", examples=[1, "auto"]
    )
    selection: Selection | None = Field(
        None, description="Of a template: which examples.", examples=["first"]
    )
    selection_seed: Count | None = Field(
        None, description="Of the selection `random`.", examples=[7]
    )
    examples: Examples | None = Field(
        None, description="Examples in place of the template's.", examples=[[]]
    )


class CompletionsBody(OpenAIDecoding, TemplateFields, DecoderPrompt):
    """Prompts to complete, or inputs of a template."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "One, two,", "max_tokens": 8}]}
    )

    prompt: OpenAIPrompts | None = Field(
        None,
        description="A text, a list of token ids, or a list of either. With `template`, the texts "
        "are its inputs.",
        examples=["The capital of France is"],
    )
    max_tokens: Count = Field(16, description="The most tokens to generate.", examples=[64])
    logprobs: Logprobs | None = Field(
        None,
        description="Report the log probability of each token and of so many alternatives.",
        examples=[1],
    )


class ToolFunction(Body):
    """A function that the model may call."""

    name: NonEmptyText = Field(description="Its name.", examples=["get_weather"])
    description: Text | None = Field(
        None, description="What it does, for the model.", examples=["The weather in a city."]
    )
    parameters: JsonObject | None = Field(
        None, description="Its parameters, as a JSON schema.", examples=[SHOWN_SCHEMA]
    )
    strict: bool | None = Field(
        None, description="Whether arguments have to follow the schema.", examples=[True]
    )


class Tool(Body):
    """A tool that the model may use."""

    type: Literal["function"] = Field("function", description="Its kind.", examples=["function"])
    function: ToolFunction = Field(description="The function.")


class FunctionName(Body):
    """A function, by name."""

    name: NonEmptyText = Field(description="Its name.", examples=["get_weather"])


class NamedTool(Body):
    """The tool that has to be called."""

    type: Literal["function"] = Field("function", description="Its kind.", examples=["function"])
    function: FunctionName = Field(description="The function.")


class FunctionCalled(Body):
    """What a function was called with."""

    name: NonEmptyText = Field(description="Its name.", examples=["get_weather"])
    arguments: Text = Field(description="Its arguments, as JSON.", examples=['{"city": "Paris"}'])


class ToolCalled(Body):
    """A call of a tool, as the model made it."""

    id: NonEmptyText = Field(description="The call's id.", examples=["call_1"])
    type: Literal["function"] = Field("function", description="Its kind.", examples=["function"])
    function: FunctionCalled = Field(description="The function.")


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"] = Field(description="Its kind: text alone.", examples=["text"])
    text: Text = Field(description="The text.", examples=[SHOWN_QUESTION])


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who says it.", examples=["user"]
    )
    content: Annotated[list[TextPart], Field(min_length=1)] | Text | None = Field(
        None, description="What is said: a text, or parts of one.", examples=[SHOWN_QUESTION]
    )
    name: Text | None = Field(
        None, description="Of whoever says it, for templates that show it.", examples=["anna"]
    )
    tool_calls: list[ToolCalled] | None = Field(
        None, description="Of an assistant: the tools that it called.", examples=[[]]
    )
    tool_call_id: Text | None = Field(
        None, description="Of a tool: which call this answers.", examples=["call_1"]
    )

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("no_content", "has no content: write something in it")
        return self


class ChatBody(OpenAIDecoding):
    """A conversation to go on with."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": SHOWN_QUESTION}]}]
        }
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)] = Field(
        description="The conversation.", examples=[[{"role": "user", "content": SHOWN_QUESTION}]]
    )
    max_completion_tokens: PositiveCount | None = Field(
        None,
        description="The most tokens to generate; without it, what the context window has room "
        "for.",
        examples=[64],
    )
    max_tokens: PositiveCount | None = Field(
        None, description="The older name of `max_completion_tokens`.", examples=[64]
    )
    logprobs: bool = Field(
        False, description="Report the log probability of each token.", examples=[True]
    )
    top_logprobs: Logprobs | None = Field(
        None, description="And of so many alternatives; only with `logprobs`.", examples=[3]
    )
    tools: Annotated[list[Tool], Field(min_length=1)] | None = Field(
        None,
        description="What the model may call; needs the server's --tool-parser.",
        examples=[[]],
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="Whether it may or has to, or which.", examples=["auto"]
    )
    parallel_tool_calls: bool = Field(
        True, description="Whether it may call several at once.", examples=[True]
    )
    add_generation_prompt: bool = Field(
        True, description="Begin the assistant's answer after the messages.", examples=[True]
    )
    continue_final_message: bool = Field(
        False,
        description="Go on with the last message; not with `add_generation_prompt`.",
        examples=[False],
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="What the model's chat template takes besides.", examples=[{}]
    )


InputItem = Annotated[JsonObject, AfterValidator(_an_item)]


class ResponsesBody(OpenAISampling):
    """A conversation to go on with, in the words of OpenAI's Responses."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": SHOWN_QUESTION}]})

    input: Annotated[list[InputItem], Field(min_length=1)] | NonEmptyText = Field(
        description="A user's message, or the items of a conversation: messages of text, calls of "
        "functions, and what these gave.",
        examples=[SHOWN_QUESTION],
    )
    instructions: Text | None = Field(
        None, description="The system message.", examples=["Answer in one sentence."]
    )
    max_output_tokens: PositiveCount | None = Field(
        None,
        description="The most tokens to generate; without it, what the context window has room "
        "for.",
        examples=[64],
    )
    include: list[Literal["message.output_text.logprobs"]] | None = Field(
        None, description="Log probabilities in the answer.", examples=[[]]
    )
    top_logprobs: Logprobs | None = Field(
        None, description="How many alternatives, with `include`.", examples=[3]
    )
    text: JsonObject | None = Field(
        None,
        description="The form of the answer, under `format`.",
        examples=[{"format": {"type": "text"}}],
    )
    tools: list[JsonObject] | None = Field(
        None,
        description="Functions that the model may call; needs the server's --tool-parser.",
        examples=[[]],
    )
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = Field(
        None, description="Whether it may or has to, or which.", examples=["auto"]
    )
    parallel_tool_calls: bool = Field(
        True, description="Whether it may call several at once.", examples=[True]
    )
    truncation: Literal["disabled"] | None = Field(
        None, description="An input that does not fit is refused.", examples=["disabled"]
    )
    background: Literal[False] | None = Field(
        None, description="Answers are not kept: `false` alone.", examples=[False]
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="What the model's chat template takes besides.", examples=[{}]
    )


class TokenizeBody(Body):
    """A text, or a conversation, to make tokens of."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "One, two,"}]})

    model: NonEmptyText | None = Field(
        None, description="Any model of `/v1/models`: all have one tokenizer.", examples=["base"]
    )
    prompt: Text | None = Field(None, description="A text.", examples=["One, two,"])
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = Field(
        None,
        description="A conversation, in place of `prompt`.",
        examples=[[{"role": "user", "content": SHOWN_QUESTION}]],
    )
    add_special_tokens: bool | None = Field(
        None, description="Whether the tokenizer adds its special tokens.", examples=[True]
    )
    add_generation_prompt: bool | None = Field(
        None, description="Of a conversation: begin the assistant's answer.", examples=[True]
    )
    continue_final_message: bool | None = Field(
        None, description="Of a conversation: leave the last message open.", examples=[False]
    )
    return_token_strs: bool = Field(
        False, description="Report the tokens as the vocabulary writes them.", examples=[False]
    )


class DetokenizeBody(Body):
    """Tokens to make a text of."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [504, 7042]}]})

    model: NonEmptyText | None = Field(
        None, description="Any model of `/v1/models`: all have one tokenizer.", examples=["base"]
    )
    tokens: Annotated[TokenIds, Field(min_length=1)] = Field(
        description="The token ids.", examples=[[504, 7042]]
    )


class ModelOut(BaseModel):
    """A model that requests can name."""

    id: str = Field(description="Its name.", examples=[SHOWN_MODEL])
    object: Literal["model"] = Field("model", description="What this is.", examples=["model"])
    created: int = Field(description="Since when, in seconds.", examples=[1_735_689_600])
    owned_by: str = Field(description="Who serves it.", examples=["softserve"])
    kind: str = Field(
        description="`base`, `lora`, `soft_prompt`, or `pair` of these two.", examples=["lora"]
    )
    parent: str | None = Field(
        description="The base model, of an adapter.", examples=["SmolLM2-135M-Instruct"]
    )
    version: str | None = Field(
        description="The version, as answers name it; null for the base model.",
        examples=[SHOWN_DIGEST],
    )
    max_model_len: int = Field(description="The context window, in tokens.", examples=[8192])


class ModelList(BaseModel):
    """The models that requests can name, but for pairs."""

    object: Literal["list"] = Field("list", description="What this is.", examples=["list"])
    data: list[ModelOut] = Field(description="The base model first.", examples=[[]])
