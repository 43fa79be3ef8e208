"""A log that nobody reads: the server and its engine go on."""

import os
from pathlib import Path

import httpx

from tests.server.process import ServerProcess

# What the pipe and the server hold back is full after some 1.1 MB; a path is logged whole.
LONG_PATH = "/" + "x" * 8000
NUM_REQUESTS = 300


def test_a_log_that_nobody_reads_stops_nobody(server: ServerProcess, client: httpx.Client) -> None:
    with server.log_unread():
        for _ in range(NUM_REQUESTS):
            assert client.post(LONG_PATH).status_code == 404
        answer = client.post("/generate", json={"prompt": "Hello", "max_new_tokens": 4})
        assert answer.json()["usage"]["completion_tokens"] == 4
    server.wait_for_line("lines of the log are missing here")
    client.post("/generate", json={"prompt": "Hello", "max_new_tokens": 4})
    assert server.wait_for_event("request ended")["status"] == 200


def test_no_process_writes_to_the_reader_itself(server: ServerProcess) -> None:
    assert server.process.stderr is not None
    of_reader = f"pipe:[{os.fstat(server.process.stderr.fileno()).st_ino}]"
    for pid in server.group():
        assert str(Path(f"/proc/{pid}/fd/2").readlink()) != of_reader
