"""A real server process for tests: the command as a user runs it, a real engine, a real socket."""

import asyncio
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

COMMAND = [
    *(str(Path(sys.executable).with_name("softserve")), "serve", "--port", "0"),
    # The tests compare with FP32 token for token, and a CPU with BF16 instructions would take BF16.
    *("--precision", "fp32"),
]
SHIPPED_TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
START_TIMEOUT_SECONDS = 600.0
EXIT_TIMEOUT_SECONDS = 90.0


class ServerProcess:
    """`softserve serve` in a process group of its own, its log collected line by line.

    Its adapters are its own: a store and a watched folder below `folder`. So are its templates,
    which begin as those that ship. `prefix` comes before the command, which it replaces itself by.
    """

    def __init__(self, folder: Path, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.adapter_dir = folder / "adapters"
        self.adapter_store = folder / "store"
        self.adapter_dir.mkdir(exist_ok=True)
        self.template_dir = folder / "templates"
        shutil.copytree(SHIPPED_TEMPLATES, self.template_dir, dirs_exist_ok=True)
        places = [
            f"--adapter-dir={self.adapter_dir}",
            f"--adapter-store={self.adapter_store}",
            f"--template-dir={self.template_dir}",
        ]
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "--log-format", "json", *places, *arguments],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._may_read = threading.Event()
        self._may_read.set()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.url = ""

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._may_read.wait()
                self.log.append(line)
                self._lines.put(line)
        self._lines.put(None)

    @contextmanager
    def log_unread(self) -> Iterator[None]:
        """Nobody reads the log until this ends."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    def wait_for_line(self, part: str) -> str:
        """The first line of the log with that in it from here on."""
        while (line := self._lines.get(timeout=START_TIMEOUT_SECONDS)) is not None:
            if part in line:
                return line
        raise AssertionError(f"the server ended before {part!r}:\n{''.join(self.log)}")

    def wait_for_event(self, event: str) -> dict[str, Any]:
        """The first log event of that name from here on. Fails if the process ends first."""
        while (line := self._lines.get(timeout=START_TIMEOUT_SECONDS)) is not None:
            record = _parse(line)
            if record.get("event") == event:
                return record
        raise AssertionError(f"the server ended before {event!r}:\n{''.join(self.log)}")

    def wait_until_listening(self) -> "ServerProcess":
        self.url = self.wait_for_event("listening")["url"]
        return self

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def wait_until_ready(self) -> "ServerProcess":
        if not self.url:
            self.wait_until_listening()
        self.wait_for_event("ready")
        return self

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300.0)

    def async_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=self.url, timeout=300.0, limits=limits)

    def own_view(self, path: Path) -> Path:
        """Where this process finds what the server finds at an absolute path."""
        return Path(f"/proc/{self.process.pid}/root", path.relative_to("/"))

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def send_to_group(self, signum: signal.Signals) -> None:
        """What a terminal does on Ctrl-C: every process of the group gets the signal."""
        os.killpg(self.process.pid, signum)

    def wait_for_exit(self) -> int:
        """The exit code, once nothing of the group is left.

        The engine's processes that a dead one leaves notice its death by themselves, a little later
        than the server may have ended.
        """
        code = self.process.wait(EXIT_TIMEOUT_SECONDS)
        wait_until(lambda: self.group() == [], EXIT_TIMEOUT_SECONDS)
        self._reader.join()
        return code

    def group(self) -> list[int]:
        """The ids of the living processes of the server's group, its own included."""
        return members_of(self.process.pid)

    def num_descriptors(self) -> int:
        """The files and sockets that the server's own process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def engine_process(self) -> int:
        """The id of the process that holds the model's scheduler."""
        return self.process_named("VLLM::EngineCor")

    def worker_process(self) -> int:
        """The id of the process that holds the model's weights."""
        return self.process_named("VLLM::Worker")

    def process_named(self, name: str) -> int:
        (found,) = (
            pid for pid in self.group() if Path(f"/proc/{pid}/comm").read_text().startswith(name)
        )
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        try:
            self.process.wait(EXIT_TIMEOUT_SECONDS)
        finally:
            # The log ends when the last process that can write to it has.
            for pid in self.group():
                os.kill(pid, signal.SIGKILL)
            self._reader.join()


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def is_free(url: str) -> bool:
    """Whether nothing listens on the port any more."""
    port = int(url.rsplit(":", 1)[1])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so. Raises `TimeoutError` if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """As `wait_until`, beside other tasks."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def members_of(group: int) -> list[int]:
    """The ids of the living processes of a group."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _group_of(entry) == group
    ]


def _group_of(process: Path) -> int | None:
    """The process group of a living process; None for one that ended or is a zombie."""
    try:
        state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(group)


@contextmanager
def running(
    *arguments: str, folder: Path | None = None, prefix: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """A server process, stopped in the end whatever happens; `folder` outlasts it, if given."""
    with tempfile.TemporaryDirectory() as temporary:
        server = ServerProcess(folder or Path(temporary), *arguments, prefix=prefix)
        try:
            yield server
        finally:
            server.stop()
