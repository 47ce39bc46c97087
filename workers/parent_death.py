"""End a worker with its router, also when that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 1.0


def die_with_parent(router: int) -> None:
    """Have this process killed when its parent, the process `router`, dies.

    The kernel does it, or where it cannot, a thread that looks every second. Call it before
    anything slow: a router that died earlier than this is noticed here, for its children belong to
    another process then.
    """
    if not killed_by_kernel():
        threading.Thread(target=_watch, args=(router,), daemon=True).start()
    if os.getppid() != router:
        os._exit(1)


def killed_by_kernel() -> bool:
    """Ask Linux for a signal at the parent's death; whether there will be one."""
    try:
        return bool(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0)
    except AttributeError:
        return False


def _watch(router: int) -> None:
    while os.getppid() == router:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
