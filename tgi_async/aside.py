"""Calls that may never return, in threads that the end of the server does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


async def aside(work: Callable[[], R], name: str) -> R:
    """Return what `work` returns or raise what it raises, in a thread of this `name`: a file system
    that is lost may never answer, nor a server of names.

    Unlike `asyncio.to_thread`, whose threads are waited for at the end.
    """
    done: Future[R] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    waiting = asyncio.wrap_future(done)
    done.set_running_or_notify_cancel()  # so that nobody cancels it under the thread
    threading.Thread(target=run, name=name, daemon=True).start()
    return await waiting
