"""End a worker with its router, also when that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time


def die_with_parent(router: int) -> None:
    """Have the kernel kill this process when its parent, the process `router`, dies.

    Where the kernel cannot, a thread looks every second. Call it before anything slow: a router
    that died earlier than this is noticed here, for its children belong to another process then.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:

        def watch() -> None:
            while os.getppid() == router:
                time.sleep(1)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    if os.getppid() != router:
        os._exit(1)
