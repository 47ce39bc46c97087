"""The child's side: its time and memory limits, and its loop over lines.

Neither a thread nor one call into native code can be stopped from within Python, so the limits are
the kernel's: a timer of processor time whose signal ends the process, and a limit to its memory.
The timer works without supervision, also when the server is gone; and as it counts processor time,
a busy machine does not fail a valid request.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """Kill this process if the block takes more processor time than this."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the server's other processes may ignore it
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(size: int) -> None:
    """Limit the address space to `size` bytes, or less if that is the limit already. Where that is
    impossible, stderr says so."""
    try:
        allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
        least = size if allowed == resource.RLIM_INFINITY else min(size, allowed)
        resource.setrlimit(resource.RLIMIT_AS, (least, least))
    except (OSError, ValueError) as error:  # macOS has the name of this limit only
        print(f"no limit to the memory of a helper process: {error}", file=sys.stderr)


def _end_early() -> None:
    """Have the kernel kill this process before the worker when memory runs out: 500 counts as half
    of all memory."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def address_space() -> int:
    """Return the bytes of address space that this process has; 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def answer_lines(
    requests: BinaryIO,
    replies: BinaryIO,
    answer: Callable[[bytes], bytes],
    seconds: Callable[[bytes], float],
) -> None:
    """Answer each line within its `seconds` of processor time, until `requests` ends."""
    faulthandler.register(signal.SIGUSR1)
    _end_early()
    for line in requests:
        with processor_time(seconds(line)):
            reply = answer(line)
        replies.write(reply + b"\n")
        replies.flush()
