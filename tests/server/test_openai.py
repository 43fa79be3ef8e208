"""OpenAI's protocol with the official client on the real engine."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests import exposition
from tests.server.process import ServerProcess
from tests.server.requests import add_adapter, generate, text_of
from tests.server.test_cancellation import wait_until_running

SHIPPED = Path(__file__).resolve().parents[2] / "adapters"
BASE = "SmolLM2-135M-Instruct"
LORA, SOFT_PROMPT = "openai-lora", "openai-soft"
PAIR = f"{LORA}+{SOFT_PROMPT}"
QUESTION = "Tell me the capital of France."
CAPITAL = "The capital of France is Paris."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
MESSAGE = "Message: I was charged twice.\nIntent:"
INTENTS = ["billing", "shipping", "returns"]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "In a city.", "parameters": CITY},
    },
    {"type": "function", "function": {"name": "time", "parameters": CITY}},
]
FIELDS: dict[str, dict[str, str]] = {
    BASE: {},
    LORA: {"adapter": LORA},
    SOFT_PROMPT: {"soft_prompt": SOFT_PROMPT},
    PAIR: {"adapter": LORA, "soft_prompt": SOFT_PROMPT},
}


class City(BaseModel):
    city: Literal["Paris", "Rome"]


@pytest.fixture(scope="module", autouse=True)
def adapters(server: ServerProcess) -> Iterator[None]:
    with server.client() as client:
        add_adapter(client, LORA, SHIPPED / "support-intent-lora")
        add_adapter(client, SOFT_PROMPT, SHIPPED / "support-intent-prompt")
        yield
        for name in (LORA, SOFT_PROMPT):
            client.delete(f"/adapters/{name}").raise_for_status()


@pytest.fixture
def ai(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def version(client: httpx.Client, name: str) -> str:
    live: str = client.get(f"/adapters/{name}").json()["live"]
    return live


# Completions.


@pytest.mark.parametrize("model", FIELDS)
def test_a_completion_is_that_of_generate(ai: OpenAI, client: httpx.Client, model: str) -> None:
    answer = ai.completions.create(model=model, prompt=MESSAGE, max_tokens=12, temperature=0)
    same = generate(client, prompt=MESSAGE, max_new_tokens=12, **FIELDS[model])

    assert answer.choices[0].text == text_of(same)
    assert answer.choices[0].finish_reason == same["completions"][0]["finish_reason"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == same["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == same["usage"]["completion_tokens"]


def test_the_answer_names_its_versions(ai: OpenAI, client: httpx.Client) -> None:
    lora, soft = (f"{name}@{version(client, name)}" for name in (LORA, SOFT_PROMPT))
    expected = {BASE: BASE, LORA: lora, SOFT_PROMPT: soft, PAIR: f"{lora}+{soft}", lora[:30]: lora}
    for model, named in expected.items():
        assert ai.completions.create(model=model, prompt="a", max_tokens=1).model == named


@pytest.mark.parametrize("model", FIELDS)
def test_a_stream_has_the_same_text_and_usage(ai: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": MESSAGE, "max_tokens": 12, "temperature": 0}
    whole = ai.completions.create(**asked)
    chunks = list(
        ai.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )

    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_routers_see_the_model_that_runs(ai: OpenAI, client: httpx.Client) -> None:
    """They send a request to where its `model` is in use."""
    asked: dict[str, Any] = {"model": LORA, "prompt": MESSAGE, "max_tokens": 2000}
    with ai.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}) as chunks:
        next(iter(chunks))
        shown = exposition.series(client.get("/metrics").text, "vllm:lora_requests_info")
    # The LoRAs that fit a batch, those that run, and those that wait.
    assert list(shown) == [("4", LORA, "")]


async def test_streams_side_by_side(server: ServerProcess) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as ai:

        async def text(model: str) -> str:
            stream = await ai.completions.create(
                model=model, prompt=MESSAGE, max_tokens=6, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        alone = [await text(model) for model in FIELDS]
        assert await asyncio.gather(*(text(model) for model in FIELDS)) == alone


def test_log_probabilities_are_those_of_generate(ai: OpenAI, client: httpx.Client) -> None:
    for model, fields in FIELDS.items():
        answer = ai.completions.create(
            model=model, prompt=MESSAGE, max_tokens=4, temperature=0, logprobs=2
        )
        same = generate(client, prompt=MESSAGE, max_new_tokens=4, logprobs=2, **fields)
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        expected = same["completions"][0]["logprobs"]
        assert told.tokens == [each["token"] for each in expected]
        assert told.token_logprobs == pytest.approx(
            [each["logprob"] for each in expected], abs=1e-3
        )


@pytest.mark.parametrize("model", FIELDS)
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_scores_the_prompt(
    ai: OpenAI, client: httpx.Client, model: str, max_tokens: int
) -> None:
    """Its last token as `/generate` does, which makes it."""
    begin = "The capital of France is"
    made = generate(client, prompt=begin, max_new_tokens=1, logprobs=0, **FIELDS[model])
    (token,) = made["completions"][0]["logprobs"]
    prompt = begin + token["token"]
    answer = ai.completions.create(
        model=model, prompt=prompt, max_tokens=max_tokens, temperature=0, echo=True, logprobs=1
    )
    choice = answer.choices[0]
    assert choice.text.startswith(prompt)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.token_logprobs is not None
    num_prompt_tokens = made["usage"]["prompt_tokens"] + 1
    assert "".join(choice.logprobs.tokens[:num_prompt_tokens]) == prompt
    scored = choice.logprobs.token_logprobs[num_prompt_tokens - 1]
    assert scored == pytest.approx(token["logprob"], abs=1e-3)


def test_prompts_in_a_list_as_texts_and_as_tokens(ai: OpenAI, client: httpx.Client) -> None:
    prompts = ["One, two, three,", "Red, green,"]
    tokens = [client.post("/tokenize", json={"prompt": p}).json()["tokens"] for p in prompts]
    expected = [text_of(generate(client, prompt=p, max_new_tokens=6)) for p in prompts]
    for given in (prompts, tokens):
        answer = ai.completions.create(model=BASE, prompt=given, max_tokens=6, temperature=0)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.index for choice in answer.choices] == [0, 1]


def test_several_completions_with_a_seed(ai: OpenAI) -> None:
    def texts() -> list[str]:
        answer = ai.completions.create(
            model=LORA, prompt="Once", max_tokens=6, temperature=1.0, n=3, seed=5
        )
        return [choice.text for choice in answer.choices]

    assert texts() == texts()
    assert len(set(texts())) == 3


def test_stop_bias_and_the_fields_of_softserves_own(ai: OpenAI, client: httpx.Client) -> None:
    def text(**fields: Any) -> str:
        asked: dict[str, Any] = {"model": BASE, "prompt": "Count: 1, 2, 3, 4,", "temperature": 0}
        answer: str = ai.completions.create(**asked | fields).choices[0].text
        return answer

    (seven,) = client.post("/tokenize", json={"prompt": "7"}).json()["tokens"]
    assert text(stop=" 7", max_tokens=20) == " 5, 6,"
    assert text(logit_bias={str(seven): 100}, max_tokens=3) == "777"
    assert text(extra_body={"allowed_token_ids": [seven]}, max_tokens=2) == "77"
    sampled = {"temperature": 2.0, "max_tokens": 6}
    greedy = text(max_tokens=6)
    assert text(**sampled, extra_body={"top_k": 1}) == greedy
    assert text(**sampled, extra_body={"min_p": 1.0}) == greedy
    penalised = generate(
        client, prompt="Count: 1, 2, 3, 4,", max_new_tokens=6, repetition_penalty=1.8
    )
    assert text(extra_body={"repetition_penalty": 1.8}, max_tokens=6) == text_of(penalised)


def test_a_special_token_stops_as_in_generate(ai: OpenAI, client: httpx.Client) -> None:
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    answer = ai.completions.create(
        model=BASE,
        prompt=prompt,
        max_tokens=30,
        temperature=0,
        stop="<|im_end|>",
        extra_body={"ignore_eos": True},
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (CAPITAL, "stop")


def test_a_search_of_beams(ai: OpenAI, client: httpx.Client) -> None:
    for model in (BASE, PAIR):
        answer = ai.completions.create(
            model=model,
            prompt="The sky is",
            max_tokens=4,
            n=2,
            temperature=0,
            extra_body={"use_beam_search": True},
        )
        first, second = (choice.text for choice in answer.choices)
        assert first != second
        assert answer.usage is not None
        prompt_tokens = generate(client, prompt="The sky is", max_new_tokens=1)["usage"]
        assert answer.usage.prompt_tokens == prompt_tokens["prompt_tokens"]


def test_a_template_through_extra_body(ai: OpenAI, client: httpx.Client) -> None:
    body = {"template": "sentiment", "shots": 2}
    inputs = "The handle came off after one week."
    expected = client.post("/icl/generate", json=body | {"inputs": {"review": inputs}}).json()
    answer = ai.completions.create(model=BASE, prompt=inputs, extra_body=body)
    assert answer.choices[0].text == expected["completions"][0]["text"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]


# The form of a completion.


@pytest.mark.parametrize("model", FIELDS)
def test_a_choice_a_regex_and_a_schema(ai: OpenAI, model: str) -> None:
    def text(**structure: Any) -> str:
        answer = ai.completions.create(
            model=model,
            prompt=MESSAGE,
            max_tokens=30,
            temperature=0,
            extra_body={"structured_outputs": structure},
        )
        return answer.choices[0].text

    assert text(choice=INTENTS) in INTENTS
    assert len(text(regex=r"\d{4}")) == 4
    assert City.model_validate_json(text(json=CITY))


@pytest.mark.parametrize("model", FIELDS)
def test_a_parsed_answer(ai: OpenAI, model: str) -> None:
    answer = ai.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=City, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_a_json_object(ai: OpenAI) -> None:
    answer = ai.chat.completions.create(
        model=BASE,
        messages=MESSAGES,
        response_format={"type": "json_object"},
        temperature=0,
        max_completion_tokens=60,
        stop="}",
        extra_body={"include_stop_str_in_output": True},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


# Chats.


def test_a_chat_is_that_of_generate(ai: OpenAI, client: httpx.Client) -> None:
    for model, fields in FIELDS.items():
        asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "temperature": 0}
        answer = ai.chat.completions.create(**asked, max_completion_tokens=20)
        same = generate(
            client, prompt=QUESTION, use_chat_template=True, max_new_tokens=20, **fields
        )
        assert answer.choices[0].message.content == text_of(same)
        stream = ai.chat.completions.create(**asked, max_completion_tokens=20, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == text_of(same)


def test_a_chat_of_several_turns_and_parts(ai: OpenAI) -> None:
    def text(*messages: Any, **fields: Any) -> str:
        answer = ai.chat.completions.create(
            model=BASE, messages=list(messages), temperature=0, max_tokens=20, **fields
        )
        return answer.choices[0].message.content or ""

    system: Any = {"role": "system", "content": "You are a helpful assistant."}
    parts: Any = [{"type": "text", "text": QUESTION}]
    assert text(system, *MESSAGES) == text(system, {"role": "user", "content": parts})
    turns = [*MESSAGES, {"role": "assistant", "content": CAPITAL}]
    assert text(*turns, {"role": "user", "content": "And of Italy?"})
    begun: Any = {"role": "assistant", "content": "The capital of France is"}
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    assert text(*MESSAGES, begun, extra_body=fields) == " Paris."


def test_a_chats_log_probabilities(ai: OpenAI) -> None:
    answer = ai.chat.completions.create(
        model=LORA, messages=MESSAGES, temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(each.token for each in told.content) == answer.choices[0].message.content
    assert [len(each.top_logprobs) for each in told.content] == [2, 2, 2]
    assert all(each.logprob == each.top_logprobs[0].logprob for each in told.content)


def test_without_a_limit_a_chat_goes_on_to_its_end(ai: OpenAI) -> None:
    answer = ai.chat.completions.create(model=BASE, messages=MESSAGES, temperature=0)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (CAPITAL, "stop")


# Tools.


@pytest.mark.parametrize("model", [BASE, PAIR])
def test_a_tool_that_has_to_be_called(ai: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": MESSAGES,
        "tools": TOOLS,
        "temperature": 0,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    (call,) = ai.chat.completions.create(**asked).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert City.model_validate_json(call.function.arguments)

    deltas = [
        delta
        for chunk in ai.chat.completions.create(**asked, stream=True)
        for delta in chunk.choices[0].delta.tool_calls or []
    ]
    arguments = "".join(d.function.arguments or "" for d in deltas if d.function)
    assert json.loads(arguments) == json.loads(call.function.arguments)


def test_any_tool_and_its_result(ai: OpenAI) -> None:
    answer = ai.chat.completions.create(
        model=BASE, messages=MESSAGES, tools=TOOLS, tool_choice="required", temperature=0
    )
    message = answer.choices[0].message
    calls = message.tool_calls or []
    assert calls
    assert {call.function.name for call in calls if call.type == "function"} <= {"weather", "time"}
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls
    ]
    turns: list[Any] = [*MESSAGES, message.model_dump(exclude_none=True), *results]
    again = ai.chat.completions.create(
        model=BASE, messages=turns, tools=TOOLS, tool_choice="none", max_tokens=8
    )
    assert again.choices[0].message.tool_calls is None
    assert again.choices[0].message.content


def test_a_choice_of_tools_that_the_model_is_not_shown(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat template does not show it the tools"):
        ai.chat.completions.create(model=BASE, messages=MESSAGES, tools=TOOLS)


# Responses.


def test_a_response(ai: OpenAI) -> None:
    answer = ai.responses.create(model=BASE, input=QUESTION, temperature=0)
    assert answer.output_text == CAPITAL
    assert (answer.model, answer.status) == (BASE, "completed")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8


@pytest.mark.parametrize("model", FIELDS)
def test_a_response_in_pieces(ai: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "input": [{"role": "user", "content": QUESTION}],
        "max_output_tokens": 12,
        "temperature": 0,
    }
    events = list(ai.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ai.responses.create(**asked).output_text
    assert events[0].type == "response.created"
    assert events[-1].type in {"response.completed", "response.incomplete"}


def test_a_response_of_a_schema_and_instructions(ai: OpenAI) -> None:
    answer = ai.responses.parse(
        model=BASE, input=QUESTION, instructions="Answer in JSON.", text_format=City, temperature=0
    )
    assert isinstance(answer.output_parsed, City)


def test_a_response_that_calls_a_tool(ai: OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "name": "weather", "parameters": CITY}]
    answer = ai.responses.create(
        model=BASE, input=QUESTION, tools=tools, tool_choice="required", temperature=0
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    assert City.model_validate_json(call.arguments)


# Models, tokens, errors.


def test_the_models(ai: OpenAI, client: httpx.Client) -> None:
    models = {model.id: model.model_dump() for model in ai.models.list()}
    assert {BASE, LORA, SOFT_PROMPT} <= models.keys()
    assert models[LORA]["parent"] == models[SOFT_PROMPT]["parent"] == BASE
    assert (models[LORA]["kind"], models[SOFT_PROMPT]["kind"]) == ("lora", "soft_prompt")
    assert models[LORA]["version"] == version(client, LORA)
    assert ai.models.retrieve(PAIR).model_dump()["kind"] == "pair"


def test_tokens_of_a_text_and_of_a_chat(client: httpx.Client) -> None:
    made = client.post("/tokenize", json={"prompt": QUESTION, "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"])
    back = client.post("/detokenize", json={"tokens": made["tokens"]}).json()
    assert back == {"prompt": QUESTION}
    in_chat = client.post("/tokenize", json={"messages": MESSAGES}).json()["count"]
    same = generate(client, prompt=QUESTION, use_chat_template=True, max_new_tokens=1)
    assert in_chat == same["usage"]["prompt_tokens"]


def test_what_is_wrong_is_an_exception_of_the_client(ai: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"did you mean.* {LORA}") as not_found:
        ai.completions.create(model="openai-lorra", prompt="a")
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        ai.completions.create(model=BASE, prompt="word " * 9000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as soft_too_long:
        ai.chat.completions.create(model=SOFT_PROMPT, messages=MESSAGES, max_tokens=8150)
    assert soft_too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        ai.completions.create(model=BASE, prompt="a", extra_body={"guided_choice": ["a"]})
    assert unknown.value.param == "guided_choice"
    with pytest.raises(openai.BadRequestError):
        ai.completions.create(model=BASE, prompt=[10**9], max_tokens=1)


async def test_whoever_leaves_a_list_of_prompts_ends_them_all(server: ServerProcess) -> None:
    endless: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as ai:
        stream = await ai.completions.create(
            model=LORA, prompt=["Once", "Twice", "Then"], stream=True, **endless
        )
        async for _ in stream:
            break
        await wait_until_running(server, 3)
        await stream.close()
        await wait_until_running(server, 0)
        async with asyncio.TaskGroup() as tasks:
            whole = tasks.create_task(leave(ai, **endless))
            await wait_until_running(server, 1)
            whole.cancel()
        await wait_until_running(server, 0)


async def leave(ai: AsyncOpenAI, **fields: Any) -> None:
    await ai.chat.completions.create(model=SOFT_PROMPT, messages=MESSAGES, **fields)
