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
    """Return `inherited`, less what would put the working directory on the path again.

    Python reads an empty entry of PYTHONPATH, as `export PYTHONPATH=$PYTHONPATH:/x` often leaves
    one, as the working directory.
    """
    made = dict(inherited)
    entries = [entry for entry in made.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    if entries:
        made["PYTHONPATH"] = os.pathsep.join(entries)
    return made
