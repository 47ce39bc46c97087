"""Start Python processes of the server's own.

The working directory is never on their module path: a file `safetensors.py` or a folder `workers/`
in the working directory must not run instead of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

RUNNING_STATES = "RDt"
"""Of /proc/<pid>/stat: running or about to, waiting for a disk, stopped by a debugger."""


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


def processor_seconds(pids: Iterable[int]) -> float | None:
    """Return the processor time that these processes and their children have used, in seconds.

    None where one of them is about to run, waits for a disk or is being debugged, and where the
    kernel does not say.
    """
    ticks = 0
    todo = list(pids)
    try:
        while todo:
            pid = todo.pop()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] in RUNNING_STATES:
                return None
            # Used by the process, and by its children that have ended.
            ticks += sum(map(int, fields[11:15]))
            for thread in os.listdir(f"/proc/{pid}/task"):
                children = Path(f"/proc/{pid}/task/{thread}/children").read_text()
                todo += map(int, children.split())
    except (OSError, ValueError, IndexError):
        return None
    # No process has used none.
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None
