"""Count function calls, which do not depend on the machine."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any


class Calls:
    """Counts the calls of Python and C functions in a `with` block; blocks add up."""

    def __init__(self) -> None:
        self.n = 0

    def __enter__(self) -> Calls:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.setprofile(None)
        self.n -= 2  # this method and the call in it

    def _seen(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" or event == "c_call":
            self.n += 1


def allocated_blocks() -> int:
    """Return Python's allocated memory blocks, after a garbage collection."""
    gc.collect()
    return sys.getallocatedblocks()
