"""Python processes of the server's own.

The working directory is never on their module path: a file `safetensors.py` or a folder `workers/`
where the user happens to stand must not run instead of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def command(module: str) -> tuple[str, ...]:
    """Return the command that runs `module` as a program, without the working directory."""
    return (sys.executable, "-P", "-m", module)


def environment(inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `inherited`, less what such a process cannot work with, and with what it lacks.

    Python reads an empty entry of PYTHONPATH, as `export PYTHONPATH=$PYTHONPATH:/x` often leaves
    one, as the working directory. transformers needs its docstrings, which PYTHONOPTIMIZE=2 takes.
    """
    made = dict(inherited)
    entries = [entry for entry in made.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    if entries:
        made["PYTHONPATH"] = os.pathsep.join(entries)
    # numpy makes as many threads as there are processors when it is imported, and has nothing here
    # for them to do.
    made.setdefault("OPENBLAS_NUM_THREADS", "1")
    if made.get("PYTHONOPTIMIZE", "0") not in ("", "0"):
        made["PYTHONOPTIMIZE"] = "1"
    return made
