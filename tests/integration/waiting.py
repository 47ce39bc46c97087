"""Waiting for what tells nobody when it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

SECONDS = 60
PAUSE = 0.02


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until this holds. Raises TimeoutError after a minute."""
    async with asyncio.timeout(SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(PAUSE)
