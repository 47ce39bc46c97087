"""The server's side: a pool of processes that answer a line of text with a line of text."""

from __future__ import annotations

import fcntl
import queue
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

from tgi_async.fair_threads import FairThreads
from tgi_async.processes import environment

VARIABLES = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ"),
    "OPENBLAS_NUM_THREADS",
)
"""Environment variables that the processes get; they get no secrets."""
PIPE_BYTES = 1 << 20
"""The largest pipe that Linux gives without root: a long line passes in few context switches."""


class ProcessEnded(Exception):
    """Raised when a process ends without an answer. `status` is its exit status: negative for a
    signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it ended with status {status}")
        self.status = status


class ProcessPool:
    """`n_processes` of `command`, each sent the line `start` first. Thread-safe.

    A process is started when first needed, and again after its end; where `one_more` is true, when
    all those that run are asked something. One that says nothing for `patience` seconds, however
    busy the machine, is ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        start: bytes,
        *,
        n_processes: int,
        name: str,
        patience: float = 60.0,
        one_more: bool = False,
    ) -> None:
        self._one_more = one_more
        self._processes = [_Process(command, start, patience) for _ in range(n_processes)]
        # The last one in is the first out, so that with little load only one process is ever
        # started.
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self.threads = FairThreads(n_processes, name)
        """Threads to call `ask` in, so that it does not hold up those that tokenize."""
        self._end = weakref.finalize(self, _end_all, self._processes)

    def ask(self, line: bytes) -> bytes:
        """Return the answer to one line; blocks. Raises ProcessEnded.

        A line whose process was killed by somebody else is asked once more: it had not come to any
        of its limits, which end it in other ways.
        """
        process = self._idle.get()
        try:
            if self._one_more:
                self.prepare()
            try:
                return process.ask(line)
            except ProcessEnded as error:
                if error.status != -signal.SIGKILL or process.silent:
                    raise
                return process.ask(line)
        finally:
            self._idle.put(process)

    def prepare(self) -> None:
        """Start the process that is asked next, if it is not running, without waiting for it."""
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
    """One process of the pool. One thread at a time asks it; any thread may close it."""

    def __init__(self, command: Sequence[str], start: bytes, patience: float) -> None:
        self._command = command
        self._start = start
        self._patience = patience
        self._running: subprocess.Popen[bytes] | None = None
        self.silent = False
        """Whether it was ended as it said nothing."""
        self._closed = False
        self._lock = Lock()
        """Held to replace the process, as a thread may be about to start one when the pool
        closes."""

    def ask(self, line: bytes) -> bytes:
        self.silent = False
        running = self.start()
        reply = self._reply(running, line)
        if reply is None:
            if running.poll() is None and not _at_end(running):
                self.silent = True
                running.kill()
            status = running.wait()
            with self._lock:
                self._end()
            raise ProcessEnded(status)
        return reply

    def _reply(self, running: subprocess.Popen[bytes], line: bytes) -> bytes | None:
        """Return the process's reply; None if it ended or must be ended."""
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            running.stdin.write(line + b"\n")
            running.stdin.flush()
            if not _says_something(running, self._patience):
                return None
            reply = running.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        except ValueError:  # its pipes were closed meanwhile
            return None
        return reply if reply.endswith(b"\n") else None

    def start(self) -> subprocess.Popen[bytes]:
        """Return the process, which may not have read its first line yet.

        Raises ProcessEnded after `close`.
        """
        with self._lock:
            if self._closed:
                raise ProcessEnded(-signal.SIGKILL)
            if self._running is None or self._running.poll() is not None:
                self._end()
                self._running = self._popen()
            return self._running

    def _popen(self) -> subprocess.Popen[bytes]:
        running = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=PIPE_BYTES,
            env={name: value for name, value in environment().items() if name in VARIABLES},
            start_new_session=True,  # Ctrl-C is for the server; its end closes their input
        )
        assert running.stdin is not None
        assert running.stdout is not None
        for pipe in (running.stdin, running.stdout):
            _widen(pipe.fileno())
        with suppress(BrokenPipeError):  # it has ended: reading the reply says how
            running.stdin.write(self._start + b"\n")
            running.stdin.flush()
        return running

    def close(self) -> None:
        """End the process, if there is one, and start no other."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # because of unwritten input
                    pipe.close()


def _says_something(running: subprocess.Popen[bytes], patience: float) -> bool:
    assert running.stdout is not None
    poll = select.poll()
    poll.register(running.stdout, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def _at_end(running: subprocess.Popen[bytes]) -> bool:
    """Return whether the process has closed its output, and so is about to end."""
    assert running.stdout is not None
    poll = select.poll()
    poll.register(running.stdout, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        with suppress(PermissionError):  # this user has so many pipes that no more may be enlarged
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _end_all(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.close()
