"""Start Python processes of the server's own.

The working directory is never on their module path: a file `safetensors.py` or a folder `workers/`
in the working directory must not run instead of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

RUNNING_STATES = "RDt"
"""Of /proc/<pid>/stat: running or about to, waiting for a disk, stopped by a debugger."""
STOPPED = "T"
"""Stopped by a signal."""


def command(module: str) -> tuple[str, ...]:
    """Return the command that runs `module` as a program, without the working directory."""
    return (sys.executable, "-P", "-m", module)


def environment(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `inherited` without variables that break such a process, and with those that it needs.

    Python reads an empty entry of PYTHONPATH, as `export PYTHONPATH=$PYTHONPATH:/x` often leaves
    one, as the working directory. transformers needs its docstrings, which PYTHONOPTIMIZE=2 takes.
    """
    made = dict(inherited)
    entries = [entry for entry in made.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    if entries:
        made["PYTHONPATH"] = os.pathsep.join(entries)
    # numpy starts as many threads as there are processors when it is imported, which are not needed
    # here.
    made.setdefault("OPENBLAS_NUM_THREADS", "1")
    if made.get("PYTHONOPTIMIZE", "0") not in ("", "0"):
        made["PYTHONOPTIMIZE"] = "1"
    return made


class Activity(NamedTuple):
    """What processes and their children do."""

    seconds: float | None
    """Processor time that they have used. None where one of their threads is about to run, waits
    for a disk or is being debugged, and where the kernel does not say."""
    read: int
    """Bytes that they have read from files, and had read into their memory."""
    stopped: bool
    """Whether one of them, not counting children, is stopped by a signal (SIGSTOP)."""


UNKNOWN = Activity(None, 0, False)


def activity(pids: Sequence[int]) -> Activity:
    """Return what these processes do."""
    ticks = read = 0
    unsure = stopped = False
    todo = list(pids)
    try:
        while todo:
            pid = todo.pop()
            process = Path(f"/proc/{pid}")
            states: set[str] = set()
            for thread in os.listdir(process / "task"):
                states.add(_fields(process / "task" / thread)[0])
                todo += map(int, (process / "task" / thread / "children").read_text().split())
            unsure |= not states.isdisjoint(RUNNING_STATES)
            stopped |= pid in pids and states == {STOPPED}
            fields = _fields(process)
            # Used by the process, and by its children that have ended.
            ticks += sum(map(int, fields[11:15]))
            read += int(fields[9]) * os.sysconf("SC_PAGE_SIZE") + _bytes_read(process)
    except (OSError, ValueError, IndexError):
        return UNKNOWN._replace(stopped=stopped)
    # No process has used none.
    known = bool(ticks) and not unsure
    return Activity(ticks / os.sysconf("SC_CLK_TCK") if known else None, read, stopped)


def _fields(folder: Path) -> list[str]:
    """Return the fields of a `stat` file, from the state on."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _bytes_read(process: Path) -> int:
    """Return what read(2) returned to a process, in bytes; 0 where that is hidden."""
    try:
        return int((process / "io").read_text().split()[1])
    except OSError:
        return 0
