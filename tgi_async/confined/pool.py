"""The server's side of such processes: a line of text in, a line of text out."""

from __future__ import annotations

import fcntl
import queue
import select
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress

from tgi_async.fair_threads import FairThreads
from tgi_async.processes import environment

VARIABLES = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ"),
    "OPENBLAS_NUM_THREADS",
)
"""Of the environment; its secrets are not these processes' business."""
PIPE_BYTES = 1 << 20
"""The most that Linux gives without being asked by root: a long line passes in few switches."""


class ProcessEnded(Exception):
    """Instead of an answer. `status` is the process's: negative for the signal that ended it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it ended with status {status}")
        self.status = status


class ProcessPool:
    """`n_processes` of `command`, each told `start` (one line) first. Thread-safe.

    A process is started when first needed, and again after its end. One that says nothing for
    `patience` seconds, however busy the machine, is ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        start: bytes,
        *,
        n_processes: int,
        name: str,
        patience: float = 60.0,
    ) -> None:
        self._processes = [_Process(command, start, patience) for _ in range(n_processes)]
        # The last one in is the first out, so that without a crowd only one is ever started.
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self.threads = FairThreads(n_processes, name)
        """Where to call `ask`: apart from the threads that tokenize, which it would hold up."""
        self._end = weakref.finalize(self, _end_all, self._processes)

    def ask(self, line: bytes) -> bytes:
        """The answer to one line; blocks. Raises ProcessEnded."""
        process = self._idle.get()
        try:
            return process.ask(line)
        finally:
            self._idle.put(process)

    def prepare(self) -> None:
        """Start the one that is asked next, if it is not running, and do not wait for it."""
        with suppress(queue.Empty):
            process = self._idle.get_nowait()
            try:
                process.start()
            finally:
                self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._end()


class _Process:
    """Used by one thread at a time."""

    def __init__(self, command: Sequence[str], start: bytes, patience: float) -> None:
        self._command = command
        self._start = start
        self._patience = patience
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes) -> bytes:
        reply = self._reply(line)
        if reply is None:
            assert self._running is not None
            if self._running.poll() is None and not self._at_end():
                self._running.kill()
            status = self._running.wait()
            self.end()
            raise ProcessEnded(status)
        return reply

    def _reply(self, line: bytes) -> bytes | None:
        """What the process says; None if it ended instead, or must be."""
        try:
            running = self.start()
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(line + b"\n")
            running.stdin.flush()
            if not self._says_something():
                return None
            reply = running.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return reply if reply.endswith(b"\n") else None

    def _says_something(self) -> bool:
        assert self._running is not None
        assert self._running.stdout is not None
        poll = select.poll()
        poll.register(self._running.stdout, select.POLLIN)
        return bool(poll.poll(self._patience * 1000))

    def _at_end(self) -> bool:
        """Whether the process has closed its output, and so is about to end."""
        assert self._running is not None
        assert self._running.stdout is not None
        poll = select.poll()
        poll.register(self._running.stdout, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def start(self) -> subprocess.Popen[bytes]:
        """The process, which may still be on its way to read its first line."""
        if self._running is not None and self._running.poll() is None:
            return self._running
        self.end()
        self._running = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=PIPE_BYTES,
            env={name: value for name, value in environment().items() if name in VARIABLES},
            start_new_session=True,  # Ctrl-C is for the server, whose end closes their input
        )
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        for pipe in (self._running.stdin, self._running.stdout):
            _widen(pipe.fileno())
        self._running.stdin.write(self._start + b"\n")
        self._running.stdin.flush()
        return self._running

    def end(self) -> None:
        """End the process, if there is one."""
        running, self._running = self._running, None
        if running is None:
            return
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # by what was left to write
                    pipe.close()


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        with suppress(PermissionError):  # this user has so many pipes that no more may be wide
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _end_all(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()
