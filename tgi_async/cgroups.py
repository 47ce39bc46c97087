"""Limits that control groups (cgroups) of Linux set to this process.

Version 2 has one hierarchy of groups, version 1 one a controller; a machine may have both. A limit
of any group on the way from this process's up to the root holds. In a container the way often ends
at the container's own group: with a namespace the kernel says `/` for it, without one its full path
on the machine, of which the mount shows the lower part.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")
VMSTAT = Path("/proc/vmstat")
UNLIMITED = 1 << 62
"""Version 1 has no word for it, but a number about 2^63."""
FILES = ("inactive_file", "active_file", "file_mapped")
TOTAL_FILES = ("total_inactive_file", "total_active_file", "total_mapped_file")
"""With those of the groups below, which version 2 always counts in."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit of one group, in bytes: how much of it is used, and how much of that are unmapped
    files, which the kernel drops when it needs the memory."""

    group: Path
    limit: int
    used: int
    files: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used + self.files)

    def __str__(self) -> str:
        return f"the control group {self.group} is limited to {gigabytes(self.limit)}"


def gigabytes(size: int) -> str:
    """Format `size` bytes for a message."""
    return f"{size / 1e9:.2f} GB"


def memory_limits(proc: Path = PROC) -> list[MemoryLimit]:
    """Return the limits on this process's memory, of its own groups and of those above."""
    new, old = _groups("", proc), _groups("memory", proc)
    return [
        *_memory_limits(new, ("memory.max", "memory.high"), "memory.current", FILES),
        *_memory_limits(old, ("memory.limit_in_bytes",), "memory.usage_in_bytes", TOTAL_FILES),
    ]


def n_killed(vmstat: Path = VMSTAT) -> int:
    """Count the processes that the kernel has killed since it started because memory ran out."""
    found = re.search(r"^oom_kill (\d+)$", _text(vmstat), re.MULTILINE)
    return int(found[1]) if found else 0


def why_killed(before: int) -> str:
    """Return the reason to add where a process was killed, if it was for lack of memory: if
    `n_killed` has grown since `before`."""
    if n_killed() == before:
        return ""
    limits = sorted(memory_limits(), key=lambda one: one.limit)
    where = str(limits[0]) if limits else "this machine has no more"
    return f", because memory ran out: {where}. Allow more, or serve a smaller model"


def cpu_quota(proc: Path = PROC) -> float | None:
    """Return how many processors' time this process and the others of its group may take together;
    None where there is no limit."""
    quotas = []
    for group in _groups("", proc):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        quotas.append(_share(quota, period))
    for group in _groups("cpu", proc):
        quotas.append(_share(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")))
    least = min(quotas, default=math.inf)
    return None if least == math.inf else least


def _memory_limits(
    groups: Iterator[Path], limits: tuple[str, ...], used: str, files: tuple[str, str, str]
) -> Iterator[MemoryLimit]:
    for group in groups:
        known = [n for name in limits if (n := _number(_text(group / name))) is not None]
        now = _number(_text(group / used))
        stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        # There may be groups above the visible ones: version 1 says what they allow.
        known += [int(stat.get("hierarchical_memory_limit", UNLIMITED))]
        least = min(known)
        if now is None or least >= UNLIMITED:
            continue
        inactive, active, mapped = (int(stat.get(name, 0)) for name in files)
        yield MemoryLimit(group, least, now, max(inactive, inactive + active - mapped))


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups, its own first: of version 2, or of version 1's
    hierarchy with this `controller`."""
    paths = [
        path
        for line in _text(proc / "cgroup").splitlines()
        for number, names, path in [line.split(":", 2)]
        if (controller in names.split(",") if controller else (number, names) == ("0", ""))
    ]
    if not paths:
        return
    for root, mount in _mounts(controller, proc):
        inside = _below(paths[0], root)
        own = mount / inside if (mount / inside).is_dir() else mount
        yield own
        while own != mount:
            own = own.parent
            yield own


def _mounts(controller: str, proc: Path) -> Iterator[tuple[str, Path]]:
    """Yield each mount of a hierarchy, and which of its groups is the root of the mount."""
    for line in _text(proc / "mountinfo").splitlines():
        fields, _, end = line.partition(" - ")
        kind, _, options = end.split(" ", 2)
        wanted = controller in options.split(",") if controller else True
        if kind == ("cgroup" if controller else "cgroup2") and wanted:
            root, mount = (_unescaped(field) for field in fields.split(" ")[3:5])
            yield root, Path(mount)


def _below(path: str, root: str) -> str:
    """Return the path of the group `path` relative to `root`; "" if it is not below it."""
    if ".." in path.split("/"):
        return ""
    if root == "/":
        return path.lstrip("/")
    return path[len(root) :].lstrip("/") if f"{path}/".startswith(f"{root}/") else ""


def _unescaped(field: str) -> str:
    """Decode the octal escapes of mountinfo, as of spaces."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _share(quota: str, period: str) -> float:
    """Return the quota in processors; `max`, -1 and what is not there are no limit."""
    time, of = _number(quota), _number(period)
    return time / of if time and of and time > 0 else math.inf


def _number(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() else None


def _text(path: Path) -> str:
    """Read a file; "" where it cannot be read, as in a sandbox that hides it."""
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""
