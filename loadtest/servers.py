"""Start a server on a free port of the loopback address, wait until it is ready, end it.

Both servers read the same `SOFTSERVE_*` environment variables, so that one description of the
engine serves two processes.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

HOST = "127.0.0.1"
READY_TIMEOUT_SECONDS = 600.0
READY_POLL_SECONDS = 0.5
STOP_TIMEOUT_SECONDS = 30.0
NUM_LOG_LINES_IN_ERROR = 20


class ServerFailed(Exception):
    """A server ended, or did not become ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class ServerKind:
    """How a server is started."""

    name: str
    module: str
    arguments: tuple[str, ...]
    ready_path: str

    def command(self, port: int) -> list[str]:
        address = ("--host", HOST, "--port", str(port))
        return [sys.executable, "-m", self.module, *self.arguments, *address]


SOFTSERVE = ServerKind(
    name="softserve",
    module="app.cli.main",
    arguments=("serve",),
    ready_path="/health/ready",
)
VLLM_SERVE = ServerKind(
    name="vllm serve",
    module="loadtest.vllm_serve",
    arguments=(),
    ready_path="/health",
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready. Its process leads a process group, in which its engine runs too."""

    kind: ServerKind
    port: int
    process_id: int
    start_seconds: float

    def resident_mib(self) -> dict[str, float]:
        """MiB in memory, shared pages included, of the process that answers HTTP and the engine."""
        mib = {
            stat.process_id: stat.resident_bytes / 2**20 for stat in _group_stats(self.process_id)
        }
        serving = mib.pop(self.process_id, 0.0)
        # The others are helpers of Python's multiprocessing.
        return {"serving": serving, "engine": max(mib.values(), default=0.0)}

    def resident_mib_by_process(self) -> dict[str, float]:
        """MiB in memory, shared pages included, of each process by its name and number."""
        return {
            f"{stat.name} {stat.process_id}": stat.resident_bytes / 2**20
            for stat in _group_stats(self.process_id)
        }

    def peak_resident_mib(self) -> float:
        """The most MiB that the engine's largest process ever had in memory."""
        peaks = []
        for stat in _group_stats(self.process_id):
            if stat.process_id != self.process_id:
                status = Path(f"/proc/{stat.process_id}/status").read_text()
                peaks += [int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+) kB", status)]
        return max(peaks)

    def cpu_seconds(self) -> "CPUSeconds":
        """What the group has used so far."""
        used = {stat.process_id: stat.cpu_seconds for stat in _group_stats(self.process_id)}
        serving = used.pop(self.process_id, 0.0)
        return CPUSeconds(serving, sum(used.values()))


@dataclass(frozen=True, slots=True)
class CPUSeconds:
    """CPU time of the process that answers HTTP, and of the engine's processes."""

    serving: float
    engine: float

    def __sub__(self, earlier: "CPUSeconds") -> "CPUSeconds":
        return CPUSeconds(self.serving - earlier.serving, self.engine - earlier.engine)


@contextmanager
def running(kind: ServerKind, environment: dict[str, str]) -> Iterator[Server]:
    """A ready server; nothing of it is left afterwards.

    `environment` is added to this process's own.

    Raises:
        ServerFailed: it ended early or took too long.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as own:
        # Adapters and templates of its own, so that nobody's are loaded or changed.
        places = {
            "SOFTSERVE_ADAPTER_STORE": f"{own}/store",
            "SOFTSERVE_ADAPTER_DIR": f"{own}/adapters",
            "SOFTSERVE_TEMPLATE_DIR": f"{own}/templates",
        }
        started = time.perf_counter()
        process = subprocess.Popen(
            kind.command(port),
            env=os.environ | places | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parent.parent,
            # A group of its own: Ctrl-C reaches only this process, which then ends the group.
            start_new_session=True,
        )
        try:
            _wait_until_ready(kind, port, process, log)
            yield Server(kind, port, process.pid, time.perf_counter() - started)
        finally:
            _stop(process)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(
    kind: ServerKind, port: int, process: subprocess.Popen[bytes], log: IO[bytes]
) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    url = f"http://{HOST}:{port}{kind.ready_path}"
    # The loopback address is never behind a proxy, whatever the environment says.
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerFailed(
                    f"{kind.name} ended with code {process.returncode} before it was ready:\n"
                    + _last_lines(log)
                )
            with suppress(httpx.TransportError):
                if client.get(url).is_success:
                    return
            time.sleep(READY_POLL_SECONDS)
    raise ServerFailed(
        f"{kind.name} was not ready after {READY_TIMEOUT_SECONDS:.0f} s:\n" + _last_lines(log)
    )


def _last_lines(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-NUM_LOG_LINES_IN_ERROR:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # A second Ctrl-C leaves the wait, and must not leave an engine behind. A process that was
        # waited for keeps its group's id taken as long as another of the group lives.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, slots=True)
class _ProcessStat:
    process_id: int
    name: str
    cpu_seconds: float
    resident_bytes: int


def _group_stats(group_id: int) -> Iterator[_ProcessStat]:
    """The living processes of a group, from Linux's /proc."""
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in parentheses, may hold anything; the fields after it are plain.
            start, _, end = file.read_text().rpartition(")")
            fields = end.split()
            if int(fields[2]) == group_id:
                ticks = int(fields[11]) + int(fields[12])
                resident_bytes = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                process_id = int(file.parent.name)
                name = start.partition("(")[2]
                yield _ProcessStat(process_id, name, ticks / ticks_per_second, resident_bytes)
