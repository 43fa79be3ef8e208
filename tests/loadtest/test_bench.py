"""`make bench` on small servers that stream a word a token: what it sends, counts, compares."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from loadtest.comparison import Run
from loadtest.workload import MIN_WARM_UP_REQUESTS

COMMAND = (sys.executable, "-m", "tests.loadtest.bench_on_streaming_servers")
OURS, THEIRS = "softserve", "vllm serve"


@dataclass(frozen=True)
class Bench:
    """One bench: the table that it printed, the JSON that it wrote, and what the servers got.

    A request is [the server's process, prompt, tokens asked for].
    """

    table: str
    report: dict[str, Any]
    requests: list[list[Any]]

    @property
    def runs(self) -> list[tuple[Run, list[list[Any]]]]:
        """Each with the requests that came after its warm-up."""
        requests = iter(self.requests)
        runs = []
        for figures in self.report["runs"]:
            assert len(list(islice(requests, MIN_WARM_UP_REQUESTS))) == MIN_WARM_UP_REQUESTS
            runs.append((Run(**figures), list(islice(requests, figures["requests"]))))
        assert list(requests) == []
        return runs


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    done = subprocess.run([*COMMAND, folder], capture_output=True, text=True, check=True)
    lines = (folder / "requests.jsonl").read_text().splitlines()
    report = json.loads((folder / "bench.json").read_text())
    return Bench(done.stdout, report, [json.loads(line) for line in lines])


def test_the_servers_take_turns(bench: Bench) -> None:
    turns = [(run.server, run.clients) for run, _ in bench.runs]
    once = {server: [(server, 1), (server, 4)] for server in (OURS, THEIRS)}
    assert turns == once[OURS] + once[THEIRS] + once[THEIRS] + once[OURS]


def test_what_was_asked_for_is_what_is_counted(bench: Bench) -> None:
    for run, requests in bench.runs:
        assert run.prompt_tokens == sum(len(prompt.split()) for _, prompt, _ in requests)
        assert run.completion_tokens == sum(num_tokens for _, _, num_tokens in requests)
        assert run.inter_token_gaps == run.completion_tokens - run.requests


def test_every_run_of_a_load_sends_the_same_requests(bench: Bench) -> None:
    for clients in (1, 4):
        sent = [
            sorted(request[1:] for request in requests)
            for run, requests in bench.runs
            if run.clients == clients
        ]
        assert sent == [sent[0]] * 4


def test_no_server_gets_a_prompt_twice_in_one_turn(bench: Bench) -> None:
    sent = Counter((process, prompt) for process, prompt, _ in bench.requests)
    assert len({process for process, _ in sent}) == 4
    assert set(sent.values()) == {1}


def test_lengths_vary(bench: Bench) -> None:
    assert {len(prompt.split()) for _, prompt, _ in bench.requests} == {3, 4, 5, 6, 7, 8, 9}
    assert {num_tokens for _, _, num_tokens in bench.requests} == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("field", ["tokens_per_second", "ttft_p99_ms", "client_cpu_ms_per_token"])
def test_ratios_are_of_the_runs_of_a_round(bench: Bench, field: str) -> None:
    ours, theirs = (
        [getattr(run, field) for run, _ in bench.runs if (run.server, run.clients) == (server, 4)]
        for server in (OURS, THEIRS)
    )

    compared = bench.report["compared"]["4"][field]

    assert compared["ours"] == {"median": median(ours), "lowest": min(ours), "highest": max(ours)}
    assert compared["theirs"]["median"] == median(theirs)
    assert compared["ratios"] == [ours[0] / theirs[0], ours[1] / theirs[1]]
    assert compared["mean_ratio"] == fmean(compared["ratios"])


def test_the_table_has_the_figures(bench: Bench) -> None:
    speed = bench.report["compared"]["4"]["tokens_per_second"]
    rows = bench.table.partition("clients: 4")[2].splitlines()
    (row,) = [row for row in rows if row.startswith(" tokens/s")]
    assert f" {speed['ours']['median']:,.1f} " in row
    assert f" {speed['theirs']['median']:,.1f} " in row
    assert f" {speed['mean_ratio']:.3f} " in row


def test_a_server_that_generates_fewer_tokens_ends_the_bench(tmp_path: Path) -> None:
    command = (*COMMAND, str(tmp_path), "--short-by", "1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode
    (asked, counted) = re.findall(r"(\d+)(?: tokens)? in and (\d+) out", done.stderr)
    assert "RunFailed" in done.stderr
    assert (int(counted[0]), int(counted[1])) == (int(asked[0]), int(asked[1]) - 1)


def test_an_interrupted_bench_leaves_no_server(tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, tmp_path], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("ready after" in line for line in process.stderr)
        assert processes_of(tmp_path) != []
        process.send_signal(signal.SIGINT)

    assert process.returncode
    assert processes_of(tmp_path) == []


def processes_of(folder: Path) -> list[str]:
    """The command lines of the servers that record what they get in `folder`."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        # Any process may end meanwhile.
        with suppress(OSError):
            lines.append(file.read_text())
    return [line for line in lines if f"{folder}/requests.jsonl" in line]
