"""Counts what code does in a way that does not depend on the machine."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any


class Calls:
    """Counts the calls of functions, Python's and C's, in a `with` block; blocks add up."""

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
    """Memory blocks that Python holds, once nothing is left that nobody refers to."""
    gc.collect()
    return sys.getallocatedblocks()
