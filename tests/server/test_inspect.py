"""POST /inspect: the distribution that /generate samples from, exactly."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from rich.progress import Progress
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.engine.model.default import default_model
from app.settings import Settings
from tests.server.process import ServerProcess
from tests.server.requests import generate

PROMPT = "My favourite animal is the"
NUM_SAMPLES = 2000
SAMPLES_A_REQUEST = 16
REQUESTS_AT_ONCE = 4
MIN_EXPECTED = 5.0


def inspect(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/inspect", json={"prompt": PROMPT} | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_probabilities_equal_a_softmax_of_the_models_logits(client: httpx.Client) -> None:
    folder = default_model(Settings().cache_dir, Progress(disable=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        inputs = tokenizer(PROMPT, return_tensors="pt")
        logits = model(**inputs).logits[0, -1].double().numpy()

    answer = inspect(client, temperature=0.6, num_tokens=1000)

    for temperature, field in [(1.0, "probability"), (0.6, "after_temperature")]:
        exponentials = np.exp((logits - logits.max()) / temperature)
        expected = exponentials / exponentials.sum()
        got = {token["token_id"]: token[field] for token in answer["tokens"]}
        assert set(got) == set(np.argsort(-logits)[:1000].tolist())
        for token_id, probability in got.items():
            assert probability == pytest.approx(expected[token_id], abs=1e-4)
    assert answer["prompt_tokens"] == inputs.input_ids.shape[1]
    assert answer["vocabulary_size"] == len(logits) == answer["num_surviving"]
    assert answer["surviving_mass"] == pytest.approx(1.0)


def test_greedy_puts_everything_on_the_token_that_generate_takes(client: httpx.Client) -> None:
    answer = inspect(client)
    taken = generate(client, prompt=PROMPT, max_new_tokens=1, return_token_ids=True)

    best = answer["tokens"][0]
    assert [best["token_id"]] == taken["completions"][0]["token_ids"]
    assert (best["final"], answer["num_surviving"]) == (1.0, 1)


CONTROLS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 8},
    {"temperature": 1.3, "top_p": 0.6},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_sampling_agrees_with_the_distribution(
    client: httpx.Client, controls: dict[str, Any]
) -> None:
    answer = inspect(client, **controls, num_tokens=1000)
    samples = Counter(sample_first_tokens(client, controls))
    final = {token["token_id"]: token["final"] for token in answer["tokens"]}

    never = [token_id for token_id, probability in final.items() if probability == 0.0]
    assert not set(never) & set(samples), "a token was sampled that no filter keeps"
    if answer["num_surviving"] <= 1000:
        assert set(samples) <= {t for t, probability in final.items() if probability > 0}
    common = [t for t, probability in final.items() if probability * NUM_SAMPLES >= MIN_EXPECTED]
    observed = [samples[token_id] for token_id in common]
    expected = [final[token_id] * NUM_SAMPLES for token_id in common]
    rest = NUM_SAMPLES - sum(expected)
    if rest >= MIN_EXPECTED:
        observed.append(NUM_SAMPLES - sum(observed))
        expected.append(rest)
    else:
        # Chi-square needs equal sums; what is left is less than one cell.
        expected = [count * sum(observed) / sum(expected) for count in expected]
    assert len(expected) > 1
    assert chisquare(observed, expected).pvalue > 0.001


def sample_first_tokens(client: httpx.Client, controls: dict[str, Any]) -> list[int]:
    """The first tokens of completions with the seeds 0 to NUM_SAMPLES - 1: always the same ones."""

    def sample(seed: int) -> list[int]:
        answer = generate(
            client,
            prompt=PROMPT,
            max_new_tokens=1,
            n=SAMPLES_A_REQUEST,
            seed=seed,
            return_token_ids=True,
            **controls,
        )
        return [completion["token_ids"][0] for completion in answer["completions"]]

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        samples = threads.map(sample, range(0, NUM_SAMPLES, SAMPLES_A_REQUEST))
        return [token_id for token_ids in samples for token_id in token_ids]


def test_the_command_prints_a_table_with_bars(server: ServerProcess) -> None:
    softserve = Path(sys.executable).with_name("softserve")
    command = [str(softserve), "inspect", "The sky is", "--top-k", "2", "--url", server.url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "2 of 49,152 tokens can be sampled" in printed
    row = next(line for line in printed.splitlines() if "' a'" in line)
    assert row.split()[:2] == ["'", "a'"]
    assert "█" in row


def test_the_command_says_in_one_sentence_what_is_wrong(server: ServerProcess) -> None:
    softserve = Path(sys.executable).with_name("softserve")
    command = [str(softserve), "inspect", "Hi", "--top-k", "0", "--url", server.url]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert ended.stderr == "softserve: top_k must be greater than or equal to 1, not 0\n"
