"""Restarts of the workers: when a group has died, the next one is launched, or one that waits for
that takes over."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from tgi_async.backoff import Backoff
from tgi_async.deadline import Deadline
from tgi_async.errors import StartError
from tgi_async.fork_server import ForkServer
from tgi_async.standby import Standby
from tgi_async.supervisor import (
    WORKER,
    NodeLost,
    PlaceTaken,
    RemoteRanks,
    WorkerDied,
    WorkerGroup,
    environment,
)
from tgi_async.temporary import PrivateFolder
from tgi_async.wire.messages import Loading, Ready, Start

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Attempts to launch the workers in a row before the engine fails."""


class Nodes(Protocol):
    """Other nodes that have a part of the ranks, as many each."""

    n_nodes: int
    """With this one."""

    def ranks(self, epoch: int) -> RemoteRanks:
        """Return those of an epoch, which are not started yet."""


class Restarts(NamedTuple):
    """How workers come back."""

    standby: bool = False
    """Whether another group is loaded while one serves on a CPU."""
    backoff: Backoff | None = None
    nodes: Nodes | None = None
    """The others, where there are several."""


class WorkerRestarter:
    """Launches one group after another, each in an epoch of its own. One serves: `group`."""

    def __init__(
        self,
        world_size: int,
        command: tuple[str, ...],
        backoff: Backoff,
        *,
        standby: bool = False,
        nodes: Nodes | None = None,
    ) -> None:
        """With `standby`, another group is loaded while one serves on a CPU. With `nodes`, these
        have their part of each group."""
        self._nodes = nodes
        self._world_size = world_size
        self._command = command
        self._backoff = backoff
        self._folder = PrivateFolder()
        self._deadline = Deadline()
        # It forks our own workers only.
        forks = command == WORKER
        self._fork_server = ForkServer(self.folder, environment()) if forks else None
        self._standby = Standby(lambda: self._make(self._deadline.of_others())) if standby else None
        self._epoch = 0
        self._ready_at: float | None = None
        self._was_of_use = False
        """Whether the last group finished a step."""
        self.group: WorkerGroup | None = None

    @property
    def folder(self) -> Path:
        """Folder for the sockets, and for files that the workers cannot put into the cache."""
        return Path(self._folder.name)

    async def launch(self, start: Start, on_loading: Callable[[Loading], None]) -> Ready:
        """Start the next group and wait until it is warm; where a node is lost meanwhile, or
        another program takes the port at which ranks meet, the one after that.

        Raises StartError if a worker refuses the model, WorkerDied if one dies meanwhile.
        """
        self._ready_at = None
        n_taken = 0
        while True:
            self.group = self._make(self._deadline)
            try:
                ready = await self.group.launch(start, on_loading)
            except NodeLost as error:
                log.error("%s while loading: it is waited for", error)
                await self.kill()
                continue
            except PlaceTaken as error:
                await self.kill()
                n_taken += 1
                if n_taken == MAX_ATTEMPTS:
                    raise
                log.warning("%s: they meet at another one", error)
                continue
            except BaseException:
                await self.kill()
                raise
            self._ready_at = time.monotonic()
            return ready

    def stand_by(self, start: Start, ready: Ready, after: float = 0.0) -> None:
        """Have a group loaded, from so many seconds on, where one is wanted and what serves, with
        `start`, did not report that it is on a GPU."""
        if self._standby is None:
            return
        if "cuda" in ready.device:
            log.warning(
                "--standby: on a GPU there is no room for a second worker; the next one finds its "
                "imports done, as without the flag"
            )
            return
        beside = max(1, ready.kv_cache_bytes)
        self._standby.keep(msgspec.structs.replace(start, beside=beside), after)

    async def relaunch(self, start: Start) -> Ready:
        """Have the next group serve after one died: that which waits for it, or else another one is
        launched, with longer waits if they die in a row.

        A refusal counts as a death: the model was served, and what lacks may lack for a moment.
        Raises what the last attempt does: StartError or WorkerDied.
        """
        lived = self._lived()
        if self._standby is not None and (found := await self._standby.take()) is not None:
            log.info("the standby worker takes over")
            self.group = found.group
            self.group.judge_by(self._deadline)
            self._ready_at = time.monotonic()
            self.stand_by(start, found.ready, self._backoff.after(lived))
            return found.ready
        ready = await self._relaunch(start, lived)
        self.stand_by(start, ready)
        return ready

    async def _relaunch(self, start: Start, lived: float) -> Ready:
        attempt = 0
        while True:
            attempt += 1
            await self._wait(lived)
            lived = 0.0
            try:
                return await self.launch(start, _log_loading)
            except (StartError, WorkerDied) as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                log.error(
                    "%s while loading (attempt %d of %d): it is started again, and requests wait",
                    error,
                    attempt,
                    MAX_ATTEMPTS,
                )

    async def kill(self) -> None:
        """End the workers at once, and wait until they are gone."""
        if self.group is not None:
            self._was_of_use = self.group.gave_results
            await self.group.kill()
            self.group = None

    async def stop(self, grace: float) -> None:
        """Stop the workers, within `grace` seconds, and remove all files."""
        if self._standby is not None:
            await self._standby.stop()
        if self.group is not None:
            await self.group.stop(grace)
            self.group = None
        if self._fork_server is not None:
            await self._fork_server.stop()
        self._folder.cleanup()

    def _make(self, deadline: Deadline) -> WorkerGroup:
        self._epoch += 1
        nodes = self._nodes
        here = self._world_size if nodes is None else self._world_size // nodes.n_nodes
        return WorkerGroup(
            self.folder,
            self._epoch,
            self._world_size,
            self._command,
            deadline,
            self._fork_server,
            range(here),
            None if nodes is None else nodes.ranks(self._epoch),
        )

    def _lived(self) -> float:
        """Return how long the last group did its work, in seconds. One that finished a step was of
        use: it did not die idle or of itself, and clients wait for the next one."""
        if self._was_of_use:
            return math.inf
        return 0.0 if self._ready_at is None else time.monotonic() - self._ready_at

    async def _wait(self, lived: float) -> None:
        wait = self._backoff.after(lived)
        if wait:
            log.warning("workers die in a row: waiting %.3g s before the next start", wait)
            await asyncio.sleep(wait)


def _log_loading(loading: Loading) -> None:
    if loading.seconds:
        log.info("%s: %.1f s", loading.phase, loading.seconds)
