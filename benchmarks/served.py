"""The real server, started on a model and stopped at the end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

READY = re.compile(r"ready in ([\d.]+) s on http://\S+?:(\d+)")
STOP_SECONDS = 60.0
# The package need not be installed.
CODE = "import sys; from tgi_async.cli import launcher_main; sys.exit(launcher_main())"


class Served(NamedTuple):
    port: int
    pid: int
    ready_seconds: float
    """Seconds of its start, by its own measure."""


@contextmanager
def serving(
    model: Path | None, log: Path, flags: Sequence[str] = (), start_seconds: float = 120.0
) -> Iterator[Served]:
    """Run a server on a free port of the loopback address; without a `model`, of the embedded one.

    Raises RuntimeError with its log if it does not start.
    """
    command = [sys.executable, "-c", CODE, *(() if model is None else ("--model-id", str(model)))]
    command += ["--hostname", "127.0.0.1", "--port", "0", *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        deadline = time.monotonic() + start_seconds
        while not (found := READY.search(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield Served(int(found[2]), process.pid, float(found[1]))
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
