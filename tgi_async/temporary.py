"""Temporary files of the server: sockets, and what cannot go into the cache.

A folder is locked while its server lives. One that is not was left by a server that was killed,
and the next server in the same place removes it: in a pod that is restarted such folders would fill
the volume, or the memory.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress

from tgi_async.errors import StartError

log = logging.getLogger(__name__)

VARIABLES = ("TMPDIR", "TEMP", "TMP")
PLACES = ("/tmp", "/var/tmp", "/dev/shm")
"""Candidate folders. The last one exists, and is writable, in containers that are read-only
otherwise."""
PREFIX = "tgi-async."
LONGEST = 70
"""Most bytes of a folder's name: the names of sockets in it may have 107."""
NEW_SECONDS = 60.0
"""How long a folder without a lock may be one that is about to get it, in seconds."""


class PrivateFolder:
    """An empty folder that only this user can enter, in the first of PLACES where one can be made.

    `last` is where it is tried after all others. Raises StartError if there is none.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        places: tuple[str, ...] = PLACES,
        *,
        last: tuple[str, ...] = (os.curdir,),
    ) -> None:
        self._folder = _made(environment, places, last)
        self.name = self._folder.name
        self._lock = os.open(self.name, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove it, with all that is in it. May be called repeatedly."""
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _made(
    environment: Mapping[str, str], places: tuple[str, ...], last: tuple[str, ...]
) -> tempfile.TemporaryDirectory[str]:
    wanted = [value for name in VARIABLES if (value := environment.get(name))]
    runtime = [value] if (value := environment.get("XDG_RUNTIME_DIR")) else []
    failures: list[str] = []
    for place in (*wanted, *places, *runtime, *last):
        try:
            if len(os.fsencode(os.path.abspath(place))) > LONGEST:
                raise OSError(None, "its name is too long for a socket's")
            with suppress(OSError):  # a folder may be writable and not readable
                _remove_what_was_left(place)
            made = tempfile.TemporaryDirectory(
                prefix=PREFIX, dir=os.path.abspath(place), ignore_cleanup_errors=True
            )
        except OSError as error:
            failures.append(f"{place} ({error.strerror})")
            continue
        if wanted and place not in wanted:
            _warn(f"temporary files go to {place}, not to {', '.join(failures)}")
        return made
    raise StartError(
        f"No folder for the workers' sockets can be made in {', '.join(failures)}. Set TMPDIR to a "
        "folder that can be written and has a short path."
    )


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once, though a server makes several folders."""
    log.warning(message)


def _remove_what_was_left(place: str) -> None:
    """Remove the folders that this user's dead servers left. Raises OSError."""
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                new = time.time() - status.st_ctime < NEW_SECONDS
                if status.st_uid == os.geteuid() and not new and not _is_locked(entry.path):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_locked(folder: str) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True  # gone by now
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
