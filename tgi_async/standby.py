"""Workers that are loaded and wait for those that serve to die.

They have the sockets of an epoch of their own, in which nothing is sent until they are taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from tgi_async.backoff import Backoff
from tgi_async.errors import StartError
from tgi_async.supervisor import WorkerDied, WorkerGroup
from tgi_async.wire.messages import Loading, Ready, Start

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Attempts to have a standby, in a row, before there is none."""


class StandbyWorkers(NamedTuple):
    """A group that waits, and what it reported."""

    group: WorkerGroup
    ready: Ready


class Standby:
    """Keeps a group waiting."""

    def __init__(self, make: Callable[[], WorkerGroup]) -> None:
        """`make` returns the next group, with a deadline of its own."""
        self._make = make
        self._keeping: asyncio.Task[None] | None = None
        self._waiting: StandbyWorkers | None = None
        self._taken: WorkerGroup | None = None
        self._loading: asyncio.Future[None] | None = None
        """Done when the group that is being loaded is, or has failed."""

    @property
    def pids(self) -> list[int]:
        """The processes of the group that waits."""
        return [] if self._waiting is None else self._waiting.group.pids

    def keep(self, start: Start, after: float = 0.0) -> None:
        """Have a group that waits, from so many seconds on."""
        assert self._keeping is None
        self._taken = None
        self._keeping = asyncio.create_task(self._keep(start, after))

    async def take(self) -> StandbyWorkers | None:
        """Return the group that waits, or once it is loaded the one that is being loaded, if there
        is one; there is none any more then."""
        if self._loading is not None:
            # It has a head start over any other.
            await asyncio.wait({self._loading})
        waiting = self._waiting
        if waiting is not None and waiting.group.lives:
            self._taken = waiting.group
        await self.stop()
        return waiting if self._taken is not None else None

    async def stop(self) -> None:
        """End the group that waits, or is being started, and start no other one."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            self._keeping = self._loading = None

    async def _keep(self, start: Start, after: float) -> None:
        await asyncio.sleep(after)
        backoff = Backoff()
        attempt = 0
        while attempt < MAX_ATTEMPTS:
            attempt += 1
            group = self._make()
            self._loading = loading = asyncio.get_running_loop().create_future()
            try:
                self._waiting = StandbyWorkers(group, await group.launch(start, _ignore))
                loading.set_result(None)
                log.info("a standby worker is loaded, and takes over when the one that serves dies")
                attempt = 0
                log.warning("the standby worker is gone: %s", await group.ended())
            except StartError as error:
                log.warning("there is no standby worker: %s", error)
                return
            except WorkerDied as error:
                log.warning("the standby worker: %s", error)
            finally:
                if not loading.done():
                    loading.set_result(None)
                await self._put_away(group)
            await asyncio.sleep(backoff.after(0.0))
        log.warning("there is no standby worker: %d died while they were loaded", MAX_ATTEMPTS)

    async def _put_away(self, group: WorkerGroup) -> None:
        """Kill the group, unless it was taken."""
        self._waiting = None
        if group is not self._taken:
            await group.kill()


def _ignore(loading: Loading) -> None:
    """Phases of a start that nobody waits for."""
