from __future__ import annotations

import asyncio
import gc

import pytest

from tgi_async.images.flights import Flights


class Work:
    def __init__(self) -> None:
        self.n_begun = self.n_cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.n_begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.n_begun


async def test_what_is_asked_for_twice_is_done_once() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    waits = [asyncio.create_task(flights.join("a", work)) for _ in range(3)]
    await asyncio.sleep(0)
    assert "a" in flights
    work.go.set()
    assert await asyncio.gather(*waits) == [1, 1, 1]
    assert await flights.join("a", work) == 2
    assert "a" not in flights


async def test_who_is_cancelled_takes_nobody_along() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    first, second = (asyncio.create_task(flights.join("a", work)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    assert first.cancelled()
    work.go.set()
    assert await second == 1
    assert (work.n_begun, work.n_cancelled) == (1, 0)


async def test_what_nobody_waits_for_ends_and_can_be_asked_for_again() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    waits = [asyncio.create_task(flights.join("a", work)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for wait in waits:
        wait.cancel()
    await asyncio.sleep(0)
    again = asyncio.create_task(flights.join("a", work))
    await asyncio.sleep(0.01)
    assert (work.n_begun, work.n_cancelled) == (2, 1)
    work.go.set()
    assert await again == 2


async def test_a_failure_is_everybodys_and_not_kept() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    work.error = ValueError("no")
    waits = [asyncio.create_task(flights.join("a", work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go.set()
    assert [type(one) for one in await asyncio.gather(*waits, return_exceptions=True)] == [
        ValueError,
        ValueError,
    ]
    work.error = None
    assert await flights.join("a", work) == 2


async def test_a_failure_that_nobody_waits_for_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flights: Flights[int] = Flights()

    async def fail() -> int:
        try:
            await asyncio.sleep(9)
        finally:
            raise ValueError("no")

    wait = asyncio.create_task(flights.join("a", fail))
    await asyncio.sleep(0.01)
    wait.cancel()
    await asyncio.sleep(0.01)
    gc.collect()
    assert caplog.text == ""


async def test_all_end_at_the_end() -> None:
    flights: Flights[int] = Flights()
    work = Work()
    wait = asyncio.create_task(flights.join("a", work))
    await asyncio.sleep(0.01)
    flights.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    assert work.n_cancelled == 1
