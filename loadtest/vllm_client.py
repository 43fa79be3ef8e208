"""vLLM's own benchmark client (`vllm bench serve`) on either server, and what it measures.

It sends the requests, takes the times and computes the percentiles, on `/v1/completions` of both.
"""

import asyncio
import contextlib
import io
import sys
import time
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.serve import TaskType, benchmark
from vllm.utils.gc_utils import freeze_gc_heap

from loadtest.comparison import Run, RunFailed
from loadtest.servers import HOST, Server
from loadtest.workload import Load

ARRIVAL_SEED = 0
NUM_ERROR_CHARACTERS = 2000


def measure(server: Server, load: Load, model: str, tokenizer: PreTrainedTokenizerBase) -> Run:
    """Send a load, wait for all of its answers, and say what they and the server's CPU tell.

    Raises:
        RunFailed: an answer is an error, or has not the number of tokens that was asked for.
    """
    # What is here already is no garbage: walking it meanwhile would count as the server's latency.
    freeze_gc_heap()
    # The times of arrival are drawn from it: the same for every server.
    np.random.seed(ARRIVAL_SEED)
    cpu_before, client_cpu_before = server.cpu_seconds(), time.process_time()
    # It prints a report of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        result = asyncio.run(_benchmark(server, load, model, tokenizer))
    client_cpu = time.process_time() - client_cpu_before
    cpu = server.cpu_seconds() - cpu_before
    _check(server.kind.name, load, result)
    ms_per_token = 1000 / result["total_output_tokens"]
    return Run(
        server=server.kind.name,
        clients=load.num_clients,
        requests=len(load.requests),
        arrivals_per_second=load.requests_per_second,
        seconds=result["duration"],
        prompt_tokens=result["total_input_tokens"],
        completion_tokens=result["total_output_tokens"],
        inter_token_gaps=sum(map(len, result["itls"])),
        peak_tokens_per_second=result["max_output_tokens_per_s"],
        tokens_per_second=result["output_throughput"],
        ttft_p50_ms=result["p50_ttft_ms"],
        ttft_p99_ms=result["p99_ttft_ms"],
        itl_p50_ms=result["p50_itl_ms"],
        itl_p99_ms=result["p99_itl_ms"],
        tpot_p50_ms=result["p50_tpot_ms"],
        http_cpu_ms_per_token=cpu.serving * ms_per_token,
        engine_cpu_ms_per_token=cpu.engine * ms_per_token,
        client_cpu_ms_per_token=client_cpu * ms_per_token,
    )


async def _benchmark(
    server: Server, load: Load, model: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    base_url = f"http://{HOST}:{server.port}"
    result: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="vllm",
        api_url=f"{base_url}/v1/completions",
        base_url=base_url,
        model_id=model,
        model_name=model,
        tokenizer=tokenizer,
        input_requests=[
            SampleRequest(each.prompt, each.num_prompt_tokens, each.num_new_tokens)
            for each in load.requests
        ],
        logprobs=None,
        request_rate=load.requests_per_second,
        burstiness=1.0,
        disable_tqdm=not sys.stderr.isatty(),
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=["ttft", "itl", "tpot"],
        selected_percentiles=[50, 99],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=load.num_clients,
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0},
        ready_check_timeout_sec=0,
    )
    return result


def _check(server: str, load: Load, result: dict[str, Any]) -> None:
    if failed := result["failed"]:
        reason = next(filter(None, result["errors"]), "no reason given")
        raise RunFailed(
            f"{failed:,} of {len(load.requests):,} requests to {server} failed; the first with: "
            + reason[-NUM_ERROR_CHARACTERS:]
        )
    counts = zip(result["input_lens"], result["output_lens"], strict=True)
    for asked, counted in zip(load.requests, counts, strict=True):
        if (asked.num_prompt_tokens, asked.num_new_tokens) != counted:
            raise RunFailed(
                f"{asked.num_prompt_tokens} tokens in and {asked.num_new_tokens} out were asked "
                f"for, {server} counts {counted[0]} in and {counted[1]} out"
            )
