"""Compute how much memory the KV cache may take."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tgi_async import cgroups
from tgi_async.cgroups import gigabytes

MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")

CPU_MOST = 4 * 2**30
CPU_SHARE = 3
"""On a CPU the cache takes at most one part in CPU_SHARE of what is free, and CPU_MOST bytes."""
OTHERS = 256 * 2**20
"""Bytes that always stay free: the processes that check grammars and render templates start later
(60 and 12 MB each), and the router grows with its clients."""
CUDA_SHARE = 0.9
"""Share of a GPU's memory for weights, activations and cache together."""


class Room(NamedTuple):
    """Available bytes, and the limit that determines them."""

    size: int
    because: str


def room_on_cpu(swap: bool = False) -> Room:
    """Return the least that the machine, a control group and the limits of this process leave; with
    `swap`, what can be swapped out counts too."""
    return min(_rooms(swap), key=lambda room: room.size)


def _rooms(swap: bool) -> Iterator[Room]:
    machine = _fields(MEMINFO.read_text(), ":") if MEMINFO.exists() else {}
    disk = _kilobytes(machine.get("SwapFree", "0")) if swap else 0
    if "MemAvailable" in machine:
        size = _kilobytes(machine["MemAvailable"])
        yield Room(size + disk, f"this machine has {gigabytes(size)} available")
    else:
        yield Room(CPU_MOST * CPU_SHARE, "this machine does not say how much it has")
    for one in cgroups.memory_limits():
        taken = gigabytes(one.used - one.files)
        yield Room(one.left + disk, f"{one}, of which {taken} are taken")
    pages = [int(field) for field in STATM.read_text().split()] if STATM.exists() else []
    # Of its address space a process has more than it uses: that of files, stacks and reserves.
    for name, limit, at in (("-v", resource.RLIMIT_AS, 0), ("-d", resource.RLIMIT_DATA, 5)):
        most = resource.getrlimit(limit)[0]
        if pages and most != resource.RLIM_INFINITY:
            size = pages[at] * resource.getpagesize()
            yield Room(
                max(0, most - size),
                f"`ulimit {name}` leaves each process {gigabytes(most)}, of which this one has "
                f"{gigabytes(size)}",
            )


def for_cache(device: torch.device, fraction: float = 1.0) -> int:
    """Return the bytes for the KV cache, once the model is loaded and has run at its largest shape;
    this `fraction` of a GPU's memory is ours. Graphs take memory of the share that stays free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
        return int(free + unused - (1 - CUDA_SHARE * fraction) * total)
    free = room_on_cpu().size
    return max(0, min(CPU_MOST, free // CPU_SHARE, free - OTHERS))


def _kilobytes(text: str) -> int:
    """Parse `5 kB` to bytes."""
    return int(text.split()[0]) * 1024


def _fields(text: str, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def give_back() -> None:
    """Return freed memory to the system, as after loading: the allocators are set to keep it."""
    torch.cuda.empty_cache()  # nothing happens where CUDA is not in use
    trim = getattr(
        ctypes.CDLL(None), "malloc_trim", None
    )  # only glibc has it, and only glibc needs it
    if trim is not None:
        trim(0)
