"""Restarts of the workers: when a group has died, the next one is launched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from tgi_async.backoff import Backoff
from tgi_async.deadline import Deadline
from tgi_async.fork_server import ForkServer
from tgi_async.supervisor import WORKER, WorkerDied, WorkerGroup, environment
from tgi_async.temporary import PrivateFolder
from tgi_async.wire.messages import Loading, Ready, Start

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Attempts to launch the workers in a row before the engine fails."""


class WorkerRestarter:
    """Launches one group after another, each in an epoch of its own. At most one lives: `group`."""

    def __init__(self, world_size: int, command: tuple[str, ...], backoff: Backoff) -> None:
        self._world_size = world_size
        self._command = command
        self._backoff = backoff
        self._folder = PrivateFolder()
        self._deadline = Deadline()
        # It forks our own workers only.
        forks = command == WORKER
        self._fork_server = ForkServer(self.folder, environment()) if forks else None
        self._epoch = 0
        self._ready_at: float | None = None
        self.group: WorkerGroup | None = None

    @property
    def folder(self) -> Path:
        """Folder for the sockets, and for files that the workers cannot put into the cache."""
        return Path(self._folder.name)

    async def launch(self, start: Start, on_loading: Callable[[Loading], None]) -> Ready:
        """Start the next group and wait until it is warm.

        Raises StartError if a worker refuses the model, WorkerDied if one dies meanwhile.
        """
        self._epoch += 1
        self._ready_at = None
        self.group = WorkerGroup(
            self.folder,
            self._epoch,
            self._world_size,
            self._command,
            self._deadline,
            self._fork_server,
        )
        try:
            ready = await self.group.launch(start, on_loading)
        except BaseException:
            await self.kill()
            raise
        self._ready_at = time.monotonic()
        return ready

    async def relaunch(self, start: Start, *, worked: bool = False) -> Ready:
        """Start the next group after one died, with longer waits if they die in a row.

        One that `worked` has not died in a row, however short it lived: its work goes on at once.

        Raises StartError if a worker refuses the model, WorkerDied if it dies each time.
        """
        attempt = 0
        if worked:
            self._backoff.clear()
        while True:
            attempt += 1
            await self._wait()
            try:
                return await self.launch(start, _log_loading)
            except WorkerDied as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                log.error("%s while loading (attempt %d of %d)", error, attempt, MAX_ATTEMPTS)

    async def kill(self) -> None:
        """End the workers at once, and wait until they are gone."""
        if self.group is not None:
            await self.group.kill()
            self.group = None

    async def stop(self, grace: float) -> None:
        """Stop the workers, within `grace` seconds, and remove all files."""
        if self.group is not None:
            await self.group.stop(grace)
            self.group = None
        if self._fork_server is not None:
            await self._fork_server.stop()
        self._folder.cleanup()

    async def _wait(self) -> None:
        lived = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        self._ready_at = None
        wait = self._backoff.after(lived)
        if wait:
            log.warning("workers die in a row: waiting %.3g s before the next start", wait)
            await asyncio.sleep(wait)


def _log_loading(loading: Loading) -> None:
    if loading.seconds:
        log.info("%s: %.1f s", loading.phase, loading.seconds)
