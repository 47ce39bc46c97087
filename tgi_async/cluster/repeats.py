"""Lines about what goes wrong again and again, each once a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_SECONDS = 60.0
MOST = 64
"""Different lines that are told in that time; strangers may cause as many as they like."""


class Repeats:
    """Tells a line when it is new, and again when it has been so for a minute."""

    def __init__(
        self, tell: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}
        """When each line was told, and how often it came since."""

    def tell(self, line: str) -> None:
        now = self._clock()
        at, n = self._told.get(line, (None, 0))
        if at is not None and now - at < EVERY_SECONDS:
            self._told[line] = at, n + 1
            return
        if at is None and len(self._told) >= MOST:
            self._forget(now)
            if len(self._told) >= MOST:
                return
        self._told.pop(line, None)
        self._told[line] = now, 0
        self._tell(f"{line} ({n} more times since the last such line)" if n else line)

    def _forget(self, now: float) -> None:
        """Forget the lines whose time is over."""
        for line, (at, _) in list(self._told.items()):
            if now - at >= EVERY_SECONDS:
                del self._told[line]
