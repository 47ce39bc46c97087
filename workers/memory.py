"""How much memory the KV cache may take."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_MOST = 4 * 2**30
CPU_SHARE = 3
"""On a CPU the cache takes at most one part in CPU_SHARE of what is free, and CPU_MOST bytes."""
CUDA_SHARE = 0.9
"""Of a GPU's memory, for weights, activations and cache together."""


def available_on_cpu() -> int:
    """Bytes that can still be had: of the machine, or of this process's cgroup if that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines() if _linux() else []
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024 if fields else CPU_MOST * CPU_SHARE
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free


def for_cache(device: torch.device) -> int:
    """Bytes for the KV cache, once the model is loaded and has run at its worst shape."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
        return int(free + unused - (1 - CUDA_SHARE) * total)
    return min(CPU_MOST, available_on_cpu() // CPU_SHARE)


def _linux() -> bool:
    return Path("/proc/meminfo").exists()
