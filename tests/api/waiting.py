"""Waiting for what tells nobody when it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx


async def until(condition: Callable[[], bool]) -> None:
    """Wait until this holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_metric(live: httpx.AsyncClient, line: str) -> None:
    """Wait until `/metrics` has this line."""
    async with asyncio.timeout(10):
        while f"\n{line}\n" not in (await live.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
