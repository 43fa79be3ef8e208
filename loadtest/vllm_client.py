"""vLLM's own benchmark client (`vllm bench serve`) on either server, and what it measures.

It sends the requests, takes the times and computes the percentiles. It has a function for each kind
of endpoint and takes further ones, so that `POST /generate` has its own here, which does for an
event what vLLM's does for one of `/v1/completions`.
"""

import asyncio
import contextlib
import io
import json
import sys
import time
from typing import Any

import aiohttp
import numpy as np
from transformers import PreTrainedTokenizerBase
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    RequestFuncInput,
    RequestFuncOutput,
    StreamedResponseHandler,
)
from vllm.benchmarks.serve import TaskType, benchmark
from vllm.utils.gc_utils import freeze_gc_heap

from loadtest.comparison import Run, RunFailed
from loadtest.servers import HOST, SOFTSERVE, Server
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
        endpoint_type=server.kind.backend,
        api_url=base_url + server.kind.endpoint,
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


async def request_generate(
    request_func_input: RequestFuncInput,
    session: aiohttp.ClientSession,
    pbar: Any = None,
) -> RequestFuncOutput:
    """What `async_request_openai_completions` is to `/v1/completions`."""
    asked = request_func_input
    payload = {
        "prompt": asked.prompt,
        "max_new_tokens": asked.output_len,
        "ignore_eos": asked.ignore_eos,
        "stream": True,
        **asked.extra_body,
    }
    output = RequestFuncOutput(start_time=time.perf_counter())
    try:
        async with session.post(asked.api_url, json=payload) as response:
            if response.status == 200:
                await _read_events(response, output)
            else:
                output.error = f"status {response.status}: {await response.text()}"
    except aiohttp.ClientError as error:
        output.error = repr(error)
    if pbar:
        pbar.update(1)
    return output


async def _read_events(response: aiohttp.ClientResponse, output: RequestFuncOutput) -> None:
    """Note when each event with text came, and what the last one counts."""
    handler = StreamedResponseHandler()
    latest = output.start_time
    output.error = "the stream ended without [DONE]"
    # To its very end: a connection with something left to read is not used again.
    async for received in response.content.iter_any():
        for message in handler.add_chunk(received.strip()):
            data = message.removeprefix("data: ")
            if data == "[DONE]":
                output.success, output.error = True, ""
            elif data == message:
                # An error has a line with its name before its data.
                output.error = message
            elif text := (event := json.loads(data))["text"]:
                now = time.perf_counter()
                if output.ttft:
                    output.itl.append(now - latest)
                else:
                    output.ttft = now - output.start_time
                latest = now
                output.latency = now - output.start_time
                output.generated_text += text
            else:
                output.prompt_len = event["usage"]["prompt_tokens"]
                output.output_tokens = event["usage"]["completion_tokens"]


ASYNC_REQUEST_FUNCS[SOFTSERVE.backend] = request_generate
