"""Clients of OpenAI's protocol that know nothing of softserve: they work unchanged."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.progress import Progress

from app.engine.model.default import default_model
from app.settings import Settings
from tests.server.process import ServerProcess
from tests.server.requests import add_adapter, generate, text_of

SHIPPED = Path(__file__).resolve().parents[2] / "adapters"
BASE = "SmolLM2-135M-Instruct"
LORA = "clients-lora"
QUESTION = "Tell me the capital of France."


@pytest.fixture(scope="module", autouse=True)
def adapter(server: ServerProcess) -> Iterator[None]:
    with server.client() as client:
        add_adapter(client, LORA, SHIPPED / "support-intent-lora")
        yield
        client.delete(f"/adapters/{LORA}").raise_for_status()


@pytest.fixture(scope="module")
def tokenizer() -> str:
    """The folder of the default model's tokenizer."""
    return str(default_model(Settings().cache_dir, Progress(disable=True)))


# LangChain.


def test_langchain_invokes_and_streams(server: ServerProcess, client: httpx.Client) -> None:
    from langchain_openai import ChatOpenAI

    for model, fields in ((BASE, {}), (LORA, {"adapter": LORA})):
        chat = ChatOpenAI(
            model=model,
            base_url=f"{server.url}/v1",
            api_key="none",
            temperature=0,
            max_completion_tokens=20,
        )
        same = generate(
            client, prompt=QUESTION, use_chat_template=True, max_new_tokens=20, **fields
        )
        answer = chat.invoke(QUESTION)
        assert answer.content == text_of(same)
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == same["usage"]["completion_tokens"]
        assert "".join(str(piece.content) for piece in chat.stream(QUESTION)) == text_of(same)


def test_langchain_calls_tools_and_parses(server: ServerProcess) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Weather(BaseModel):
        """The weather in a city."""

        city: str

    chat = ChatOpenAI(
        model=BASE,
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_completion_tokens=60,
    )
    answer = chat.bind_tools([Weather], tool_choice="Weather").invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "Weather"
    assert isinstance(call["args"]["city"], str)
    parsed = chat.with_structured_output(Weather, method="json_schema").invoke(QUESTION)
    assert isinstance(parsed, Weather)


# lm-eval.

TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
DOCUMENTS = [
    {"country": "France", "choices": ["Paris", "Rome", "a banana"], "answer": 0},
    {"country": "Italy", "choices": ["Paris", "Rome", "a banana"], "answer": 1},
]
TEMPLATE = {
    "input_variables": ["country"],
    "example_format": "The capital of {{ country }} is {{ output }}",
    "query_format": "The capital of {{ country }} is",
    "labels": ["Paris", "Rome", "a banana"],
}


@pytest.mark.parametrize(("model", "fields"), [(BASE, {}), (LORA, {"adapter": LORA})])
def test_lm_eval_scores_as_the_labels_of_a_template(
    server: ServerProcess,
    client: httpx.Client,
    tokenizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    fields: dict[str, str],
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for name, value in (("HF_HOME", str(tmp_path)), ("OPENAI_API_KEY", "none")):
        monkeypatch.setenv(name, value)
    documents = tmp_path / "capitals.jsonl"
    documents.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (tmp_path / "capitals.yaml").write_text(TASK.format(file=documents))
    evaluated: Any = simple_evaluate(
        model="local-completions",
        model_args={
            "model": model,
            "base_url": f"{server.url}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": tokenizer,
            "num_concurrent": 2,
        },
        tasks=["capitals"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(evaluated["samples"]["capitals"], key=lambda each: each["doc_id"])
    assert len(samples) == len(DOCUMENTS)
    for sample, document in zip(samples, DOCUMENTS, strict=True):
        body = {"template": TEMPLATE, "inputs": {"country": document["country"]}, **fields}
        answer = client.post("/icl/generate", json=body).json()
        labels = answer["prompts"][0]["classification"]["labels"]
        scores = [response[0] for response in sample["filtered_resps"]]
        assert scores == pytest.approx([each["logprob"] for each in labels], abs=1e-3)
        best = max(range(3), key=lambda index: labels[index]["logprob"])
        assert sample["acc"] == float(best == document["answer"])


# vLLM's own benchmark client.


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_vllms_benchmark_client(server: ServerProcess, tokenizer: str) -> None:
    from transformers import AutoTokenizer
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    async def run() -> dict[str, Any]:
        result: dict[str, Any] = await benchmark(
            task_type=TaskType.GENERATION,
            endpoint_type="vllm",
            api_url=f"{server.url}/v1/completions",
            base_url=server.url,
            model_id=LORA,
            model_name=LORA,
            tokenizer=AutoTokenizer.from_pretrained(tokenizer),
            input_requests=[SampleRequest("One, two,", 5, 8), SampleRequest("Red, green,", 4, 8)],
            logprobs=None,
            request_rate=float("inf"),
            burstiness=1.0,
            disable_tqdm=True,
            num_warmups=0,
            profile=False,
            selected_percentile_metrics=["ttft", "itl", "tpot"],
            selected_percentiles=[50],
            ignore_eos=True,
            goodput_config_dict={},
            max_concurrency=2,
            lora_modules=None,
            extra_headers=None,
            extra_body={"temperature": 0},
            ready_check_timeout_sec=0,
        )
        return result

    result = asyncio.run(run())
    assert (result["completed"], result["failed"], result["errors"]) == (2, 0, ["", ""])
    assert result["output_lens"] == [8, 8]
    assert len(result["itls"]) == 2
