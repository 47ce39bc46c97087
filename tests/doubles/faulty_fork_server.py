"""A process that workers which fail as planned (`faulty_worker`) are forked from."""

from __future__ import annotations

import os
import sys

COMMAND = (sys.executable, "-m", "tests.doubles.faulty_fork_server")


def main() -> None:
    from tests.doubles.faulty_worker import VARIABLE, Faults, install
    from workers.__main__ import main as work
    from workers.fork_server import import_all, serve

    def prepare() -> None:
        import_all()
        install(Faults(os.environ[VARIABLE]))

    serve(prepare, work, "tests.doubles.faulty_worker")


if __name__ == "__main__":
    main()
