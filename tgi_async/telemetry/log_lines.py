"""Write the lines of the log so that nobody waits for who reads them.

The log may be a pipe whose reader has stopped, or a terminal that is held. Whoever logs would wait
then, and that is the event loop: all clients with it, and the probes. So a line is written at once
where that does not block, as it nearly always does not. Else a thread writes what has come up, of
which `MOST_WAITING` bytes are kept; what is more is dropped, and counted in a line as soon as lines
are taken again.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections import deque
from threading import Condition, RLock, Thread

PIECE = select.PIPE_BUF
"""Bytes that a pipe takes without blocking if it says that it takes some."""
MOST_WAITING = 2**20
LAST_SECONDS = 1.0
"""How long the end of the process waits for who reads the log."""


class LogLines(logging.Handler):
    """Writes to an open file, to which other processes may write as well."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._waiting: deque[bytes] = deque()
        self._n_waiting = 0
        """Bytes that wait, and those that the thread writes."""
        self._n_lost = 0
        """Lines since one was written."""
        self._thread: Thread | None = None

    def createLock(self) -> None:
        lock = RLock()
        self.lock = lock
        self._changed = Condition(lock)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, now or soon."""
        try:
            line = self._line(record)
            n_lost = self._n_lost
            if n_lost and not self._n_waiting:
                line = self._line(_missing(n_lost)) + line
        except Exception:
            self.handleError(record)
            return
        if self._n_waiting:
            self._keep(line)
            return
        try:
            rest = self._written(line)
        except OSError:  # a full disk, or nobody who reads any more
            self._n_lost += 1
            return
        self._n_lost = 0
        if rest:
            self._keep(rest)

    def flush(self) -> None:
        """Wait until what has come up is written, for `LAST_SECONDS` at most."""
        until = time.monotonic() + LAST_SECONDS
        with self._changed:
            while self._n_waiting and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _written(self, line: bytes) -> bytes:
        """Write what does not block. Return the rest. Raises OSError."""
        while line and self._takes(0):
            try:
                line = line[os.write(self._fd, line[:PIECE]) :]
            except BlockingIOError:
                break
        return line

    def _takes(self, milliseconds: int | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(milliseconds))

    def _keep(self, line: bytes) -> None:
        if self._n_waiting + len(line) > MOST_WAITING:
            self._n_lost += 1
            return
        self._waiting.append(line)
        self._n_waiting += len(line)
        self._changed.notify_all()
        if self._thread is None:
            self._thread = Thread(target=self._write_waiting, name="log", daemon=True)
            # Signals are for the thread that has blocked or handles them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            self._thread.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _write_waiting(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                line = self._waiting.popleft()
            # Without the lock: it may block, where another process was faster.
            rest = line
            lost = False
            while rest and not lost:
                self._takes(None)
                try:
                    rest = self._written(rest)
                except OSError:
                    lost = True
            with self._changed:
                self._n_lost += lost
                self._n_waiting -= len(line)
                self._changed.notify_all()


def _missing(n_lost: int) -> logging.LogRecord:
    said = "lines of the log are missing here, %d: they could not be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, said, (n_lost,), None)
