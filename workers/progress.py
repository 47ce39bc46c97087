"""Messages on stderr while a model is prepared.

A terminal gets a bar that is redrawn in place, a log file gets plain lines.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

BAR_WIDTH = 30

REPORT_SECONDS = 10.0
"""How often a log file gets a line during a long download."""


def say(message: str) -> None:
    """Print one line about what is being done."""
    print(message, file=sys.stderr, flush=True)


def size(n_bytes: int) -> str:
    """Return `n_bytes` as a text, in powers of 1000: 98.4 MB."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 10**9:.1f} GB"
    if n_bytes >= 10**6:
        return f"{n_bytes / 10**6:.1f} MB"
    return f"{n_bytes / 10**3:.1f} kB"


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield `items`, of which there are `total`, with a bar on a terminal and one line
    elsewhere."""
    if not sys.stderr.isatty():
        say(label)
        yield from items
        return
    for done, item in enumerate(items, start=1):
        yield item
        bar = "█" * (BAR_WIDTH * done // total)
        print(f"\r{label} {bar:<{BAR_WIDTH}} {done}/{total}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr, flush=True)


@contextmanager
def reports(line: Callable[[], str], every: float = REPORT_SECONDS) -> Iterator[None]:
    """Print `line()` every so many seconds while the body runs, unless a terminal shows a bar."""
    if sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def report() -> None:
        while not done.wait(every):
            say(line())

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
