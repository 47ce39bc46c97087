"""SLURM's lists of hosts, such as `gpu[003-010,12]-ib,login1`."""

from __future__ import annotations

import re

from tgi_async.errors import StartError

FIRST = re.compile(r"(?:[^\[\],]|\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\])+", re.ASCII)
"""The first item: texts and brackets with numbers and ranges, up to a comma outside of these."""
RANGES = re.compile(r"\[([0-9]+)[^\]]*\]")


def first(hosts: str) -> str:
    """Return the first host, whose numbers keep their zeros. Raises StartError for what is no
    list."""
    found = FIRST.match(hosts)
    if found is None or hosts[found.end() : found.end() + 1] not in ("", ","):
        raise StartError(
            f"The environment variable SLURM_STEP_NODELIST is no list of hosts: {hosts!r}. Give "
            "--master-addr, a name or an address of the leader."
        )
    return RANGES.sub(r"\1", found[0])
