"""How much memory the KV cache may take."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

CPU_MOST = 4 * 2**30
CPU_SHARE = 3
"""On a CPU the cache takes at most one part in CPU_SHARE of what is free, and CPU_MOST bytes."""
CUDA_SHARE = 0.9
"""Of a GPU's memory, for weights, activations and cache together."""


def available_on_cpu() -> int:
    """Bytes that can still be had: of the machine, or of this process's cgroup if that is less."""
    free = CPU_MOST * CPU_SHARE
    if MEMINFO.exists():
        free = int(_fields(MEMINFO.read_text(), ":")["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        used = int((CGROUP / "memory.current").read_text())
        # The kernel counts files that were read as used, and drops them when it needs the memory.
        files = int(_fields((CGROUP / "memory.stat").read_text(), " ")["inactive_file"])
        free = min(free, max(0, int(most) - used + files))
    return free


def for_cache(device: torch.device, fraction: float = 1.0) -> int:
    """Bytes for the KV cache, once the model is loaded and has run at its worst shape; of a GPU's
    memory this `fraction` is ours. What graphs take comes out of the share that stays free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
        return int(free + unused - (1 - CUDA_SHARE * fraction) * total)
    return min(CPU_MOST, available_on_cpu() // CPU_SHARE)


def _fields(text: str, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def give_back() -> None:
    """Return freed memory to the system, as after loading: the allocators are set to keep it."""
    torch.cuda.empty_cache()  # nothing happens where CUDA is not in use
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others need it not
    if trim is not None:
        trim(0)
