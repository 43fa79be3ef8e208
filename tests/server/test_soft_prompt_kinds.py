"""Multitask prompt tuning and CPT on the real engine give what PEFT generates with each task."""

import asyncio
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import (
    CPTConfig,
    MultitaskPromptTuningConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoTokenizer

from tests.adapter_files import write_lora, write_multitask
from tests.server.peft_reference import HIDDEN_SIZE, SMOLLM2_MODULES, default_base
from tests.server.requests import add_adapter, generate, put_adapter

# PEFT drops them, so that the model counts the virtual tokens too.
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported")

PROMPTS = ["Once upon a time", "The capital of France is", "Q: What is 2 + 2?\nA:"]
NUM_TASKS, NUM_VIRTUAL_TOKENS = 3, 12
CPT_TEXT = "Review: It broke on the second day.\nSentiment: negative\n\n"
# A name of the reference, and a task.
Chosen = tuple[str, int | None]
TASKS: list[Chosen] = [("multitask", task) for task in range(NUM_TASKS)]
CHOICES: list[Chosen] = [*TASKS, ("cpt", None), ("plain", None)]


class Reference:
    """Three kinds of soft prompts that PEFT saved, and the models that PEFT loads of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = default_base()
        self._tokenizer = AutoTokenizer.from_pretrained(base.name_or_path)
        torch.manual_seed(5)
        self._save_multitask(base)
        self._save_cpt(base)
        plain = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL_TOKENS)
        get_peft_model(base, plain).save_pretrained(folder / "plain")
        self._models = {
            name: PeftModel.from_pretrained(base, folder / name).eval()
            for name in ("multitask", "cpt", "plain")
        }
        self.generate = cache(self._generate)

    def _save_multitask(self, base: Any) -> None:
        config = MultitaskPromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=NUM_VIRTUAL_TOKENS,
            num_tasks=NUM_TASKS,
            num_ranks=2,
        )
        model = get_peft_model(base, config)
        encoder = model.prompt_encoder["default"]
        # PEFT begins with factors so small that all tasks are alike.
        for factor in (encoder.prefix_task_cols, encoder.prefix_task_rows):
            torch.nn.init.normal_(factor)
        model.save_pretrained(self.folder / "multitask")

    def _save_cpt(self, base: Any) -> None:
        token_ids = self._tokenizer(CPT_TEXT).input_ids
        config = CPTConfig(
            task_type="CAUSAL_LM",
            cpt_token_ids=token_ids,
            cpt_mask=[1] * len(token_ids),
            cpt_tokens_type_mask=[1 + index % 4 for index in range(len(token_ids))],
            opt_projection_epsilon=20.0,
            opt_projection_format_epsilon=10.0,
        )
        model = get_peft_model(base, config)
        # Longer than what the projection leaves.
        torch.nn.init.normal_(model.prompt_encoder["default"].delta_embedding.weight)
        model.save_pretrained(self.folder / "cpt")

    def _generate(
        self, prompt: str, name: str, task: int | None, max_new_tokens: int = 16
    ) -> list[int]:
        """The new token ids of greedy decoding, by PEFT's own `generate`."""
        token_ids = self._tokenizer(prompt, return_tensors="pt").input_ids
        options = {} if task is None else {"task_ids": torch.tensor([task])}
        with torch.inference_mode():
            output = self._models[name].generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                **options,
            )
        new_token_ids: list[int] = output[0, token_ids.shape[1] :].tolist()
        return new_token_ids


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("soft-prompt-kinds"))


@pytest.fixture(scope="module")
def versions(server: Any, reference: Reference) -> Iterator[dict[str, str]]:
    """Every soft prompt of the reference, live; their versions by name."""
    names = ("multitask", "cpt", "plain")
    with server.client() as client:
        yield {name: add_adapter(client, name, reference.folder / name) for name in names}
        for name in names:
            assert client.delete(f"/adapters/{name}").status_code == 204


def body_of(choice: Chosen | None, prompt: str | list[str], max_new_tokens: int = 16) -> Any:
    body = {"prompt": prompt, "max_new_tokens": max_new_tokens, "return_token_ids": True}
    return body if choice is None else body | {"soft_prompt": named(*choice)}


def named(name: str, task: int | None) -> str:
    return name if task is None else f"{name}#{task}"


def token_ids_of(answer: dict[str, Any]) -> list[list[int]]:
    return [completion["token_ids"] for completion in answer["completions"]]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: named(*choice))
def test_greedy_equals_peft_token_for_token(
    client: httpx.Client, versions: dict[str, str], reference: Reference, choice: Chosen
) -> None:
    name, task = choice

    answer = generate(client, **body_of(choice, PROMPTS))

    assert token_ids_of(answer) == [reference.generate(p, name, task) for p in PROMPTS]
    used = {"name": name, "version": versions[name]}
    assert answer["soft_prompt"] == used | ({} if task is None else {"task": task})


def test_each_changes_the_text(client: httpx.Client, versions: dict[str, str]) -> None:
    """Otherwise the tests here would show nothing."""
    answers = [generate(client, **body_of(choice, PROMPTS)) for choice in [None, *CHOICES]]

    assert len({str(token_ids_of(answer)) for answer in answers}) == len(answers)


async def test_all_tasks_and_others_in_one_batch(
    client: httpx.Client,
    async_client: httpx.AsyncClient,
    versions: dict[str, str],
    reference: Reference,
    tmp_path: Path,
) -> None:
    """Each task, CPT, a plain soft prompt, the base model, and a LoRA alone and with a task."""
    add_adapter(client, "beside", write_lora(tmp_path, SMOLLM2_MODULES, 8, scale=0.1))
    bodies = [body_of(choice, prompt) for prompt in PROMPTS[:2] for choice in [None, *CHOICES]]
    bodies += [
        body_of(choice, PROMPTS[0]) | {"adapter": "beside"} for choice in (None, TASKS[0], TASKS[1])
    ]
    alone = [token_ids_of(generate(client, **body)) for body in bodies]

    async def ask(body: dict[str, Any]) -> list[list[int]]:
        return token_ids_of((await async_client.post("/generate", json=body)).json())

    # The second time around, all of them find their prompts in the prefix cache.
    for _ in range(2):
        assert await asyncio.gather(*map(ask, bodies)) == alone
    by_peft = [reference.generate(p, *choice) for p in PROMPTS[:2] for choice in CHOICES]
    assert [ids for (ids,), body in zip(alone, bodies, strict=True) if asks_peft(body)] == by_peft
    assert len({str(ids) for ids in alone[-3:]}) == 3
    assert (await async_client.delete("/adapters/beside")).status_code == 204


def asks_peft(body: dict[str, Any]) -> bool:
    return "soft_prompt" in body and "adapter" not in body


def test_a_task_never_gets_what_the_cache_has_of_another(
    client: httpx.Client, versions: dict[str, str], reference: Reference
) -> None:
    prompt = "One, two, three, four, five. " * 60
    expected = {task: reference.generate(prompt, "multitask", task, 12) for task in range(2)}
    assert expected[0] != expected[1]

    for cached in (False, True):
        for task in range(2):
            answer = generate(client, **body_of(("multitask", task), prompt, 12))

            assert token_ids_of(answer) == [expected[task]]
            assert (answer["usage"]["cached_tokens"] > 0) == cached


def test_a_task_of_an_older_version(
    client: httpx.Client, versions: dict[str, str], reference: Reference, tmp_path: Path
) -> None:
    newer = write_multitask(tmp_path, NUM_VIRTUAL_TOKENS, HIDDEN_SIZE, NUM_TASKS, seed=9)
    try:
        live = add_adapter(client, "multitask", newer)
        for task in range(NUM_TASKS):
            expected = reference.generate(PROMPTS[0], "multitask", task)
            older = f"multitask@{versions['multitask'][:8]}"
            answer = generate(client, **body_of((older, task), PROMPTS[0]))
            assert token_ids_of(answer) == [expected]
            assert answer["soft_prompt"]["version"] == versions["multitask"]
            answer = generate(client, **body_of(("multitask", task), PROMPTS[0]))
            assert token_ids_of(answer) != [expected]
            assert answer["soft_prompt"]["version"] == live
    finally:
        client.post("/adapters/multitask/rollback")


def test_a_task_that_is_named_at_upload(
    client: httpx.Client, versions: dict[str, str], reference: Reference
) -> None:
    """It is the same task under another name and in a version of its own, named without #."""
    prompt = "One, two, three, four, five. " * 30
    live = set()
    for task in (1, 2):
        response = put_adapter(client, "of-one", reference.folder / "multitask", task=str(task))
        live.add(response.json()["live"])

        answer = generate(client, **body_of(("of-one", None), prompt))

        assert token_ids_of(answer) == [reference.generate(prompt, "multitask", task)]
        assert answer["usage"]["cached_tokens"] == 0
    assert len(live | {versions["multitask"]}) == 3
    assert client.delete("/adapters/of-one").status_code == 204


@pytest.mark.parametrize(
    ("soft_prompt", "sentence"),
    [
        ("multitask", "multitask has the tasks 0 to 2: name one of them, as multitask#0"),
        ("multitask#3", "multitask has no task '3': it has the tasks 0 to 2"),
        ("plain#0", "plain has no tasks: name it without #0"),
        ("cpt#0", "cpt has no tasks: name it without #0"),
    ],
)
def test_a_task_that_is_not_there_is_refused(
    client: httpx.Client, versions: dict[str, str], soft_prompt: str, sentence: str
) -> None:
    body = {"prompt": PROMPTS[0], "soft_prompt": soft_prompt}

    error = client.post("/generate", json=body).json()["error"]

    assert (error["message"], error["param"]) == (sentence, "soft_prompt")
