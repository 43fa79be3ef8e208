"""POST /generate on the real engine: exact text, and every control does what it says."""

import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.engine.model.default import default_model
from app.engine.vllm.fork_server import cores_of_worker
from app.settings import Settings
from softserve import __version__
from tests.server.process import ServerProcess
from tests.server.requests import generate, metric, stream, text_of

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at",
    "In 1969,",
    "The quick brown fox",
    "Dear Sir or Madam,",
    "Q: What is 2 + 2?\nA:",
    "The three primary colors are",
    "你好，世界。今天",
]
COUNTING = "Count: 1, 2, 3, 4,"
RANDOM = {"temperature": 1.0, "max_new_tokens": 24}


class Reference:
    """The same weights under transformers, in FP32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(self, prompt: str, **options: Any) -> list[int]:
        """The new token ids of greedy decoding."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, **options)
        token_ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
        return token_ids


@pytest.fixture(scope="module")
def reference(server: object) -> Reference:
    return Reference(default_model(Settings().cache_dir, Progress(disable=True)))


def greedy_token_ids(client: httpx.Client, prompt: str, **body: Any) -> list[int]:
    answer = generate(client, prompt=prompt, return_token_ids=True, **body)
    token_ids: list[int] = answer["completions"][0]["token_ids"]
    return token_ids


def test_the_readme_answers_paris(client: httpx.Client) -> None:
    answer = generate(
        client, prompt="Tell me the capital of France.", use_chat_template=True, max_new_tokens=20
    )

    assert answer["completions"] == [
        {
            "prompt_index": 0,
            "index": 0,
            "text": "The capital of France is Paris.",
            "finish_reason": "stop",
        }
    ]
    # The template's system message, the question, and the start of the answer; then seven tokens of
    # text and the end-of-sequence token.
    assert answer["usage"] == {
        "prompt_tokens": 37,
        "virtual_tokens": 0,
        "completion_tokens": 8,
        "cached_tokens": 0,
    }
    assert answer["model"] == "SmolLM2-135M-Instruct"
    assert answer["sampling"]["greedy"] is True
    assert 0 <= answer["timings"]["queue"] <= answer["timings"]["ttft"]
    assert answer["timings"]["ttft"] <= answer["timings"]["total"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_equals_transformers_token_for_token(
    client: httpx.Client, reference: Reference, prompt: str
) -> None:
    expected = reference.generate(prompt, max_new_tokens=48)

    assert greedy_token_ids(client, prompt, max_new_tokens=48) == expected


def test_a_repetition_penalty_equals_transformers(
    client: httpx.Client, reference: Reference
) -> None:
    expected = reference.generate(PROMPTS[0], max_new_tokens=48, repetition_penalty=1.3)

    assert (
        greedy_token_ids(client, PROMPTS[0], max_new_tokens=48, repetition_penalty=1.3) == expected
    )


def test_the_chat_template_and_system_message_are_the_models_own(
    client: httpx.Client, reference: Reference
) -> None:
    messages = [
        {"role": "system", "content": "You answer in French."},
        {"role": "user", "content": "Tell me the capital of France."},
    ]
    written = reference.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    by_hand = generate(client, prompt=written, max_new_tokens=30)

    by_template = generate(
        client,
        prompt="Tell me the capital of France.",
        system="You answer in French.",
        use_chat_template=True,
        max_new_tokens=30,
    )

    assert by_template["completions"] == by_hand["completions"]
    assert by_template["usage"]["prompt_tokens"] == by_hand["usage"]["prompt_tokens"]


def test_a_list_of_prompts_is_answered_in_order_and_as_each_alone(client: httpx.Client) -> None:
    alone = [text_of(generate(client, prompt=prompt, max_new_tokens=16)) for prompt in PROMPTS]

    together = generate(client, prompt=PROMPTS, max_new_tokens=16)

    assert [c["text"] for c in together["completions"]] == alone
    assert [c["prompt_index"] for c in together["completions"]] == list(range(len(PROMPTS)))
    assert together["usage"]["completion_tokens"] == 16 * len(PROMPTS)


def test_a_seed_repeats_and_another_differs(client: httpx.Client) -> None:
    first, again, other = (
        text_of(generate(client, prompt=PROMPTS[0], seed=seed, **RANDOM)) for seed in (7, 7, 8)
    )

    assert first == again
    assert first != other


def test_a_seed_repeats_where_a_prompt_takes_several_steps(client: httpx.Client) -> None:
    """The second time it takes one: the prefix cache has nearly all of it."""
    body = {"prompt": "one two three " * 800, "temperature": 1.0, "seed": 7, "max_new_tokens": 8}

    first, second = (generate(client, **body) for _ in range(2))

    # vLLM's tokens in one step, on a CPU.
    assert first["usage"]["prompt_tokens"] > 2048
    assert second["usage"]["cached_tokens"] > first["usage"]["cached_tokens"]
    assert text_of(first) == text_of(second)


def test_without_a_seed_two_answers_differ(client: httpx.Client) -> None:
    first, second = (text_of(generate(client, prompt=PROMPTS[0], **RANDOM)) for _ in range(2))

    assert first != second


def test_n_completions_differ_and_a_seed_repeats_them_all(client: httpx.Client) -> None:
    answers = [generate(client, prompt=PROMPTS[:2], n=3, seed=5, **RANDOM) for _ in range(2)]

    completions = answers[0]["completions"]
    assert [(c["prompt_index"], c["index"]) for c in completions] == [
        (prompt, index) for prompt in range(2) for index in range(3)
    ]
    assert len({c["text"] for c in completions}) == 6
    assert completions == answers[1]["completions"]
    # A prompt counts once, however many completions it has.
    assert answers[0]["usage"]["prompt_tokens"] == 4 + 5


def test_top_k_1_equals_greedy(client: httpx.Client) -> None:
    greedy = greedy_token_ids(client, PROMPTS[0], max_new_tokens=32)

    assert greedy_token_ids(client, PROMPTS[0], max_new_tokens=32, top_k=1) == greedy


@pytest.mark.parametrize(
    "control", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.5}]
)
def test_a_filter_turns_random_sampling_on(client: httpx.Client, control: dict[str, float]) -> None:
    answer = generate(client, prompt="Hi", max_new_tokens=1, **control)

    assert answer["sampling"]["greedy"] is False
    assert answer["sampling"] | control == answer["sampling"]
    assert answer["sampling"]["temperature"] == control.get("temperature", 1.0)


def test_a_stop_string_ends_the_text_before_it(client: httpx.Client) -> None:
    without = text_of(generate(client, prompt=COUNTING, max_new_tokens=20))
    assert without.startswith(" 5, 6, 7, 8,")

    answer = generate(client, prompt=COUNTING, max_new_tokens=20, stop=["nowhere", " 7"])

    (completion,) = answer["completions"]
    assert completion["text"] == " 5, 6,"
    assert completion["finish_reason"] == "stop"


@pytest.mark.parametrize("prompt", ["My secret text. caf\ufffd", "secret \ufffd\ufffd", "\ufffd"])
def test_nothing_of_a_prompt_that_ends_in_a_replacement_character_comes_back(
    client: httpx.Client, reference: Reference, prompt: str
) -> None:
    body = {"prompt": prompt, "max_new_tokens": 6, "ignore_eos": True, "stop": "secret"}
    expected = reference.generate(prompt, max_new_tokens=6, min_new_tokens=6)

    answer, streamed = generate(client, **body), stream(client, **body)

    # Of a character that may not be complete, which U+FFFD stands for, nothing is sent.
    text = reference.tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert text_of(answer) == streamed.text() == text
    assert answer["completions"][0]["finish_reason"] == "length"


def test_min_new_tokens_holds_back_the_end(client: httpx.Client) -> None:
    question = {"prompt": "Tell me the capital of France.", "use_chat_template": True}
    assert generate(client, **question)["usage"]["completion_tokens"] == 8

    longer = generate(client, **question, min_new_tokens=20, max_new_tokens=64)

    assert longer["usage"]["completion_tokens"] >= 20
    assert text_of(longer).startswith("The capital of France is Paris")


def test_min_new_tokens_holds_back_a_stop_string(client: httpx.Client) -> None:
    answer = generate(client, prompt=COUNTING, stop=[","], min_new_tokens=9, max_new_tokens=30)

    assert answer["completions"][0]["finish_reason"] == "stop"
    assert text_of(answer).startswith(" 5, 6, 7")


def test_ignore_eos_goes_on_to_the_limit(client: httpx.Client) -> None:
    answer = generate(
        client,
        prompt="Tell me the capital of France.",
        use_chat_template=True,
        ignore_eos=True,
        max_new_tokens=30,
    )

    assert answer["completions"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize("stop", ["<|im_end|>", ["nowhere", "<|im_end|>"]])
def test_a_stop_string_that_is_a_special_token_stops(
    client: httpx.Client, stop: str | list[str]
) -> None:
    question = {"prompt": "Tell me the capital of France.", "use_chat_template": True}

    answer = generate(client, **question, ignore_eos=True, max_new_tokens=30, stop=stop)

    assert text_of(answer) == "The capital of France is Paris."
    assert answer["completions"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 8


def test_max_new_tokens_is_exact_when_nothing_stops_earlier(client: httpx.Client) -> None:
    answer = generate(client, prompt=PROMPTS[0], max_new_tokens=5, return_token_ids=True)

    assert answer["completions"][0]["finish_reason"] == "length"
    assert len(answer["completions"][0]["token_ids"]) == 5


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_changes_a_repetitive_text(client: httpx.Client, penalty: str) -> None:
    prompt = "na na na na na na na na"
    plain = greedy_token_ids(client, prompt, max_new_tokens=24)

    penalized = greedy_token_ids(client, prompt, max_new_tokens=24, **{penalty: 2.0})

    assert len(set(penalized)) > len(set(plain))


def test_logprobs_are_the_models_own(client: httpx.Client, reference: Reference) -> None:
    prompt = "The weather today is"
    answer = generate(
        client, prompt=prompt, logprobs=3, max_new_tokens=4, temperature=0.3, seed=1,
        return_token_ids=True,
    )  # fmt: skip

    (completion,) = answer["completions"]
    token_ids = reference.tokenizer(prompt).input_ids + completion["token_ids"]
    with torch.inference_mode():
        logits = reference.model(torch.tensor([token_ids])).logits[0]
    expected = torch.log_softmax(logits.double(), dim=-1)[-5:-1]
    for row, position in zip(expected, completion["logprobs"], strict=True):
        best = row.topk(3)
        assert [token["token_id"] for token in position["top"]] == best.indices.tolist()
        assert [token["logprob"] for token in position["top"]] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert position["logprob"] == pytest.approx(float(row[position["token_id"]]), abs=1e-4)
    assert [p["token_id"] for p in completion["logprobs"]] == completion["token_ids"]


def test_logprobs_0_reports_only_the_chosen_token(client: httpx.Client) -> None:
    answer = generate(client, prompt="Hi", logprobs=0, max_new_tokens=2)

    assert [position["top"] for position in answer["completions"][0]["logprobs"]] == [[], []]


def test_the_prefix_cache_is_reported(client: httpx.Client) -> None:
    prompt = "The story of the lighthouse keeper. " * 60
    first = generate(client, prompt=prompt, max_new_tokens=1)["usage"]
    second = generate(client, prompt=prompt, max_new_tokens=1)["usage"]

    assert first["cached_tokens"] == 0
    assert second["prompt_tokens"] == first["prompt_tokens"]
    # All whole blocks but the last are reused.
    assert 0 < second["prompt_tokens"] - second["cached_tokens"] <= 128


def test_a_request_that_fills_the_context_window_exactly(client: httpx.Client) -> None:
    window = client.get("/info").json()["context_window"]
    num_tokens = generate(client, prompt="a " * 2000, max_new_tokens=1)["usage"]["prompt_tokens"]

    fits = stream_status(client, prompt="a " * 2000, max_new_tokens=window - num_tokens)
    too_long = client.post(
        "/generate", json={"prompt": "a " * 2000, "max_new_tokens": window - num_tokens + 1}
    )

    assert fits == 200
    assert too_long.status_code == 422
    assert too_long.json()["error"] == {
        "type": "context_window_exceeded",
        "message": f"the prompt has {num_tokens:,} tokens and max_new_tokens is "
        f"{window - num_tokens + 1:,}; the context window is {window:,}: shorten the prompt by 1 "
        f"tokens, or lower max_new_tokens to {window - num_tokens:,}",
        "param": "prompt",
    }


def stream_status(client: httpx.Client, **body: Any) -> int:
    """The status of a stream that is left after its headers."""
    with client.stream("POST", "/generate", json=body | {"stream": True}) as response:
        return response.status_code


def test_a_request_id_is_kept_or_made(client: httpx.Client) -> None:
    body = {"prompt": "Hi", "max_new_tokens": 1}
    kept = client.post("/generate", json=body, headers={"x-request-id": "order-66"})
    replaced = client.post("/generate", json=body, headers={"x-request-id": "no spaces, please"})

    assert kept.headers["x-request-id"] == kept.json()["id"] == "order-66"
    assert replaced.headers["x-request-id"] == replaced.json()["id"] != "no spaces, please"


def test_streams_of_many_prompts_give_every_completion(client: httpx.Client) -> None:
    body = {"prompt": PROMPTS[:3], "n": 2, "seed": 3, **RANDOM}
    collected = generate(client, **body)

    streamed = stream(client, **body)

    assert streamed.done
    for completion in collected["completions"]:
        key = (completion["prompt_index"], completion["index"])
        assert streamed.text(*key) == completion["text"]
        assert streamed.of(*key)[-1]["finish_reason"] == completion["finish_reason"]


def test_info(client: httpx.Client) -> None:
    info = client.get("/info").json()

    assert info.pop("limits")["max_sequences_in_flight"] == 64
    weights = info.pop("weights")
    assert weights["precision"] == "fp32"
    assert weights["made"] == "4-bit GGUF (Q4_1) expanded to BF16, then cast at load"
    # 30 layers of 3,538,944 weights.
    assert weights["linear_bytes"] == 4 * 30 * 3_538_944
    # vLLM rounds it down to whole blocks.
    assert 0.99 * (2 << 30) < info.pop("kv_cache_bytes") <= 2 << 30
    assert info == {
        "model": "SmolLM2-135M-Instruct",
        "device": "cpu",
        "dtype": "float32",
        "context_window": 8192,
        "encoder_window": None,
        "forced_bos_token_id": None,
        "vocabulary_size": 49152,
        "max_running_sequences": 128,
        "schedules_by_priority": False,
        "pauses_completions": True,
        # scripts/install.sh has compiled it where it could.
        "lora_kernel": "native" if shutil.which("g++") else "torch",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "server_version": __version__,
    }


def test_metrics_hold_the_servers_and_vllms(client: httpx.Client) -> None:
    generated = "softserve_completion_tokens_total"
    first_tokens = "softserve_time_to_first_token_seconds_count"
    before = {name: metric(client, name) for name in (generated, first_tokens)}

    generate(client, prompt=PROMPTS[:2], n=2, temperature=1.0, max_new_tokens=3, ignore_eos=True)

    assert metric(client, generated) == before[generated] + 12
    assert metric(client, first_tokens) == before[first_tokens] + 1
    assert metric(client, "vllm:generation_tokens_total") >= 12
    assert metric(client, "vllm:lora_requests_info") > 0


# The tests' libraries bring it, and transformers imports it where it is; it takes a fork.
OF_PYARROW = "jemalloc_bg_thd\n"


def test_scheduler_and_worker_are_forked_and_the_worker_is_bound(server: ServerProcess) -> None:
    """The first from a process without other threads; the second's threads have a core each."""
    fork_server = server.process_named("softserve: fork")
    threads = Path(f"/proc/{fork_server}/task").glob("*/comm")
    names = [name for thread in threads if (name := thread.read_text()) != OF_PYARROW]
    assert len(names) == 1
    status = Path(f"/proc/{server.engine_process()}/status").read_text()
    assert f"\nPPid:\t{fork_server}\n" in status
    worker = server.worker_process()
    assert (
        Path(f"/proc/{worker}/environ").read_text()
        == Path(f"/proc/{server.engine_process()}/environ").read_text()
    ), "what a process was started with outlasts a fork only"
    cores = [
        os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{worker}/task").iterdir()
    ]
    assert set().union(*cores) == set(cores_of_worker())
    assert {len(each) for each in cores} == {1}


def test_an_engine_argument_reaches_vllm(client: httpx.Client) -> None:
    assert 'block_size="64"' in client.get("/metrics").text
