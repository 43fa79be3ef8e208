"""The load test itself, on a server whose times are known: what it reports is what was sent.

Locust runs in a process of its own, because it replaces the sockets of the one that imports it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

import httpx
import pytest

from loadtest.servers import free_port
from tests.loadtest.known_server import RETRY_AFTER_SECONDS, KnownServer, known_server
from tests.loadtest.support import ENVIRONMENT, ROOT

NUM_TOKENS = 5
TIMEOUT_SECONDS = 120.0
T = TypeVar("T")


@pytest.fixture
def server() -> Iterator[KnownServer]:
    with known_server() as known:
        yield known


def run(server: KnownServer, folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The report of a load test against the server; locust's exit code is 1 where some failed."""
    command = [
        *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"),
        *("--host", server.url, "--only-summary", "--stop-timeout", "60"),
        *("--new-tokens", str(NUM_TOKENS), "--report", str(folder / "report"), *arguments),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def within_5_percent(seconds: float) -> Any:
    return pytest.approx(seconds * 1000, rel=0.05)


def test_times_are_those_of_the_server(tmp_path: Path) -> None:
    """Slow, so that what the machine adds beside other work stays far below 5 %."""
    with known_server(ttft_seconds=1.0, itl_seconds=0.25) as server:
        report = run(server, tmp_path, "-u", "2", "-t", "8s", "BaseUser")

    sent = server.requests
    ttft = [each.texts_at[0] - each.came_at for each in sent]
    itl = [later - earlier for each in sent for earlier, later in pairwise(each.texts_at)]
    e2e = [each.texts_at[-1] - each.came_at for each in sent]
    total = report["total"]
    assert len(sent) >= 4
    assert total["completed"] == len(sent)
    assert total["completion_tokens"] == NUM_TOKENS * len(sent)
    assert total["ttft"]["p50"] == within_5_percent(median(ttft))
    assert total["ttft"]["mean"] == within_5_percent(fmean(ttft))
    assert total["itl"]["p50"] == within_5_percent(median(itl))
    assert total["itl"]["mean"] == within_5_percent(fmean(itl))
    assert total["tpot"]["p50"] == within_5_percent(median(itl))
    assert total["e2e"]["p50"] == within_5_percent(median(e2e))
    seconds = max(each.texts_at[-1] for each in sent) - min(each.came_at for each in sent)
    throughput = NUM_TOKENS * len(sent) / seconds
    assert total["tokens_per_second"] == pytest.approx(throughput, rel=0.05)


def test_goodput_counts_answers_that_keep_every_limit(server: KnownServer, tmp_path: Path) -> None:
    """No answer has its first token in 100 ms, and each has it in an hour."""
    limits = "ttft=100ms,itl=3600s"
    report = run(server, tmp_path, "-u", "1", "-t", "2s", "--slo", limits, "BaseUser")
    assert (report["total"]["goodput"], report["total"]["good_share"]) == (0.0, 0.0)

    report = run(server, tmp_path, "-u", "1", "-t", "2s", "--slo", "ttft=3600s", "BaseUser")
    assert report["total"]["goodput"] == report["total"]["requests_per_second"] > 0
    assert report["total"]["good_share"] == 1.0


def test_workers_add_up(server: KnownServer, tmp_path: Path) -> None:
    port = str(free_port())
    workers = ("--processes", "2", "--master-port", port, "--master-bind-port", port)
    report = run(server, tmp_path, *workers, "-u", "4", "-r", "4", "-t", "4s", "BaseUser")

    assert report["total"]["completed"] == len(server.requests)
    assert report["total"]["completion_tokens"] == NUM_TOKENS * len(server.requests)
    # Nothing came before the server sent it.
    assert report["total"]["ttft"]["p50"] > server.ttft_seconds * 1000 * 0.99


def test_refusals_are_no_failures_and_retry_after_is_obeyed(
    server: KnownServer, tmp_path: Path
) -> None:
    report = run(server, tmp_path, "-u", "1", "-t", "6s", "--adapters", "busy", "OneAdapterUser")

    refused = [each for each in server.requests if each.is_refused]
    total = report["by_adapter"]["busy"]
    assert total["failed"] == 0
    assert total["refused_429"] >= 1
    assert total["refused_503"] >= 1
    assert total["refused_429"] + total["refused_503"] == len(refused)
    assert total["completed"] == len(server.requests) - len(refused)
    assert total["retry_after"]["p50"] == within_5_percent(RETRY_AFTER_SECONDS)
    for earlier, later in pairwise(server.requests):
        if earlier.is_refused:
            assert later.came_at - earlier.came_at >= RETRY_AFTER_SECONDS


def test_a_wrong_answer_is_a_failure(server: KnownServer, tmp_path: Path) -> None:
    """Another version, another text than alone, a stream that breaks off; by adapter."""
    names = "broken,cut,drifting,right,swapped"
    arguments = (
        "--mix",
        "round-robin",
        "--adapters",
        names,
        "--check-texts",
        "1",
        "AdapterMixUser",
    )
    report = run(server, tmp_path, "-u", "4", "-r", "4", "-t", "12s", *arguments, code=1)

    by_adapter = report["by_adapter"]
    assert by_adapter["right"]["failed"] == 0
    assert by_adapter["right"]["compared_texts"] > 0
    for name in ("broken", "cut", "swapped"):
        assert by_adapter[name]["completed"] == 0
        assert by_adapter[name]["failed"] > 0
    assert by_adapter["drifting"]["failed"] > 0
    errors = "\n".join(each["error"] for each in report["failures"])
    assert "the stream broke off" in errors
    assert "adapter swapped means aaaaaaaaaaaa, and bbbbbbbbbbbb answered" in errors
    assert "drifting says something else than alone" in errors


def test_who_leaves_has_not_failed(server: KnownServer, tmp_path: Path) -> None:
    report = run(server, tmp_path, "-u", "2", "-t", "3s", "--new-tokens", "20", "LeavingUser")

    assert report["total"]["failed"] == 0
    assert report["total"]["left"] == len(server.requests) > 0
    assert all(len(each.texts_at) < 20 for each in server.requests)


def test_arrivals_do_not_wait_for_answers(server: KnownServer, tmp_path: Path) -> None:
    report = run(server, tmp_path, "-u", "1", "-t", "3s", "--rate", "20", "BaseUser")

    waited = [later.came_at > earlier.texts_at[-1] for earlier, later in pairwise(server.requests)]
    assert report["total"]["completed"] == len(server.requests)
    assert waited.count(False) > waited.count(True)


def test_a_version_can_be_pinned_and_a_key_goes_with_it(
    server: KnownServer, tmp_path: Path
) -> None:
    asked = ("--adapters", "right@aaaaaa", "--key", "secret")
    report = run(server, tmp_path, "-u", "1", "-t", "2s", *asked, "OneAdapterUser")

    assert report["by_adapter"]["right@aaaaaa"]["completed"] > 0
    assert server.authorizations == {"Bearer secret"}
    assert "secret" not in (tmp_path / "report.json").read_text()


def test_the_web_interface_has_tabs_and_the_report(server: KnownServer) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", server.url),
        *("--web-host", "127.0.0.1", "--web-port", url.rpartition(":")[2], "BaseUser"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=url, trust_env=False, timeout=TIMEOUT_SECONDS) as client:
        try:
            page = when(lambda: get(client, "/"))
            assert "Generation by adapter" in page
            form = {"user_count": 1, "spawn_rate": 1, "host": server.url, "new_tokens": "2"}
            assert client.post("/swarm", data=form).json()["success"]
            rows = when(lambda: completed_rows(client))
            assert [row["name"] for row in rows] == ["BaseUser", "all"]
            assert all(row["ttft_p50"] > 0 for row in rows)
            assert get(client, "/generation/report").startswith("<!doctype html>")
        finally:
            process.terminate()
            process.wait()
    # What the form said reached the users.
    assert {len(each.texts_at) for each in server.requests[:-1]} == {2}


def get(client: httpx.Client, path: str) -> str:
    """What is there; nothing, where nobody listens yet."""
    with suppress(httpx.ConnectError):
        return client.get(path).raise_for_status().text
    return ""


def completed_rows(client: httpx.Client) -> list[dict[str, Any]]:
    stats = client.get("/stats/requests").json()
    rows: list[dict[str, Any]] = stats["extended_stats"][0]["data"]
    return rows if rows[0]["completed"] > 1 else []


def when(wanted: Callable[[], T]) -> T:
    """It, as soon as there is something."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := wanted()):
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.1)
    return found


def test_a_server_that_is_not_there_ends_it_with_a_sentence(tmp_path: Path) -> None:
    nobody = KnownServer(ttft_seconds=0.0, itl_seconds=0.0)
    nobody.url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(AssertionError, match="loadtest: no answer from"):
        run(nobody, tmp_path, "-t", "1s")
