"""A command in a terminal of its own."""

import os
import pty
import select
import signal
import subprocess
import sys

TIMEOUT_SECONDS = 30.0
# A shell's background ignores Ctrl-C, and so does what is started there; in a terminal it counts.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from app.cli.main import cli; cli()"
)


class Terminal:
    """What is typed and shown there."""

    def __init__(self, *arguments: str) -> None:
        self._own, its = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            env=environment,
            start_new_session=True,
        )
        os.close(its)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def read_until(self, text: str) -> None:
        """Go on to there. Fails if the command ends first, or shows nothing for long."""
        assert self._comes(text, TIMEOUT_SECONDS), self._seen

    def press_ctrl_c_until(self, text: str) -> None:
        """Press it, and again if nothing comes: Python does not hear it just before it waits for a
        line."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            if self._comes(text, TIMEOUT_SECONDS / 10):
                return
        raise AssertionError(self._seen)

    def _comes(self, text: str, seconds: float) -> bool:
        """Whether it is shown before nothing is for so long."""
        while text not in self._seen:
            readable, _, _ = select.select([self._own], [], [], seconds)
            if not readable:
                return False
            self._seen += os.read(self._own, 65536).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)
