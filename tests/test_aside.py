from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from tgi_async.aside import aside

NEVER = """
import asyncio, time
from tgi_async.aside import aside

async def main():
    asking = asyncio.create_task(aside(lambda: time.sleep(600), "asks"))
    await asyncio.sleep(0)
    asking.cancel()

asyncio.run(main())
"""


async def test_what_it_returns_and_raises_is_passed_on() -> None:
    assert await aside(lambda: threading.current_thread().name, "asks") == "asks"
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0, "asks")


async def test_the_loop_goes_on_meanwhile() -> None:
    goes_on = threading.Event()
    asking = asyncio.create_task(aside(goes_on.wait, "asks"))
    await asyncio.sleep(0)
    goes_on.set()
    assert await asking


def test_the_end_of_the_process_does_not_wait_for_it() -> None:
    subprocess.run((sys.executable, "-c", NEVER), check=True, timeout=60)
