"""Where the server keeps what ends with it: sockets, and what cannot go into the cache."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping

from tgi_async.errors import StartError

log = logging.getLogger(__name__)

VARIABLES = ("TMPDIR", "TEMP", "TMP")
PLACES = ("/tmp", "/var/tmp", "/dev/shm")
"""The last one is there, and can be written, in containers that are read-only otherwise."""
LONGEST = 70
"""Bytes of a place's name: the names of sockets in a folder there have at most 107."""


def private_folder(
    environment: Mapping[str, str] = os.environ, places: tuple[str, ...] = PLACES
) -> tempfile.TemporaryDirectory[str]:
    """Make an empty folder that only this user can enter, in the first place where one can be made.

    Raises StartError.
    """
    wanted = [value for name in VARIABLES if (value := environment.get(name))]
    runtime = [value] if (value := environment.get("XDG_RUNTIME_DIR")) else []
    failures: list[str] = []
    for place in (*wanted, *places, *runtime, os.curdir):
        try:
            if len(os.fsencode(os.path.abspath(place))) > LONGEST:
                raise OSError(None, "its name is too long for a socket's")
            made = tempfile.TemporaryDirectory(
                prefix="tgi-async-", dir=os.path.abspath(place), ignore_cleanup_errors=True
            )
        except OSError as error:
            failures.append(f"{place} ({error.strerror})")
            continue
        if wanted and place not in wanted:
            log.warning("temporary files go to %s, not to %s", place, ", ".join(failures))
        return made
    raise StartError(
        f"No folder for the workers' sockets can be made in {', '.join(failures)}. Set TMPDIR to a "
        "folder that can be written and has a short path."
    )
