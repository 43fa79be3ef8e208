"""A log that nobody reads keeps nobody waiting, and one that is read is whole."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.telemetry import relay as relay_module
from app.telemetry.relay import MAX_HELD_BACK_BYTES, Relay

LINE = b"%07d " + b"x" * 91 + b"\n"
MANY = 3 * MAX_HELD_BACK_BYTES // 100


def notice(num_lines: int) -> bytes:
    return b"%d are missing\n" % num_lines


@dataclass
class Log:
    """A descriptor behind a relay, and the end of its pipe that a reader has."""

    descriptor: int
    reader: int
    relay: Relay

    def write_lines(self, numbers: range) -> None:
        for number in numbers:
            os.write(self.descriptor, LINE % number)

    def read_until_notice(self) -> None:
        received = b""
        while b"missing\n" not in received:
            received = received[-100:] + os.read(self.reader, 1)

    def rest(self) -> bytes:
        """What a reader gets until the end."""

        def end() -> None:
            self.relay.end()
            os.close(self.descriptor)

        ending = threading.Thread(target=end)
        ending.start()
        with os.fdopen(self.reader, "rb", closefd=False) as reader:
            received = reader.read()
        ending.join()
        return received


@pytest.fixture
def log() -> Iterator[Log]:
    reader, descriptor = os.pipe()
    yield Log(descriptor, reader, Relay(descriptor, notice))
    os.close(reader)


def test_what_is_read_is_whole(log: Log) -> None:
    log.write_lines(range(500))
    assert log.rest() == b"".join(LINE % number for number in range(500))


def test_a_reader_that_stalls_misses_whole_lines_and_is_told_how_many(log: Log) -> None:
    log.write_lines(range(MANY))
    *taken, told = log.rest().splitlines(keepends=True)
    assert taken == [LINE % number for number in range(len(taken))]
    assert told == notice(MANY - len(taken))


def test_after_a_gap_it_goes_on(log: Log) -> None:
    log.write_lines(range(MANY))
    log.read_until_notice()
    log.write_lines(range(2))
    assert log.rest() == LINE % 0 + LINE % 1


def test_a_last_line_without_an_end_is_handed_on(log: Log) -> None:
    os.write(log.descriptor, b"one\ntwo")
    assert log.rest() == b"one\ntwo"


def test_a_line_of_any_length_is_handed_on(log: Log) -> None:
    for _ in range(20):
        os.write(log.descriptor, bytes(50_000))
    assert log.rest() == bytes(1_000_000)


def test_a_reader_that_has_gone_stops_nobody() -> None:
    reader, descriptor = os.pipe()
    log = Log(descriptor, reader, Relay(descriptor, notice))
    os.close(reader)
    log.write_lines(range(MANY))
    log.relay.end()
    assert not log.relay._thread.is_alive()
    os.close(descriptor)


def test_the_end_does_not_wait_for_a_reader_that_stalls(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "END_TIMEOUT_SECONDS", 0.1)
    log.write_lines(range(MANY))
    log.relay.end()
    # Nor does who writes after it.
    log.write_lines(range(100))
    os.close(log.descriptor)


PROGRAM = """
import logging, subprocess, sys
from app.telemetry.logs import configure_logging, relay_stderr
configure_logging("json", "info")
relay_stderr()
for number in range({num_lines}):
    logging.warning("line %s", number)
subprocess.run([sys.executable, "-c", "import sys; print('from a child', file=sys.stderr)"])
print("the last", file=sys.stderr)
sys.exit(3)
"""


def program(num_lines: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM.format(num_lines=num_lines)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def test_a_process_loses_no_line() -> None:
    with program(1000) as process:
        assert process.stderr is not None
        *lines, child, last = process.stderr.read().splitlines()
    assert [re.findall(rb'"line (\d+)"', line) for line in lines] == [
        [b"%d" % number] for number in range(1000)
    ]
    assert (child, last) == (b"from a child", b"the last")
    assert process.returncode == 3


def test_a_process_ends_when_nobody_reads() -> None:
    with program(2000) as process:
        assert process.wait(60) == 3
        assert process.stderr is not None
        received = process.stderr.read()
    assert received.startswith(b'{"event": "line 0"')
