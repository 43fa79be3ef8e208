"""`softserve top`: what it makes of two readings of GET /metrics, and how it looks and ends."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console
from typer.testing import CliRunner, Result

from app.cli.main import cli
from app.cli.readings import Interval, Reading
from app.cli.top_view import MAX_ROWS, View, frame
from softserve.schema.server import Limits, ModelInfo, WeightsOut
from tests.threaded import in_thread
from tests.unit.cli.terminal import TIMEOUT_SECONDS, Terminal

URL = "http://127.0.0.1:8000"

BEFORE = """\
# TYPE softserve_state gauge
softserve_state{state="open"} 1.0
softserve_state{state="draining"} 0.0
# TYPE softserve_requests_total counter
softserve_requests_total{endpoint="generate",outcome="success"} 10.0
softserve_completion_tokens_total 100.0
softserve_prompt_tokens_total 1000.0
softserve_cached_tokens_total 500.0
softserve_sequences_running 3.0
softserve_sequences_waiting 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
# TYPE softserve_time_to_first_token_seconds histogram
softserve_time_to_first_token_seconds_bucket{le="0.1"} 4.0
softserve_time_to_first_token_seconds_bucket{le="0.5"} 8.0
softserve_time_to_first_token_seconds_bucket{le="+Inf"} 8.0
softserve_named_completion_tokens_total{kind="adapter",name="task",version="4d967a30111b"} 60.0
softserve_named_completion_tokens_total{kind="adapter",name="idle",version="aaaaaaaaaaaa"} 5.0
softserve_named_completion_tokens_total{kind="key",name="team",version=""} 100.0
softserve_named_requests_in_flight{kind="key",name="team",state="waiting",version=""} 1.0
softserve_named_requests_in_flight{kind="key",name="team",state="running",version=""} 2.0
python_info{version="3.11"} 1.0
"""
AFTER = (
    BEFORE.replace("completion_tokens_total 100.0", "completion_tokens_total 2400.0")
    .replace("prompt_tokens_total 1000.0", "prompt_tokens_total 2000.0")
    .replace("cached_tokens_total 500.0", "cached_tokens_total 1100.0")
    .replace('outcome="success"} 10.0', 'outcome="success"} 18.0')
    .replace('le="0.1"} 4.0', 'le="0.1"} 8.0')
    .replace('le="0.5"} 8.0', 'le="0.5"} 16.0')
    .replace('le="+Inf"} 8.0', 'le="+Inf"} 16.0')
    .replace('version="4d967a30111b"} 60.0', 'version="4d967a30111b"} 85.0')
    .replace('name="team",version=""} 100.0', 'name="team",version=""} 140.0')
    + 'softserve_requests_total{endpoint="generate",outcome="refused"} 2.0\n'
)


def between(before: str, after: str, seconds: float = 2.0) -> Interval:
    return Interval(Reading.of(before, 10.0), Reading.of(after, 10.0 + seconds))


def shown(view: View, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(frame(view, width))
    return captured.get()


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_rates() -> None:
    interval = between(BEFORE, AFTER)
    assert interval.rate("softserve_completion_tokens_total") == 1150.0
    assert interval.rate("softserve_requests_total") == 5.0
    assert interval.rate("softserve_requests_total", outcome="success") == 4.0
    assert interval.rates("softserve_requests_total", ("outcome",)) == {
        ("success",): 4.0,
        ("refused",): 1.0,
    }
    assert interval.rate("softserve_no_such_metric") == 0


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    assert between(AFTER, BEFORE).rate("softserve_completion_tokens_total") == 50.0


@pytest.mark.parametrize(("part", "seconds"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.3), (1.0, 0.5)])
def test_quantiles_are_those_of_the_interval(part: float, seconds: float) -> None:
    quantile = between(BEFORE, AFTER).quantile(part, "softserve_time_to_first_token_seconds")
    assert quantile == pytest.approx(seconds)


def test_nothing_observed_has_no_quantile() -> None:
    assert between(BEFORE, BEFORE).quantile(0.5, "softserve_time_to_first_token_seconds") is None


def test_beyond_the_last_bound_the_quantile_is_that_bound() -> None:
    beyond = BEFORE.replace('le="+Inf"} 8.0', 'le="+Inf"} 20.0')
    assert between(BEFORE, beyond).quantile(0.5, "softserve_time_to_first_token_seconds") == 0.5


def test_a_frame() -> None:
    lines = words(shown(View(URL, "SmolLM2", between(BEFORE, AFTER), [0.0, 50.0, 1150.0])))
    assert lines[0] == f"softserve SmolLM2 {URL} ● ready"
    assert lines[2] == "tokens/s out 1,150 ▁▁█ first token 100 ms p95 460 ms"
    assert lines[3] == "tokens/s in 500 60% cached inter-token – p95 –"
    assert lines[4] == "requests/s 5 1 refused completions 3 2 waiting"
    assert lines[5].startswith("KV cache 25%")
    assert "task@4d967a30111b 12.5 0 0 –" in lines
    assert "team 20 0 3 –" in lines
    assert not any("idle" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 109, 110, 120, 200])
def test_a_frame_fits(width: int) -> None:
    text = shown(View(URL, "SmolLM2", between(BEFORE, AFTER), [1.0] * 12), width)
    assert max(map(len, text.splitlines())) <= width


def test_where_there_is_room_adapters_and_keys_are_side_by_side() -> None:
    view = View(URL, "SmolLM2", between(BEFORE, AFTER), [])
    assert any("adapter" in line and "key" in line for line in shown(view, 110).splitlines())
    assert not any("adapter" in line and "key" in line for line in shown(view, 109).splitlines())


def test_many_adapters_are_the_busiest_ones() -> None:
    metric = "softserve_named_completion_tokens_total"
    many = "".join(
        f'{metric}{{kind="adapter",name="a{i:02}",version="b"}} {i}\n'
        for i in range(1, MAX_ROWS + 4)
    )
    text = shown(View(URL, "SmolLM2", between("", many), []))
    assert "a11@b" in text
    assert "a03@b" not in text
    assert "and 3 more" in text


def test_the_state_is_shown() -> None:
    draining = AFTER.replace('"open"} 1.0', '"open"} 0.0').replace('"draining"} 0', '"draining"} 1')
    text = shown(View(URL, "SmolLM2", between(AFTER, draining), []))
    assert "● draining" in text
    assert "ready" not in text


def examples(kind: type[BaseModel]) -> dict[str, Any]:
    return {name: each.examples[0] for name, each in kind.model_fields.items() if each.examples}


INFO = ModelInfo(**examples(ModelInfo), weights=WeightsOut(**examples(WeightsOut)), limits=Limits())


class Handler(BaseHTTPRequestHandler):
    """A server whose metrics are `BEFORE` once, and then `AFTER`."""

    num_scrapes = 0
    keys: list[str | None]

    def do_GET(self) -> None:
        if self.path == "/metrics":
            body = BEFORE if self.num_scrapes == 0 else AFTER
            type(self).num_scrapes += 1
            self.keys.append(self.headers["authorization"])
        else:
            body = INFO.model_dump_json()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def answering(port: int = 0) -> Iterator[Any]:
    class Here(Handler):
        keys: list[str | None] = []  # noqa: RUF012 (one server a class)

    with in_thread(ThreadingHTTPServer(("127.0.0.1", port), Here)) as server:
        yield server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["top", *arguments], env={"TERM": "dumb"})


def test_once() -> None:
    with answering() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        result = run("--url", url, "--once", "--interval", "0.1", "--admin-key", "secret")
        assert server.RequestHandlerClass.keys == ["Bearer secret"] * 2
    assert result.exit_code == 0
    assert "SmolLM2-135M-Instruct" in result.output
    assert "● ready" in result.output
    assert "task@4d967a30111b" in result.output


def test_in_a_pipe_it_is_once() -> None:
    with answering() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        assert run("--url", url, "--interval", "0.1").output.count("softserve") == 1


def test_as_json() -> None:
    with answering() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        result = run("--url", url, "--json", "--interval", "0.1")
    figures = json.loads(result.output)
    assert (figures["url"], figures["model"]) == (url, "SmolLM2-135M-Instruct")
    assert figures["state"] == "open"
    assert figures["running"] == 3
    assert figures["ttft"] == {"p50": pytest.approx(0.1), "p95": pytest.approx(0.46)}
    assert figures["itl"] == {"p50": None, "p95": None}
    assert [row["name"] for row in figures["adapter"]] == ["task@4d967a30111b"]
    assert figures["completion_tokens"] > 0


def test_once_without_a_server() -> None:
    result = run("--url", "http://127.0.0.1:9", "--once")
    assert result.exit_code == 1
    assert re.fullmatch(r"softserve: no answer from http://127.0.0.1:9 .*\n", result.output)


def test_a_server_that_goes_and_comes_back(terminal: Callable[..., Terminal]) -> None:
    with answering() as server:
        port = server.server_port
        top = terminal("top", "--url", f"http://127.0.0.1:{port}", "--interval", "0.1")
        top.read_until("ready")
    top.read_until("trying again")
    with answering(port):
        top.read_until("ready")
        top.process.send_signal(signal.SIGINT)
        assert top.process.wait(TIMEOUT_SECONDS) == 0


def test_a_server_that_is_not_there_yet(terminal: Callable[..., Terminal]) -> None:
    with answering() as server:
        port = server.server_port
    top = terminal("top", "--url", f"http://127.0.0.1:{port}", "--interval", "0.1")
    top.read_until("no answer")
    top.process.send_signal(signal.SIGINT)
    assert top.process.wait(TIMEOUT_SECONDS) == 0
