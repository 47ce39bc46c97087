"""Exponential backoff between restarts."""

from __future__ import annotations


class Backoff:
    """No wait at first, then `first` seconds, then twice as long each time, up to `longest`.

    What lived for `healthy` seconds had not died in a row: it begins again without a wait.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first = first
        self._longest = longest
        self._healthy = healthy
        self._next = 0.0

    def after(self, lived: float) -> float:
        """Return the seconds to wait after a process that lived so many seconds."""
        wait = 0.0 if lived >= self._healthy else self._next
        self._next = min(self._longest, max(self._first, 2 * wait))
        return wait
