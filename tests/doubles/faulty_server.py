"""The whole server over workers that fail as planned (`faulty_worker`), as a process of its own:
`python -m tests.doubles.faulty_server [flags]` is `tgi-async serve [flags]`."""

from __future__ import annotations

import functools
import sys

from tests.doubles import faulty_fork_server, faulty_worker

COMMAND = (sys.executable, "-m", "tests.doubles.faulty_server")


def main() -> int:
    from tgi_async import cli, launcher, serving, worker_restarter
    from tgi_async.fork_server import ForkServer

    # These are forked like the product's own.
    forking = functools.partial(ForkServer, command=faulty_fork_server.COMMAND)
    worker_restarter.WORKER = faulty_worker.COMMAND  # type: ignore[attr-defined]
    worker_restarter.ForkServer = forking  # type: ignore[assignment, attr-defined]
    commands = serving.Commands(worker=faulty_worker.COMMAND)
    launcher.serve = functools.partial(launcher.serve, commands=commands)
    return cli.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
