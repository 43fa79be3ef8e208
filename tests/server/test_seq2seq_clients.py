"""Clients of an encoder-decoder model: OpenAI's, the command line, those that leave or are slow."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from peft import PeftModel

from app.evaluation.measures import Scored, measures
from tests.server.process import ServerProcess, running, wait_until
from tests.server.requests import (
    add_adapter,
    generate,
    metric,
    put_adapter,
    stream,
    text_of,
)
from tests.server.seq2seq import (
    Transformers,
    completion,
    message_of,
    save_lora,
    save_soft_prompt,
)
from tests.server.test_cancellation import complete_beside_one_who_leaves, wait_until_running
from tests.server.test_pause import is_paused, num_made, read_all, unread
from tests.server.test_seq2seq_server import LABELS, PROMPTS, TEMPLATE
from tests.server.tiny_models import SENTENCES, make_t5

WINDOW, ENCODER_WINDOW, VIRTUAL = 4096, 8192, 5
START = (
    *("--context-window", f"{WINDOW}", "--encoder-window", f"{ENCODER_WINDOW}"),
    *("--kv-cache-gib", "0.2"),
)
SOFTSERVE = Path(sys.executable).with_name("softserve")
BASE, LORA, SOFT_PROMPT = "model", "tone", "task"
FIELDS: dict[str, dict[str, str]] = {
    BASE: {},
    LORA: {"adapter": LORA},
    SOFT_PROMPT: {"soft_prompt": SOFT_PROMPT},
    f"{LORA}+{SOFT_PROMPT}": {"adapter": LORA, "soft_prompt": SOFT_PROMPT},
}
GREEDY: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
# Far longer than any test waits: only an abort can end it in time.
ENDLESS = {"prompt": "The river", "max_new_tokens": WINDOW - 1, "ignore_eos": True}
NO_CHAT = "an encoder-decoder model has no chat template"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5") / BASE)


@pytest.fixture(scope="module")
def adapted(folder: Path) -> dict[str, PeftModel]:
    """A LoRA and a soft prompt, in PEFT; their files are beside the model."""
    return {
        LORA: save_lora(folder.with_name(LORA), folder, "all-linear"),
        SOFT_PROMPT: save_soft_prompt(folder.with_name(SOFT_PROMPT), folder),
    }


@pytest.fixture(scope="module")
def server(folder: Path, adapted: dict[str, PeftModel]) -> Iterator[ServerProcess]:
    with running(*START, "--model", str(folder)) as server:
        with server.wait_until_ready().client() as client:
            for name in adapted:
                add_adapter(client, name, folder.with_name(name))
        yield server


@pytest.fixture
def ai(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def transformers(folder: Path) -> Transformers:
    return Transformers(folder)


# OpenAI's client.


@pytest.mark.parametrize("model", FIELDS)
def test_openais_completion_is_that_of_generate(
    ai: OpenAI, client: httpx.Client, model: str
) -> None:
    answer = ai.completions.create(model=model, prompt=PROMPTS, **GREEDY)
    same = generate(client, prompt=PROMPTS, max_new_tokens=20, **FIELDS[model])

    expected = [(each["text"], each["finish_reason"]) for each in same["completions"]]
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == expected
    assert len({text for text, _ in expected}) == len(PROMPTS)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == same["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == same["usage"]["completion_tokens"]
    named = [answer.model.count(f"{name}@") for name in (LORA, SOFT_PROMPT)]
    assert named == [int(name in model) for name in (LORA, SOFT_PROMPT)]


def test_openais_completion_is_that_of_transformers(ai: OpenAI, transformers: Transformers) -> None:
    """Of texts and of their tokens, with a text for the decoder and without."""
    tokens = [transformers.tokenizer.encode(prompt) for prompt in PROMPTS]
    for start in ("", "the house"):
        expected = [transformers.complete(each, decoder_prompt=start)[1] for each in PROMPTS]
        extra: dict[str, Any] = {"extra_body": {"decoder_prompt": start}} if start else {}
        for prompts in (PROMPTS, tokens):
            answer = ai.completions.create(model=BASE, prompt=prompts, **GREEDY, **extra)
            assert [choice.text for choice in answer.choices] == expected


@pytest.mark.parametrize("model", FIELDS)
def test_openais_stream_has_the_same_text_and_usage(ai: OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": PROMPTS[:2], **GREEDY}
    whole = ai.completions.create(**asked)
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ai.completions.create(**asked, **options))

    choices = [choice for chunk in chunks for choice in chunk.choices]
    for expected in whole.choices:
        mine = [choice for choice in choices if choice.index == expected.index]
        assert "".join(choice.text for choice in mine) == expected.text
        assert mine[-1].finish_reason == expected.finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openais_controls_do_what_they_say(
    ai: OpenAI, client: httpx.Client, transformers: Transformers
) -> None:
    _, text = transformers.complete(PROMPTS[1])
    asked: dict[str, Any] = {"model": BASE, "prompt": PROMPTS[1], **GREEDY}

    stopped = ai.completions.create(**asked, stop=text[4:7]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(text[4:7])], "stop")

    told = ai.completions.create(**asked, logprobs=2).choices[0].logprobs
    same = generate(client, prompt=PROMPTS[1], max_new_tokens=20, logprobs=2)
    expected = [each["logprob"] for each in same["completions"][0]["logprobs"]]
    assert told is not None
    assert told.token_logprobs == pytest.approx(expected, abs=1e-4)

    random = asked | {"temperature": 1.0, "n": 3, "seed": 7}
    first, second = ([c.text for c in ai.completions.create(**random).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3

    extra = {"return_token_ids": True, "decoder_prompt": "the house"}
    ids: Any = ai.completions.create(**asked, extra_body=extra).choices[0]
    start = transformers.tokenizer.encode("the house", add_special_tokens=False)
    assert ids.prompt_token_ids == [*transformers.tokenizer.encode(PROMPTS[1]), *start]
    assert ids.token_ids == transformers.complete(PROMPTS[1], decoder_prompt="the house")[0]
    bare: Any = ai.completions.create(
        **asked, extra_body={"return_token_ids": True, "add_special_tokens": False}
    ).choices[0]
    assert [*bare.prompt_token_ids, 1] == transformers.tokenizer.encode(PROMPTS[1])


def test_tokens_and_models(client: httpx.Client, ai: OpenAI, transformers: Transformers) -> None:
    for prompt in PROMPTS:
        made = client.post("/tokenize", json={"prompt": prompt}).json()
        assert made["tokens"] == transformers.tokenizer.encode(prompt)
        assert (made["count"], made["max_model_len"]) == (len(made["tokens"]), WINDOW)
        back = client.post("/detokenize", json={"tokens": made["tokens"]}).json()
        assert back == {"prompt": transformers.tokenizer.decode(made["tokens"])}
    kinds = {each.id: each.kind for each in ai.models.list()}  # type: ignore[attr-defined]
    assert (kinds[LORA], kinds[SOFT_PROMPT]) == ("lora", "soft_prompt")
    assert set(kinds.values()) == {"base", "lora", "soft_prompt"}


def test_there_is_no_chat(ai: OpenAI, client: httpx.Client) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.BadRequestError, match=NO_CHAT):
        ai.chat.completions.create(model=BASE, messages=messages)
    with pytest.raises(openai.BadRequestError, match=NO_CHAT):
        ai.responses.create(model=BASE, input="Hi")
    refused = client.post("/tokenize", json={"messages": messages})
    assert message_of(refused, 400).startswith(NO_CHAT)


def test_what_openais_protocol_refuses(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the encoder's window is 8,192") as too_long:
        ai.completions.create(model=BASE, prompt=[[5], [5] * (ENCODER_WINDOW + 1)], **GREEDY)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="its soft prompt 5; the encoder's window"):
        ai.completions.create(model=SOFT_PROMPT, prompt=[5] * (ENCODER_WINDOW - 4), **GREEDY)
    with pytest.raises(openai.BadRequestError, match="lower max_tokens to 4,095"):
        ai.completions.create(model=BASE, prompt="Hi", max_tokens=WINDOW)
    with pytest.raises(openai.BadRequestError, match="the vocabulary has"):
        ai.completions.create(model=BASE, prompt=[10**6], **GREEDY)
    for field in ("echo", "use_beam_search"):
        with pytest.raises(openai.BadRequestError, match=f"{field} is not for encoder-decoder"):
            ai.completions.create(model=BASE, prompt="Hi", **GREEDY, extra_body={field: True})


async def test_who_leaves_openais_stream_ends_all_its_prompts(server: ServerProcess) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as ai:
        stream = await ai.completions.create(
            model=LORA,
            prompt=PROMPTS[:3],
            max_tokens=WINDOW - 1,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for _ in stream:
            break
        await wait_until_running(server, 3)
        await stream.close()
        await wait_until_running(server, 0)


# The command line.


def evaluated(server: ServerProcess, folder: Path, template: dict[str, Any], *options: str) -> Any:
    """What `softserve evaluate` says of each number of shots, by its name."""
    (folder / "template.yaml").write_text(json.dumps(template))
    files: list[str | Path] = [
        "--data",
        folder / "rows.jsonl",
        "--template",
        folder / "template.yaml",
    ]
    files += ["--results", folder / "results.jsonl"]
    finished = subprocess.run(
        [SOFTSERVE, "evaluate", *files, *options, "--json", "--url", server.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    variants = json.loads(finished.stdout)["variants"]
    return {
        each["name"]: {name: score["score"] for name, score in each["scores"].items()}
        for each in variants
    }


def write_rows(folder: Path, texts: list[str], outputs: list[str]) -> None:
    rows = [
        json.dumps({"text": text, "output": output})
        for text, output in zip(texts, outputs, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows))


def test_evaluate_scores_labels_as_transformers_does(
    server: ServerProcess, transformers: Transformers, tmp_path: Path
) -> None:
    texts = [sentence.lower() for sentence in SENTENCES[::100]]
    prompts = {
        "0 shots": "classify: {}",
        "1 shot": "classify: the old dog the dog classify: {}",
    }
    chosen = {
        shots: [
            max(LABELS, key=lambda label: transformers.logprob(prompt.format(text), label))
            for text in texts
        ]
        for shots, prompt in prompts.items()
    }
    # The model without shots is right, but for the first row.
    wrong = next(label for label in LABELS if label != chosen["0 shots"][0])
    outputs = [wrong, *chosen["0 shots"][1:]]
    write_rows(tmp_path, texts, outputs)
    scores = evaluated(server, tmp_path, TEMPLATE, "--shots", "0,1", "--metrics", "accuracy")

    for shots, labels in chosen.items():
        hits = [label == output for label, output in zip(labels, outputs, strict=True)]
        assert scores[shots]["accuracy"] == pytest.approx(100 * sum(hits) / len(texts))


def test_evaluate_scores_texts_as_transformers_makes_them(
    server: ServerProcess, transformers: Transformers, tmp_path: Path
) -> None:
    template = {
        "input_variables": ["text"],
        "example_format": "summarize: {{ text }} {{ output }}",
        "query_format": "summarize: {{ text }}",
        "max_new_tokens": 12,
    }
    texts = SENTENCES[::120]
    made = [transformers.complete(f"summarize: {text}", num_tokens=12)[1] for text in texts]
    outputs = [made[0].strip(), *texts[1:]]
    write_rows(tmp_path, texts, outputs)
    scores = evaluated(server, tmp_path, template, "--shots", "0", "--metrics", "rouge,bleu,exact")

    rows = [Scored([text.strip()], output) for text, output in zip(made, outputs, strict=True)]
    expected = {
        measure.name: measure.score
        for metric in ("rouge", "bleu", "exact")
        for measure in measures(metric, rows)
    }
    assert scores["0 shots"] == pytest.approx(expected)
    assert 0 < expected["exact"] < 100


def test_chat_says_that_there_is_none(server: ServerProcess) -> None:
    chat = subprocess.run(
        [SOFTSERVE, "chat", "--url", server.url],
        input="Hi\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert chat.stdout == ""
    assert chat.stderr.startswith(f"softserve: {NO_CHAT}: write the whole prompt yourself")


# Who leaves, and who is slow.


async def test_the_middle_of_three_leaves_and_two_complete(
    server: ServerProcess, client: httpx.Client, async_client: httpx.AsyncClient
) -> None:
    bodies = [
        {"prompt": prompt, "max_new_tokens": 100, "ignore_eos": True, **adapter}
        for prompt, adapter in zip(PROMPTS[:2], ({}, FIELDS[LORA]), strict=True)
    ]
    await complete_beside_one_who_leaves(server, client, async_client, bodies, ENDLESS)
    assert metric(client, "softserve_requests_in_flight") == 0


async def test_leaving_a_list_of_prompts_frees_every_place(
    server: ServerProcess, client: httpx.Client
) -> None:
    body = ENDLESS | {"prompt": PROMPTS[:3], "n": 4, "temperature": 1.0}
    async with server.async_client() as leaver:
        request = asyncio.create_task(leaver.post("/generate", json=body))
        await wait_until_running(server, 12)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    await wait_until_running(server, 0)
    assert metric(client, "softserve_sequences_in_flight") == 0


def test_a_slow_reader_gets_what_a_fast_one_gets(
    server: ServerProcess, client: httpx.Client
) -> None:
    body: dict[str, Any] = {
        "prompt": PROMPTS[0],
        "decoder_prompt": "the house",
        "n": 8,
        "temperature": 1.0,
        "seed": 5,
        "max_new_tokens": 120,
        "ignore_eos": True,
        "logprobs": 20,
    }
    expected = stream(client, **body)
    before = num_made(client)

    with unread(server, body) as reader:
        wait_until(lambda: is_paused(client, before), seconds=60)
        generate(client, prompt="Hi", max_new_tokens=4)
        assert num_made(client) < before + 8 * 120
        streamed = read_all(reader)

    assert streamed.done
    for index in range(8):
        assert streamed.text(index=index) == expected.text(index=index)
        assert streamed.of(index=index)[-1]["usage"]["completion_tokens"] == 120


def test_what_is_unfinished_at_its_time_ends_with_what_it_has(client: httpx.Client) -> None:
    timed = generate(client, **ENDLESS, timeout_seconds=0.5)["completions"][0]

    assert timed["finish_reason"] == "timeout"
    assert timed["text"]


def test_prompts_and_seeds_are_each_their_own(client: httpx.Client) -> None:
    body: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 11, "max_new_tokens": 12}
    together = generate(client, prompt=PROMPTS, **body)
    again = generate(client, prompt=PROMPTS, **body)

    assert together["completions"] == again["completions"]
    assert len({each["text"] for each in together["completions"]}) > 2 * len(PROMPTS)
    alone = generate(client, prompt=PROMPTS[0], **body)["completions"]
    first = [each for each in together["completions"] if each["prompt_index"] == 0]
    assert [each["text"] for each in alone] == [each["text"] for each in first]


# What is asked.


def test_a_completion_is_one_of_the_choices(client: httpx.Client, ai: OpenAI) -> None:
    """As if it were written: the space that a first piece begins with is no part of it."""
    chosen = [text_of(generate(client, prompt=each, choice=LABELS)) for each in PROMPTS]

    assert set(chosen) <= set(LABELS)
    assert stream(client, prompt=PROMPTS[0], choice=LABELS).text() == chosen[0]
    random: dict[str, Any] = {"prompt": PROMPTS, "n": 8, "temperature": 2.0, "seed": 3}
    several = generate(client, **random, choice=LABELS)["completions"]
    assert {each["text"] for each in several} == set(LABELS)
    assert {each["finish_reason"] for each in several} == {"stop"}
    extra: dict[str, Any] = {"extra_body": {"structured_outputs": {"choice": LABELS}}}
    answer = ai.completions.create(model=BASE, prompt=PROMPTS, **GREEDY, **extra)
    assert [choice.text for choice in answer.choices] == chosen
    # A space that is asked for is there: of a text that begins, and of one that goes on.
    spaced = [f" {label}" for label in LABELS]
    for start in ({}, {"decoder_prompt": "the house"}):
        assert text_of(generate(client, prompt=PROMPTS[0], choice=spaced, **start)) in spaced


def test_the_likelier_piece_of_a_choice_is_taken(
    client: httpx.Client, transformers: Transformers
) -> None:
    """Of two that differ in their first word, that which the model itself would begin with."""
    token_ids, _ = transformers.complete(PROMPTS[0], num_tokens=1)
    likeliest = transformers.tokenizer.decode(token_ids)
    assert likeliest.strip()
    other = next(label for label in LABELS if label[0] != likeliest[0])
    answer = generate(client, prompt=PROMPTS[0], choice=[other, likeliest], max_new_tokens=20)

    assert text_of(answer) == likeliest


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        ({"choice": ["the dog", "a {cat}"]}, "has no token for '{': leave it out"),
        ({"regex": "[a-z ]{4}"}, "has no tokens for some characters"),
        ({"json_schema": {"type": "object"}}, "has no tokens for some characters"),
    ],
)
def test_what_these_tokens_may_not_say_is_refused(
    client: httpx.Client, structure: dict[str, Any], reason: str
) -> None:
    response = client.post("/generate", json={"prompt": PROMPTS[0], **structure})

    (param,) = structure
    assert message_of(response).startswith(f"{param} cannot be honoured: this model's tokenizer ")
    assert reason in message_of(response)
    assert response.json()["error"]["param"] == param


def test_inspect_shows_the_token_behind_the_decoders_prompt(
    client: httpx.Client, transformers: Transformers
) -> None:
    start = "the house"
    body = {"prompt": PROMPTS[0], "decoder_prompt": start, "num_tokens": 3}
    answer = client.post("/inspect", json=body).json()

    token_ids, _ = transformers.complete(PROMPTS[0], decoder_prompt=start, num_tokens=1)
    assert answer["tokens"][0]["token_id"] == token_ids[0]
    with_start = [*transformers.tokenizer.encode(PROMPTS[0]), *transformers.tokenizer.encode(start)]
    assert answer["prompt_tokens"] == len(with_start) - 1


@pytest.mark.parametrize(
    "prompt",
    [
        " ",
        "the </s> dog <extra_id_0> house <pad>",
        ("The morning rain near Paris. " * 400)[:10_000],
        "☃" * 10_000,
        "Ünïcödé — 日本語 🐕 \u200b\ufeff e\u0301",
        "\n\t The old dog \r\n",
    ],
    ids=["nothing", "special tokens", "long", "unknown", "unicode", "white space"],
)
def test_odd_texts_are_those_of_transformers(
    client: httpx.Client, transformers: Transformers, prompt: str
) -> None:
    answer = generate(client, prompt=prompt, max_new_tokens=16, return_token_ids=True)

    assert completion(answer) == transformers.complete(prompt, num_tokens=16)
    assert answer["usage"]["prompt_tokens"] == len(transformers.tokenizer.encode(prompt))


@pytest.mark.parametrize("token_ids", [[1], [5, 6, 7], [0, 0, 9], [1, 8, 1, 2]])
def test_token_ids_are_taken_as_they_are(
    client: httpx.Client, transformers: Transformers, token_ids: list[int]
) -> None:
    """The end alone, none at all, and special tokens anywhere."""
    answer = generate(client, prompt_token_ids=token_ids, max_new_tokens=16, return_token_ids=True)
    made = transformers.model.generate(
        input_ids=torch.tensor([token_ids]),
        attention_mask=torch.ones(1, len(token_ids)),
        max_new_tokens=16,
        do_sample=False,
    )
    assert completion(answer)[0] == made[0, 1:].tolist()


def test_what_does_not_fit(client: httpx.Client) -> None:
    window = "the encoder's window is 8,192"
    refused = {
        f"the prompt has 8,193 tokens; {window}": {"prompt_token_ids": [5] * (ENCODER_WINDOW + 1)},
        f"prompt 1 has 8,193 tokens; {window}": {
            "prompt_token_ids": [[5], [5] * (ENCODER_WINDOW + 1)]
        },
        f"the prompt has 8,188 tokens and its soft prompt 5; {window}: shorten the prompt by 1 ": {
            "prompt_token_ids": [5] * (ENCODER_WINDOW - VIRTUAL + 1),
            "soft_prompt": SOFT_PROMPT,
        },
        "decoder_prompt has ": {"prompt": "a", "decoder_prompt": "the " * WINDOW},
    }
    for sentence, body in refused.items():
        response = client.post("/generate", json=body)
        assert message_of(response).startswith(sentence)
    long = client.post("/generate", json={"prompt": "rain near Paris. " * ENCODER_WINDOW})
    assert window in message_of(long)
    fits = generate(client, prompt_token_ids=[5] * ENCODER_WINDOW, max_new_tokens=2)
    assert fits["usage"]["prompt_tokens"] == ENCODER_WINDOW


def test_a_decoders_prompt_may_fill_its_window(client: httpx.Client) -> None:
    counted = client.post("/tokenize", json={"prompt": "the", "add_special_tokens": False}).json()
    start = "the " * ((WINDOW - 3) // counted["count"])
    full = generate(client, prompt="a", decoder_prompt=start, max_new_tokens=1)

    assert full["usage"]["completion_tokens"] == 1


def test_a_lora_of_nothing_is_refused(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    """That of one stack is in tests/server/test_seq2seq_server.py."""
    save_lora(tmp_path, folder, ["relative_attention_bias"])

    assert put_adapter(client, "nothing", tmp_path).status_code == 422


def test_what_is_counted(client: httpx.Client) -> None:
    names = ("softserve_prompt_tokens_total", "softserve_completion_tokens_total")
    before = [metric(client, name) for name in names]
    answer = generate(client, prompt=PROMPTS, decoder_prompt="the house", max_new_tokens=4)

    usage = answer["usage"]
    counted = [metric(client, name) - each for name, each in zip(names, before, strict=True)]
    assert counted == [usage["prompt_tokens"], usage["completion_tokens"]]
