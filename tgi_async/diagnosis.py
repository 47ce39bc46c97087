"""Show at SIGUSR1 what every process is doing, and the scheduler's state.

The stacks of this process come first, from the signal itself, so that they come where the event
loop is stuck as well. The rest is the loop's: what its tasks wait for, the scheduler's state, and
the same signal for the processes that this one started, as far as they handle it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

QUIET_SECONDS = 10.0
"""Shortest time between two dumps, unless the event loop is stuck."""
MOST_KINDS = 50
"""Most kinds of tasks that are shown."""
DEEPEST = 20
"""Most frames of a task that are shown."""


class Diagnosis:
    """What this process has to tell. `state` is called for lines about what it schedules."""

    def __init__(self) -> None:
        self.state: Callable[[], Iterable[str]] = tuple
        self._listening = False

    def follow(self) -> None:
        """Dump at SIGUSR1, from now on until the loop is closed."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._dump)
        self._listen()

    def _listen(self) -> None:
        self._listening = True
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or 2, chain=True)

    def _dump(self) -> None:
        if not self._listening:
            log.warning("SIGUSR1 again within %g s: not shown", QUIET_SECONDS)
            return
        self._listening = False
        faulthandler.unregister(signal.SIGUSR1)
        loop = asyncio.get_running_loop()
        loop.call_later(QUIET_SECONDS, self._listen)
        log.warning("SIGUSR1: the stacks of process %d are above; its tasks:", os.getpid())
        for line in tasks():
            log.warning("  %s", line)
        log.warning("the scheduler:")
        try:
            for line in self.state():
                log.warning("  %s", line)
        except Exception:
            # It may be what is wrong.
            log.exception("its state cannot be read")
        self._passing_on = loop.run_in_executor(None, pass_on)


def tasks() -> list[str]:
    """Return what the tasks of the running loop wait for, the most frequent first."""
    kinds = Counter(_stack(task.get_coro()) for task in asyncio.all_tasks())
    shown = [f"{n} x {stack}" for stack, n in kinds.most_common(MOST_KINDS)]
    if len(kinds) > MOST_KINDS:
        shown.append(f"and {len(kinds) - MOST_KINDS} kinds more")
    return shown


def _stack(awaited: Any) -> str:
    """Return the functions that a coroutine is in, the innermost last."""
    frames: list[str] = []
    while awaited is not None and len(frames) < DEEPEST:
        frame: FrameType | None = None
        for kind in ("cr", "gi", "ag"):
            if hasattr(awaited, f"{kind}_frame"):
                frame = getattr(awaited, f"{kind}_frame")
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            break
        if frame is not None:
            code = frame.f_code
            file = "/".join(code.co_filename.rsplit("/", 2)[-2:])
            frames.append(f"{code.co_name} ({file}:{frame.f_lineno})")
    return " > ".join(frames) or "nothing"


def pass_on(number: int = signal.SIGUSR1) -> None:
    """Send the signal to all processes below this one that handle it: it would end the others."""
    for pid in _below(os.getpid()):
        if _handles(pid, number):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                continue
            log.warning("SIGUSR1 is passed on to process %d: %s", pid, _name(pid))


def _below(top: int) -> list[int]:
    """Return the processes that this one started, and those that these started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [top]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _handles(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    # `python -P -m MODULE ...`; what comes behind may be long.
    return words[words.index("-m") + 1] if "-m" in words[:-1] else words[0]
