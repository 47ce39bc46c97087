"""The fork server, with fake workers instead of real ones and without their imports."""

from __future__ import annotations

import os
import sys
import threading
import time

from tests.doubles import fake_worker
from workers import fork_server

COMMAND = (sys.executable, "-P", "-m", "tests.doubles.fake_fork_server")
MODULE = "tests.doubles.fake_worker"
VARIABLE = "FAKE_FORK_SERVER"
"""What it does: "", "thread" (begin one), "exit", "hang", or "once:FILE", which is to exit where
FILE exists, and to make it."""


def prepare() -> None:
    what, _, file = os.environ.get(VARIABLE, "").partition(":")
    if what == "thread":
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    if what == "hang":
        time.sleep(3600)
    if what == "exit" or (what == "once" and os.path.exists(file)):
        sys.exit(5)
    if what == "once":
        with open(file, "x"):
            pass


if __name__ == "__main__":
    fork_server.serve(prepare, fake_worker.main, MODULE)
