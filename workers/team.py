"""The threads that the C kernels of the workers share (team.c)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from workers import native

SOURCE = Path(__file__).with_name("team.c")


@functools.cache
def run_function() -> ctypes.c_void_p:
    """`team_run` of team.c, for the libraries of kernels. Raises NativeUnavailable."""
    return ctypes.cast(native.load(SOURCE).team_run, ctypes.c_void_p)
