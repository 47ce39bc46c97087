"""Work that several wait for, done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class _Flight(Generic[R]):
    def __init__(self, task: asyncio.Task[R]) -> None:
        self.task = task
        self.n_waiting = 0


class Flights(Generic[R]):
    """What is under way, by key. Who waits may be cancelled: the work goes on as long as anyone
    waits for it."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[R]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Return the result of what is under way with this `key`, or else of `work`. Its exception
        is raised in all who wait."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
            flight.task.add_done_callback(partial(self._ended, key, flight))
        flight.n_waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.n_waiting -= 1
            if not flight.n_waiting and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
            del flight  # Its exception holds this frame.

    def _ended(self, key: Hashable, flight: _Flight[R], task: asyncio.Task[R]) -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # Nobody may be left who waits for it.

    def _forget(self, key: Hashable, flight: _Flight[R]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def cancel(self) -> None:
        """Cancel all; who waits is cancelled too."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
