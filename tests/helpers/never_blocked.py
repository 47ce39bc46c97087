"""Find what would block the event loop of the router."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockbuster import blockbuster_ctx

MAY_BLOCK = {
    # A server that starts or stops keeps nobody waiting.
    "tgi_async/launcher.py": {"_serve"},
    "tgi_async/api/app.py": {"create_app"},
    "tgi_async/temporary.py": {"__init__", "cleanup"},
    "tgi_async/images/images.py": {"start"},
    # A look at a file in shared memory.
    "tgi_async/images/store.py": {"put", "is_full"},
    # It asks first whether that would block.
    "tgi_async/telemetry/log_lines.py": {"_written"},
    # Files of /proc and /sys, which are in memory.
    "tgi_async/cgroups.py": {"_text"},
    "tgi_async/processes.py": {"activity"},
}
"""Functions by file."""


@contextmanager
def never_blocked() -> Iterator[None]:
    """Have whatever of the router would block the event loop raise instead."""
    with blockbuster_ctx("tgi_async") as found:
        for function in found.functions.values():
            for file, names in MAY_BLOCK.items():
                function.can_block_in(file, names)
        yield
