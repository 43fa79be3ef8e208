"""top_k and top_p as vLLM's own sampler applies them, ties and order of the two included.

vLLM takes long to import and changes the process that imports it: it runs in one of its own. This
is the one slow test here.
"""

import json
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray

from app.engine.generation import resolve_sampling
from app.serving.inspection import inspect_distribution

VLLM = """
import json, sys, torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
cases = json.load(sys.stdin)
survivors = [
    apply_top_k_top_p_pytorch(
        torch.tensor([scores], dtype=torch.float64) / temperature,
        torch.tensor([top_k]),
        torch.tensor([top_p], dtype=torch.float64),
    )[0].isfinite().nonzero().flatten().tolist()
    for scores, temperature, top_k, top_p in cases
]
print(json.dumps(survivors))
"""

Case = tuple[list[float], float, int, float]


def _cases() -> list[Case]:
    random = np.random.default_rng(7)

    def case(scores: NDArray[np.float64], top_p: float) -> Case:
        temperature, top_k = float(random.uniform(0.3, 2.0)), int(random.integers(1, 51))
        return scores.astype(np.float32).tolist(), temperature, top_k, top_p

    distinct = [case(random.normal(0, 4, size=50), random.uniform(0.05, 0.99)) for _ in range(60)]
    # top_p is off here: among equals it keeps whichever the sort puts first.
    tied = [case(np.repeat(random.normal(size=25), 2), 1.0) for _ in range(20)]
    return distinct + tied


def _survivors(case: Case) -> list[int]:
    scores, temperature, top_k, top_p = case
    sampling = resolve_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    array = np.asarray(scores, dtype=np.float32)
    fates = inspect_distribution(array, sampling, len(scores)).tokens
    return sorted(fate.token_id for fate in fates if fate.final > 0)


def test_the_same_tokens_survive() -> None:
    cases = _cases()
    vllm = subprocess.run(
        [sys.executable, "-c", VLLM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(vllm.stdout.splitlines()[-1])
    assert [_survivors(case) for case in cases] == expected
    assert len({len(survivors) for survivors in expected}) > 5, "the cases differ"
