"""Count-based admission: one permit for each generation in the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tgi_async.errors import Overloaded


class Permits:
    """A counter that refuses at once instead of queueing."""

    def __init__(self, total: int) -> None:
        self.free = total

    @contextmanager
    def take(self, n: int = 1) -> Iterator[None]:
        """Take `n` permits, all or none.

        Raises:
            Overloaded: fewer than `n` are free.
        """
        if n > self.free:
            raise Overloaded
        self.free -= n
        try:
            yield
        finally:
            self.free += n
