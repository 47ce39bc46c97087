"""Where prepared images lie, and how much of it they may take."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from tgi_async import cgroups
from tgi_async.errors import StartError
from tgi_async.temporary import PrivateFolder

SHARED_MEMORY = "/dev/shm"
LEAST = 256 << 20
"""Free bytes for which shared memory is chosen: a container may have 64 MB of it."""
MOST = 2 << 30
"""Most bytes, where nobody asks for more."""
SHARE = 8
"""By default they take at most one part of so many of the free memory."""
MEMINFO = Path("/proc/meminfo")


def folder_in(scratch: str, closing: ExitStack) -> str:
    """Return a new folder for prepared images, which `closing` removes: in shared memory, or in
    the server's folder `scratch` where there is too little of it.

    A folder in shared memory that a killed server left is removed by the next one.
    """
    with suppress(OSError, StartError):
        if shutil.disk_usage(SHARED_MEMORY).free >= LEAST:
            return closing.enter_context(PrivateFolder({}, (SHARED_MEMORY,), last=()))
    folder = os.path.join(scratch, "images")
    os.mkdir(folder)
    closing.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def default_bytes(folder: str, meminfo: Path = MEMINFO) -> int:
    """Return how many bytes prepared images may take in `folder`, where the operator does not say
    it."""
    free = [group.left for group in cgroups.memory_limits()]
    with suppress(OSError, ValueError, StopIteration):
        lines = meminfo.read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(found.split()[1]) * 1024)
    return min([MOST, shutil.disk_usage(folder).free // 2, *(left // SHARE for left in free)])
