"""Work that goes on beside a context, and must not end before it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `works` until the end of the context. Where one fails, what is in the context is
    cancelled, and the context raises what that one did: without it a server would go on that hears
    nobody."""
    owner = asyncio.current_task()
    assert owner is not None
    failures: list[BaseException] = []

    def on_end(task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("what hears or tells the other nodes failed: this one ends", exc_info=error)
        failures.append(error)
        owner.cancel()

    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(on_end)
    try:
        yield
    except asyncio.CancelledError:
        if failures:
            owner.uncancel()
            raise failures[0] from None
        raise
    finally:
        for task in tasks:
            task.remove_done_callback(on_end)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    # Whoever stops in order when it is cancelled has done so.
    if failures:
        raise failures[0]
