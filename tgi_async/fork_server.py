"""The process that has a worker's imports done, and workers forked from it.

It is a help and never needed: where there is none, or it does not answer, a worker is started by
its command and does the imports itself. One that dies after it has served is replaced; one that
cannot do the imports, or refuses to fork, is not tried again, for the next one would fare alike.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from tgi_async import processes
from tgi_async.backoff import Backoff
from tgi_async.deadline import LOOK_SECONDS, Deadline
from tgi_async.forked_process import ForkedProcess
from tgi_async.wire import forks

log = logging.getLogger(__name__)

COMMAND = processes.command("workers.fork_server")
PR_SET_CHILD_SUBREAPER = 36


class ForkFailed(Exception):
    """No worker was forked; the message says why."""


class ForkServer:
    """Keeps one such process, from the first fork to `stop`."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        command: tuple[str, ...] = COMMAND,
        backoff: Backoff | None = None,
    ) -> None:
        """`folder` and `environment` are those of the workers."""
        self._folder = folder
        self._environment = dict(environment)
        self._command = command
        self._backoff = backoff or Backoff()
        self._keeping: asyncio.Task[None] | None = None
        self._forking = asyncio.Lock()
        self._importer: asyncio.Future[_Importer | None] | None = None
        """The process once its imports are done; None where there is none now."""
        self._forks: set[asyncio.Task[ForkedProcess | None]] = set()
        """Those under way."""

    async def fork(self, arguments: Sequence[str]) -> ForkedProcess | None:
        """Fork a worker with these arguments; None where it is to be started by its command."""
        if self._keeping is None:
            self._importer = asyncio.get_running_loop().create_future()
            self._keeping = asyncio.create_task(self._keep())
        forking = asyncio.create_task(self._fork(arguments))
        self._forks.add(forking)
        forking.add_done_callback(self._forks.discard)
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            # Nobody else would end it. It is not waited for here, as that could be cancelled too.
            forking.add_done_callback(_end)
            raise

    async def stop(self) -> None:
        """End the process, and wait until it is gone. Workers that it forked live on."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            self._keeping = None

    async def _fork(self, arguments: Sequence[str]) -> ForkedProcess | None:
        async with self._forking:
            assert self._importer is not None
            importer = await asyncio.shield(self._importer)
            if importer is None:
                return None
            try:
                return await importer.fork(arguments)
            except ForkFailed as error:
                log.warning("no worker was forked: %s", error)
                importer.kill()
                return None

    async def _keep(self) -> None:
        """Have a process, and another one where that has died."""
        while True:
            importer = None
            began = time.monotonic()
            try:
                importer = await _Importer.start(self._folder, self._command, self._environment)
                await importer.imported()
                self._now(importer)
                log.debug("workers are forked from process %d from now on", importer.pid)
                how = await importer.ended()
            except ForkFailed as error:
                log.warning("workers are started without a fork server from now on: %s", error)
                return
            finally:
                self._now(None)
                if importer is not None:
                    await importer.end()
            log.warning("the fork server of workers %s; another one is started", how)
            await asyncio.sleep(self._backoff.after(time.monotonic() - began))
            self._importer = asyncio.get_running_loop().create_future()

    def _now(self, importer: _Importer | None) -> None:
        if self._importer is None or self._importer.done():
            self._importer = asyncio.get_running_loop().create_future()
        self._importer.set_result(importer)


class _Importer:
    """One such process."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self.pid = process.pid

    @classmethod
    async def start(
        cls, folder: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> _Importer:
        """Start one. Raises ForkFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                # Both are asked for here, as a worker that is forked needs them.
                os.close(os.pidfd_open(os.getpid()))
                with _adopting():
                    pass
                process = await asyncio.create_subprocess_exec(
                    *command,
                    f"--folder={folder}",
                    f"--control={theirs.fileno()}",
                    f"--router={os.getpid()}",
                    stdin=asyncio.subprocess.DEVNULL,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise ForkFailed(f"it cannot be started: {error}") from error
        except BaseException:
            ours.close()
            raise
        return cls(process, ours)

    async def imported(self) -> None:
        """Return once its imports are done. Raises ForkFailed."""
        deadline = Deadline(longest_idle=0.0)
        deadline.started()
        answer = await self._answer(deadline)
        if not isinstance(answer, forks.Imported):
            raise ForkFailed(f"it sent {answer} before it was ready")

    async def fork(self, arguments: Sequence[str]) -> ForkedProcess:
        """Fork a worker. Raises ForkFailed."""
        try:
            with _adopting():
                packet = forks.encode(forks.Fork(list(arguments)))
                await asyncio.get_running_loop().sock_sendall(self._control, packet)
                answer = await self._answer(Deadline())
            if not isinstance(answer, forks.Forked):
                raise ForkFailed(f"it sent {answer}")
            return ForkedProcess(answer.pid)
        except OSError as error:
            raise ForkFailed(str(error)) from error

    async def ended(self) -> str:
        """Return how it ended, once it has."""
        status = await self._process.wait()
        return f"exited with status {status}" if status >= 0 else f"was killed by signal {-status}"

    def kill(self) -> None:
        """Kill it, if it has not ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        await self._process.wait()
        self._control.close()

    async def _answer(self, deadline: Deadline) -> forks.ToRouter:
        """Return its next packet. Raises ForkFailed where it ends, or does nothing."""
        loop = asyncio.get_running_loop()
        receiving = asyncio.create_task(loop.sock_recv(self._control, forks.MAX_PACKET_BYTES))

        def activity() -> processes.Activity:
            return processes.activity([self.pid])

        try:
            while not receiving.done():
                await asyncio.wait({receiving}, timeout=LOOK_SECONDS)
                if how := deadline.missed(time.monotonic(), activity):
                    raise ForkFailed(f"it did not answer {how}")
            if not (packet := await receiving):
                raise ForkFailed(f"it {await self.ended()}")
            return forks.decode_answer(packet)
        except (OSError, msgspec.DecodeError) as error:
            raise ForkFailed(str(error)) from error
        finally:
            receiving.cancel()


def _end(forking: asyncio.Task[ForkedProcess | None]) -> None:
    """Kill what was forked."""
    if not forking.cancelled() and (made := forking.result()) is not None:
        made.send_signal(signal.SIGKILL)


@contextmanager
def _adopting() -> Iterator[None]:
    """Make this process the parent of its descendants that lose theirs, for so long: for ever would
    leave it with those of workers that were killed, which nobody here waits for. Raises OSError."""
    _set_subreaper(1)
    try:
        yield
    finally:
        _set_subreaper(0)


def _set_subreaper(value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    prctl = getattr(library, "prctl", None)
    if prctl is None or prctl(PR_SET_CHILD_SUBREAPER, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel gives this process no orphans: {os.strerror(number)}")
