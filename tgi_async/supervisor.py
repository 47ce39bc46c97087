"""Start, watch and end the worker processes together.

One `WorkerGroup` is one epoch of the ranks. It is never repaired: when any rank dies or misses its
deadline, the whole group is killed and the engine launches the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from tgi_async import cgroups, processes
from tgi_async.deadline import LOOK_SECONDS, Deadline
from tgi_async.errors import StartError
from tgi_async.fork_server import ForkServer
from tgi_async.forked_process import ForkedProcess
from tgi_async.wire.channel import RouterChannel
from tgi_async.wire.codec import WireError
from tgi_async.wire.messages import (
    PLACE_TAKEN,
    Loading,
    RankConfig,
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


def environment() -> dict[str, str]:
    """Return the environment of a worker."""
    return ENVIRONMENT | processes.environment()


class WorkerDied(Exception):
    """The workers have died, or broke the protocol; the message says which."""


class NodeLost(WorkerDied):
    """A machine with some of the workers is gone, for which no request is to blame."""


class PlaceTaken(WorkerDied):
    """Another program took the port at which the ranks were to meet."""


class RemoteRanks(Protocol):
    """The ranks of an epoch that are on other nodes, for the group that has the others."""

    async def complete(self, on_waiting: Callable[[str], None]) -> None:
        """Return once all nodes are there; `on_waiting` gets who is waited for."""

    def place(self, ranks: RankConfig) -> RankConfig:
        """Return `ranks` with where all of this epoch meet, once all nodes are there."""

    async def launch(self, start: Start, on_change: Callable[[], None]) -> None:
        """Have them started; `on_change` is called when more is known of them. Raises NodeLost."""

    def ready(self) -> list[Ready] | None:
        """Return what each node reported, once all of them are ready."""

    def check(self) -> None:
        """Raise WorkerDied where a rank or a node is gone, StartError where the model is
        refused."""

    def activities(self) -> Iterable[processes.Activity]:
        """Return what the ranks of each node do."""

    async def end(self) -> None:
        """Have them ended."""


class WorkerGroup:
    """One epoch of the workers, with one process for each rank: all of them, or those of a node."""

    def __init__(
        self,
        folder: Path,
        epoch: int,
        world_size: int = 1,
        command: tuple[str, ...] = WORKER,
        deadline: Deadline | None = None,
        fork_server: ForkServer | None = None,
        ranks: range | None = None,
        remote: RemoteRanks | None = None,
    ) -> None:
        """`fork_server` forks the ranks where it can, others are started by `command`.

        `ranks` are those that are started here, by default all; `remote` starts the others.
        """
        self._fork_server = fork_server
        self._deadline = deadline or Deadline()
        self._loading = True
        self._gave_results = False
        self._n_owed = 0
        """Results that are due: those of the steps that were sent."""
        self._look: asyncio.TimerHandle | None = None
        """Wakes the task that waits for a worker, to check its deadline."""
        self._is_due = False
        """Whether it is time to check the deadline."""
        self._exited = False
        """Whether a rank has exited."""
        self._last_word_by: float | None = None
        self._folder = folder
        self._epoch = epoch
        self._world_size = world_size
        self._command = command
        self._ranks = range(world_size) if ranks is None else ranks
        self._remote = remote
        self._channel = RouterChannel(folder, epoch, self._ranks)
        self._processes: list[asyncio.subprocess.Process | ForkedProcess] = []
        self._exits: list[asyncio.Task[int]] = []
        self._n_killed = cgroups.n_killed()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def activity(self) -> processes.Activity:
        """Return what the ranks that were started here do."""
        return processes.activity(self.pids)

    @property
    def lives(self) -> bool:
        """Whether no rank has exited."""
        return not self._exited

    @property
    def gave_results(self) -> bool:
        """Whether it has finished a step."""
        return self._gave_results

    def judge_by(self, deadline: Deadline) -> None:
        """Have results in time by another deadline from now on."""
        self._deadline = deadline

    async def ended(self) -> str:
        """Return how the first rank that exits ended, once it has."""
        await asyncio.wait(self._exits, return_when=asyncio.FIRST_COMPLETED)
        return self._epitaph()

    async def launch(self, start: Start, on_loading: Callable[[Loading], None]) -> Ready:
        """Start every rank and wait until all are warm.

        Raises StartError if the worker refuses the model, WorkerDied if a rank dies meanwhile,
        PlaceTaken among them.
        """
        if self._remote is not None:
            await self._remote.complete(lambda text: on_loading(Loading(text, 0.0, "")))
        self._deadline.started()
        for rank in self._ranks:
            await self._spawn(rank)
        start = self._placed(start)
        self._send(start)
        if self._remote is not None:
            await self._remote.launch(start, self.wake)
        ready: list[Ready] = []
        self._watch()
        while len(ready) < len(self._ranks) or (others := self._others()) is None:
            message = await self._receive()
            if isinstance(message, Loading):
                self._deadline.loaded(message.seconds)
                on_loading(message)
            elif isinstance(message, Ready):
                ready.append(message)
            elif isinstance(message, Refused):
                raise StartError(message.message)
            elif message is not None:
                raise WorkerDied("a worker sent a result before it was ready")
        self._deadline.ready()
        self._loading = False
        return _together([*ready, *others])

    def send(self, step: Step) -> None:
        """Send a step. Raises WorkerDied where a worker takes no more steps."""
        self._send(step)
        self._n_owed += 1
        if self._look is None:
            self._watch()

    def poll(self) -> StepDone | None:
        """Return the next result, if one has arrived. Raises WorkerDied for anything else."""
        message = self._poll()
        if message is None:
            return None
        if not isinstance(message, StepDone):
            raise WorkerDied(f"a worker sent {type(message).__name__} instead of a result")
        self._n_owed -= 1
        self._gave_results = True
        self._deadline.met()
        return message

    async def wait(self) -> None:
        """Return when a result may have arrived, or at `wake`, after a poll that found none.

        Raises WorkerDied when a rank has died or missed its deadline, StartError where one on
        another node cannot serve the model.
        """
        if self._is_due:
            self._check_deadline()
        if self._remote is not None:
            self._remote.check()
        if self._exited:
            await self._wait_for_last_word()
        else:
            await self._channel.wait()

    async def receive(self) -> StepDone:
        """Return the next result. Raises WorkerDied when a rank has died or sent something else."""
        while (done := self.poll()) is None:
            await self.wait()
        return done

    def wake(self) -> None:
        """Wake the task that waits, or the next one that will."""
        self._channel.wake()

    async def stop(self, grace: float) -> None:
        """Let the workers finish queued steps and exit; kill those that take longer."""
        with contextlib.suppress(WorkerDied):
            self._send(Stop())
        if self._exits:
            await asyncio.wait(self._exits, timeout=grace)
        await self.kill()

    async def kill(self) -> None:
        """Kill every rank, and wait until all have exited."""
        if self._look is not None:
            self._look.cancel()
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    # A process that is stopped would take no other signal.
                    process.send_signal(signal.SIGKILL)
        try:
            if self._exits:
                await asyncio.wait(self._exits)
        finally:
            self._channel.close()
            if self._remote is not None:
                await self._remote.end()

    def _placed(self, start: Start) -> Start:
        """Return `start` with how many ranks there are, and where they meet."""
        ranks = msgspec.structs.replace(start.ranks, world_size=self._world_size)
        if self._remote is not None:
            ranks = self._remote.place(ranks)
        elif self._world_size > 1 and not ranks.meeting_place:
            place = f"file://{self._folder / f'ranks-{self._epoch}'}"
            ranks = msgspec.structs.replace(ranks, meeting_place=place)
        return msgspec.structs.replace(start, ranks=ranks)

    def _others(self) -> list[Ready] | None:
        """Return what the ranks elsewhere reported, once all are ready."""
        return [] if self._remote is None else self._remote.ready()

    async def _spawn(self, rank: int) -> None:
        arguments = (
            f"--folder={self._folder}",
            f"--epoch={self._epoch}",
            f"--rank={rank}",
            f"--router={os.getpid()}",
        )
        process: asyncio.subprocess.Process | ForkedProcess | None = None
        if self._fork_server is not None:
            process = await self._fork_server.fork(arguments)
        if process is None:
            process = await self._start(rank, arguments)
        self._processes.append(process)
        exit = asyncio.create_task(process.wait())
        exit.add_done_callback(self._on_exit)
        self._exits.append(exit)

    async def _start(self, rank: int, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                env=environment(),
                # A session of its own, so that a Ctrl-C in the terminal reaches the router alone.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerDied(f"worker {rank} cannot be started: {error}") from error

    def _on_exit(self, exit: asyncio.Task[int]) -> None:
        self._exited = True
        self._channel.wake()

    def _send(self, message: Start | Step | Stop) -> None:
        try:
            self._channel.send(message)
        except (zmq.ZMQError, WireError) as error:
            raise WorkerDied(f"a worker takes no more steps: {error}") from error

    async def _receive(self) -> ToRouter | None:
        """Return the next message, or None where there may be news of the ranks elsewhere."""
        if (message := self._poll()) is None:
            await self.wait()
            message = self._poll()
        return message

    def _watch(self) -> None:
        """Check the deadline from now on, while results are due."""
        self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._on_look)

    def _on_look(self) -> None:
        self._look = None
        if self._loading or self._n_owed:
            self._is_due = True
            self._channel.wake()
            self._watch()

    def _check_deadline(self) -> None:
        """Raise WorkerDied where no result came in time."""
        self._is_due = False
        if how := self._deadline.missed(time.monotonic(), self._activity):
            what = "did not get ready" if self._loading else "gave no result"
            raise WorkerDied(f"the model worker {what} {how}")

    def _activity(self) -> processes.Activity:
        """Return what the ranks do, a mean of their processor time."""
        found = [self.activity()]
        if self._remote is not None:
            found += self._remote.activities()
        known = [one.seconds for one in found if one.seconds is not None]
        return processes.Activity(
            sum(known) / self._world_size if len(known) == len(found) else None,
            sum(one.read for one in found),
            any(one.stopped for one in found),
        )

    async def _wait_for_last_word(self) -> None:
        """Wait for frames that a rank sent before it exited. Raises WorkerDied if there are
        none."""
        now = time.monotonic()
        if self._last_word_by is None:
            self._last_word_by = now + LAST_WORD_SECONDS
        if not self._left_in_order() or now >= self._last_word_by:
            if any(task.done() and task.result() == PLACE_TAKEN for task in self._exits):
                raise PlaceTaken("another program took the port at which the ranks were to meet")
            raise WorkerDied(self._epitaph())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._last_word_by - now):
                await self._channel.wait()

    def _poll(self) -> ToRouter | None:
        try:
            return self._channel.poll()
        except WireError as error:
            raise WorkerDied(f"a worker sent a frame outside the wire: {error}") from error

    def _left_in_order(self) -> bool:
        return any(task.done() and task.result() == 0 for task in self._exits)

    def _epitaph(self) -> str:
        for rank, task in zip(self._ranks, self._exits, strict=False):
            if task.done():
                return f"worker {rank} {self._how_it_ended(task.result())}"
        return "a worker is gone"

    def _how_it_ended(self, status: int) -> str:
        if status >= 0:
            return f"exited with status {status}"
        why = cgroups.why_killed(self._n_killed) if status == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-status).name}{why}"


def _together(ready: list[Ready]) -> Ready:
    """Combine what the ranks report: the least that all of them can do, and all notes."""
    return msgspec.structs.replace(
        ready[0],
        pools=[
            min(pools, key=lambda one: one.n_blocks)
            for pools in zip(*(one.pools for one in ready), strict=True)
        ],
        device=", ".join(sorted({one.device for one in ready})),
        kv_cache_bytes=sum(one.kv_cache_bytes for one in ready),
        weight_bytes=sum(one.weight_bytes for one in ready),
        notes=list(dict.fromkeys(note for one in ready for note in one.notes)),
        # Rank 0 has measured them, for all.
        prefill_costs=max((one.prefill_costs for one in ready), key=len),
    )
