"""Tell a terminal that is closed from somebody who sends SIGHUP.

The kernel sends SIGHUP for a closed terminal, but so do shells, to their jobs: the sender says
nothing. What tells is that the terminal is gone before anybody gets the signal.
"""

from __future__ import annotations

import errno
import os


class Terminal:
    """The terminal that controls this process, if there is one when this is made."""

    def __init__(self, *, had: bool | None = None) -> None:
        self.had = _problem() == 0 if had is None else had
        """Whether there was one."""

    @property
    def is_gone(self) -> bool:
        """Whether it was closed since."""
        return self.had and _problem() == errno.ENXIO


def _problem() -> int:
    """Return the error of opening the terminal; 0 if there is none, ENXIO if there is no
    terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        return error.errno or errno.EIO
    return 0
