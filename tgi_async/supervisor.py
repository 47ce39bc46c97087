"""Worker processes: started, watched and ended together.

One `WorkerGroup` is one incarnation of the ranks. It is never repaired: when any rank dies, the
whole group is killed and the engine launches the next incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from tgi_async import cgroups, processes
from tgi_async.errors import StartError
from tgi_async.wire.channel import RouterChannel
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import (
    Loading,
    Ready,
    Refused,
    Start,
    Step,
    StepDone,
    Stop,
    ToRouter,
)

WORKER = processes.command("workers")

ENVIRONMENT = {
    # OpenMP threads that spin between parallel regions starve the router on a small machine, and
    # make a step up to 40 times slower on a busy one. Read when torch is imported.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Keep freed memory: a step's temporaries of many megabytes would be given back to the kernel
    # and faulted in again each time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
}

LAST_WORD_SECONDS = 0.5


class WorkerDied(Exception):
    """The workers are gone, or do not speak the wire any more; the message says which."""


class WorkerGroup:
    """One incarnation of the workers, one process a rank."""

    def __init__(
        self,
        folder: Path,
        incarnation: int,
        world_size: int = 1,
        command: tuple[str, ...] = WORKER,
    ) -> None:
        self._folder = folder
        self._incarnation = incarnation
        self._world_size = world_size
        self._command = command
        self._channel = RouterChannel(folder, incarnation, world_size)
        self._processes: list[asyncio.subprocess.Process] = []
        self._exits: list[asyncio.Task[int]] = []
        self._n_killed = cgroups.n_killed()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def launch(self, start: Start, on_loading: Callable[[Loading], None]) -> Ready:
        """Start every rank and wait until all are warm.

        Raises StartError if the worker refuses the model, WorkerDied if a rank dies meanwhile.
        """
        for rank in range(self._world_size):
            await self._spawn(rank)
        if self._world_size > 1 and not start.meeting_place:
            place = self._folder / f"ranks-{self._incarnation}"
            start = msgspec.structs.replace(start, meeting_place=f"file://{place}")
        self._send(msgspec.structs.replace(start, world_size=self._world_size))
        ready: list[Ready] = []
        while len(ready) < self._world_size:
            message = await self._receive()
            if isinstance(message, Loading):
                on_loading(message)
            elif isinstance(message, Ready):
                ready.append(message)
            elif isinstance(message, Refused):
                raise StartError(message.message)
            else:
                raise WorkerDied("a worker sent a result before it was ready")
        return _together(ready)

    def send(self, step: Step) -> None:
        """Raises WorkerDied where a worker does not take steps any more."""
        self._send(step)

    async def receive(self) -> StepDone:
        """The next result. Raises WorkerDied when a rank has died or sent something else."""
        return _result(await self._receive())

    def poll(self) -> StepDone | None:
        """The next result, if one is there. Raises WorkerDied where something else is."""
        message = self._poll()
        return None if message is None else _result(message)

    async def stop(self, grace: float) -> None:
        """Let the workers finish what is queued and exit; kill those that take longer."""
        with contextlib.suppress(WorkerDied):
            self._send(Stop())
        if self._exits:
            await asyncio.wait(self._exits, timeout=grace)
        await self.kill()

    def end(self) -> None:
        """Kill every rank; `receive` notices."""
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)

    async def kill(self) -> None:
        """End every rank at once, and wait until they are gone."""
        self.end()
        if self._exits:
            await asyncio.wait(self._exits)
        self._channel.close()

    async def _spawn(self, rank: int) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                f"--folder={self._folder}",
                f"--incarnation={self._incarnation}",
                f"--rank={rank}",
                f"--router={os.getpid()}",
                stdin=asyncio.subprocess.DEVNULL,
                env=ENVIRONMENT | processes.environment(),
                # Of its own, so that a Ctrl-C in the terminal reaches the router alone.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerDied(f"worker {rank} cannot be started: {error}") from error
        self._processes.append(process)
        exit = asyncio.create_task(process.wait())
        exit.add_done_callback(lambda _: self._channel.wake())
        self._exits.append(exit)

    def _send(self, message: Start | Step | Stop) -> None:
        try:
            self._channel.send(message)
        except (zmq.ZMQError, WireError) as error:
            raise WorkerDied(f"a worker takes no more steps: {error}") from error

    async def _receive(self) -> ToRouter:
        while (message := self._poll()) is None:
            if any(exit.done() for exit in self._exits):
                return await self._last_word()
            await self._channel.wait()
        return message

    async def _last_word(self) -> ToRouter:
        """What was sent just before an exit in order, such as Refused. Raises WorkerDied."""
        if self._left_in_order():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    while True:
                        await self._channel.wait()
                        if (message := self._poll()) is not None:
                            return message
        raise WorkerDied(self._epitaph())

    def _poll(self) -> ToRouter | None:
        try:
            return self._channel.poll()
        except WireError as error:
            raise WorkerDied(f"a worker sent a frame outside the wire: {error}") from error

    def _left_in_order(self) -> bool:
        return any(task.done() and task.result() == 0 for task in self._exits)

    def _epitaph(self) -> str:
        for rank, task in enumerate(self._exits):
            if task.done():
                return f"worker {rank} {self._how_it_ended(task.result())}"
        return "a worker is gone"

    def _how_it_ended(self, status: int) -> str:
        if status >= 0:
            return f"exited with status {status}"
        why = cgroups.why_killed(self._n_killed) if status == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-status).name}{why}"


def _together(ready: list[Ready]) -> Ready:
    """What all ranks can do, and what they have."""
    return msgspec.structs.replace(
        min(ready, key=lambda one: one.n_blocks),
        device=", ".join(sorted({one.device for one in ready})),
        kv_cache_bytes=sum(one.kv_cache_bytes for one in ready),
        weight_bytes=sum(one.weight_bytes for one in ready),
        notes=list(dict.fromkeys(note for one in ready for note in one.notes)),
    )


def _result(message: ToRouter) -> StepDone:
    if not isinstance(message, StepDone):
        raise WorkerDied(f"a worker sent {type(message).__name__} instead of a result")
    return message
