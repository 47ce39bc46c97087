from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.doubles.fake_engine_run import DEADLINE
from tgi_async.cluster.beside import beside


class Broken(Exception):
    """What goes on beside has failed."""


async def fails() -> None:
    raise Broken


async def test_work_ends_with_the_context() -> None:
    ended = asyncio.Event()

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with beside(works()):
        await asyncio.sleep(0)
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_failure_is_the_end_of_the_context(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(Broken):
            async with beside(fails()):
                await asyncio.Event().wait()
    assert "failed: this one ends" in caplog.text
    # The cancellation was this one's own.
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_failure_is_told_to_whoever_stops_in_order_when_it_is_cancelled() -> None:
    async def inside() -> None:
        async with beside(fails()):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(Broken):
        await inside()


async def test_another_error_of_the_context_is_its_own() -> None:
    async def inside() -> None:
        async with beside(asyncio.sleep(600)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await inside()


async def test_whoever_cancels_the_context_cancels_it() -> None:
    async def inside() -> None:
        async with beside(asyncio.sleep(600)):
            await asyncio.Event().wait()

    task = asyncio.create_task(inside())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
