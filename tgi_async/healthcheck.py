"""`python -m tgi_async.healthcheck`: ask the server of this container whether it is ready.

It asks where the container's first process listens, by that one's flags and variables. The exit
status is 0 if it is ready, else 1 with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import socket
import ssl
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
    tls: bool = False
    unix_socket: str | None = None
    """The file that it listens on in place of host and port."""

    def ask(self, route: str) -> str:
        """Return the status of a route and how its answer begins.

        Raises OSError and http.client.HTTPException.
        """
        with contextlib.ExitStack() as closing:
            connected = self._socket()
            closing.callback(connected.close)
            connected.settimeout(TIMEOUT_SECONDS)
            connected.connect(self.unix_socket or (self.host, self.port))
            if self.tls:
                connected = _unchecked().wrap_socket(connected)
                closing.callback(connected.close)
            connection = http.client.HTTPConnection(self.host, self.port)
            connection.sock = connected
            connection.request("GET", route)
            reply = connection.getresponse()
            return f"{reply.status} {reply.read(1000).decode(errors='replace')}".strip()

    def _socket(self) -> socket.socket:
        if self.unix_socket is not None:
            return socket.socket(socket.AF_UNIX)
        return socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)


def main(process: Path = Path("/proc/1")) -> int:
    """Ask `/health`. Returns the exit status."""
    command = [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0")[:-1]]
    try:
        said = address(command, os.environ).ask("/health")
    except (OSError, StartError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0 if said.split()[0] == "200" else 1


def _unchecked() -> ssl.SSLContext:
    """Return a context that takes any certificate: the server's is for the name that clients ask
    for, which is not known here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def address(command: Sequence[str], environment: Mapping[str, str]) -> Address:
    """Return where the server of this command line listens. Raises StartError."""
    starts = [place for place, word in enumerate(command) if Path(word).name == ENTRYPOINT]
    arguments = list(command[starts[-1] + 1 :]) if starts else list(command)
    variables = dict(environment)
    if starts:
        arguments = [*platforms.flags(environment), *arguments]
        variables |= platforms.variables(arguments, environment)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-p", "--port")
    for name in ("--hostname", "--ssl-certfile", "--unix-socket"):
        parser.add_argument(name)
    given, _ = parser.parse_known_args(arguments)
    settings = resolve(vars(given), variables)
    return Address(
        EVERY_ADDRESS.get(settings.hostname, settings.hostname),
        settings.port,
        settings.ssl_certfile is not None,
        settings.unix_socket,
    )


if __name__ == "__main__":
    sys.exit(main())
