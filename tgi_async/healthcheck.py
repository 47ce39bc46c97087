"""`python -m tgi_async.healthcheck`: ask the server of this container whether it is ready.

It asks where the container's first process listens, by that one's flags and variables. The exit
status is 0 if it is ready, else 1 with the reason.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tgi_async import platforms
from tgi_async.arguments import resolve
from tgi_async.errors import StartError

ENTRYPOINT = "tgi-async-entrypoint"
TIMEOUT_SECONDS = 5
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Address(NamedTuple):
    """Where a server listens, as its own machine reaches it."""

    host: str
    port: int


def main(process: Path = Path("/proc/1")) -> int:
    """Ask `/health`. Returns the exit status."""
    command = [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")[:-1]]
    try:
        host, port = address(command, os.environ)
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        connection.request("GET", "/health")
        reply = connection.getresponse()
        said = reply.read(1000).decode(errors="replace")
    except (OSError, StartError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print(f"{reply.status} {said}".strip())
    return 0 if reply.status == 200 else 1


def address(command: Sequence[str], environment: Mapping[str, str]) -> Address:
    """Return where the server of this command line listens. Raises StartError."""
    starts = [place for place, word in enumerate(command) if Path(word).name == ENTRYPOINT]
    arguments = list(command[starts[-1] + 1 :]) if starts else list(command)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-p", "--port")
    parser.add_argument("--hostname")
    given, _ = parser.parse_known_args(arguments)
    variables = dict(environment)
    if starts:
        variables |= platforms.variables(arguments, environment)
    settings = resolve(vars(given), variables)
    return Address(EVERY_ADDRESS.get(settings.hostname, settings.hostname), settings.port)


if __name__ == "__main__":
    sys.exit(main())
