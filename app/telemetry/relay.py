"""Nobody waits for a reader of the log that stalls.

A pipe holds 64 KiB; then it blocks whoever writes to it, be it the event loop or the engine's
process, until somebody reads. So what is written to stderr, here and in every process that inherits
it, goes to a pipe of our own, which a thread always empties. It hands on what the reader has room
for, holds back a bounded amount of the rest, and drops the lines beyond, saying how many.
"""

import os
import select
import threading
from collections.abc import Callable

MAX_HELD_BACK_BYTES = 1 << 20
# How long the end of the process waits for a reader to take what is left.
END_TIMEOUT_SECONDS = 2.0
PIECE_BYTES = 65_536


class Relay:
    """Stands in front of a file descriptor, from its making until its `end`.

    `notice` makes the line that stands in place of so many dropped ones.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], bytes]) -> None:
        self._descriptor = descriptor
        self._notice = notice
        self._reader = os.dup(descriptor)
        self._source, ours = os.pipe()
        os.dup2(ours, descriptor)
        os.close(ours)
        self._end, self._begin_end = os.pipe()
        self._unfinished_line = b""
        self._held_back = bytearray()
        self._num_dropped = 0
        self._reader_is_gone = False
        self._thread = threading.Thread(target=self._run, name="log relay", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Hand on what is left and give the descriptor back, unless the reader stalls even now.

        The descriptor is left as it is then: who writes to it on the way out must not wait either.
        """
        os.write(self._begin_end, b"\0")
        self._thread.join(END_TIMEOUT_SECONDS)
        if not self._thread.is_alive():
            os.dup2(self._reader, self._descriptor)
            for own in (self._reader, self._source, self._end, self._begin_end):
                os.close(own)

    def _run(self) -> None:
        is_ending = False
        while self._held_back or not is_ending:
            ready = self._wait(is_ending)
            if self._source in ready:
                self._take(os.read(self._source, PIECE_BYTES))
            elif self._end in ready:
                # Only now: what was written before the end has all been taken.
                is_ending = True
                self._hold_back(self._unfinished_line)
            if self._reader in ready:
                self._hand_on()

    def _wait(self, is_ending: bool) -> set[int]:
        """Until there is something to read, or the reader has room for what is held back."""
        events = select.poll()
        events.register(self._source, select.POLLIN)
        if not is_ending:
            events.register(self._end, select.POLLIN)
        if self._held_back:
            events.register(self._reader, select.POLLOUT)
        return {descriptor for descriptor, _ in events.poll()}

    def _take(self, data: bytes) -> None:
        lines, newline, rest = (self._unfinished_line + data).rpartition(b"\n")
        if len(rest) > PIECE_BYTES:
            lines, newline, rest = lines + newline + rest, b"", b""
        self._unfinished_line = rest
        self._hold_back(lines + newline)

    def _hold_back(self, lines: bytes) -> None:
        is_full = len(self._held_back) + len(lines) > MAX_HELD_BACK_BYTES
        # Having begun to drop, it drops until the reader has caught up: one gap, not many.
        if is_full or self._num_dropped:
            self._num_dropped += lines.count(b"\n")
        elif not self._reader_is_gone:
            self._held_back += lines

    def _hand_on(self) -> None:
        # So much is written without waiting, where there is room for anything.
        piece = self._held_back[: select.PIPE_BUF]
        try:
            num_written = os.write(self._reader, piece)
        except OSError:
            # Nobody can read the log any more, nor an error about that. The server goes on.
            self._reader_is_gone = True
            num_written = len(self._held_back)
        del self._held_back[:num_written]
        if self._num_dropped and not self._held_back:
            num_dropped, self._num_dropped = self._num_dropped, 0
            self._hold_back(self._notice(num_dropped))
