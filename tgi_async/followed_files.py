"""What files say, read again whenever they change.

Kubernetes and certificate managers replace files of a running server: a secret's by a link that
is swapped, others in place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

from tgi_async.aside import aside
from tgi_async.errors import StartError

log = logging.getLogger(__name__)

RELOAD_SECONDS = 5.0
"""Time between two looks at the files."""

ASIDE = "followed files"

T = TypeVar("T")
Stamp = tuple[int, int, int] | None


class FollowedFiles(Generic[T]):
    """What `load` made of the files: `current`. Raises StartError as `load` does.

    `name` is what they are called in the log, and `then` is what follows from a change.
    """

    def __init__(
        self, paths: Sequence[str], load: Callable[[], T], *, name: str, then: str
    ) -> None:
        self._paths = paths
        self._load = load
        self._name, self._then = name, then
        self._seen = self._stamps()
        self.current = load()

    async def follow(self) -> NoReturn:
        """Replace `current` after each change of the files; what cannot be used is logged."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            # Before the files are read: what changes meanwhile is seen the next time.
            seen = await aside(self._stamps, ASIDE)
            if seen == self._seen:
                continue
            self._seen = seen
            try:
                self.current = await aside(self._load_again, ASIDE)
            except StartError as error:
                log.error("%s changed; the one before stays in use: %s", self._name, error)
            else:
                log.info("%s changed; %s", self._name, self._then)

    def _load_again(self) -> T:
        for path in self._paths:
            # Reading a pipe would wait for somebody to write.
            if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
                raise StartError(f"{path} is not a regular file any more.")
        return self._load()

    def _stamps(self) -> list[Stamp]:
        """Return what changes when a file, or a link on the way to it, is replaced or written."""
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
