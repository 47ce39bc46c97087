"""A relay between a client and a server, which cuts replies."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

RESET = struct.pack("ii", 1, 0)


class Cutter:
    """Passes each connection on to the server at `port`, and cuts it after so many bytes of reply.

    `cuts` are these numbers, one for each connection; further ones are not cut. `before` is called
    with the number of each connection before it is made.
    """

    def __init__(self, port: int, cuts: list[int], before: Callable[[int], None]) -> None:
        self._port = port
        self._cuts = cuts
        self._before = before
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.n_connections = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, port: int, cuts: list[int], before: Callable[[int], None] = lambda number: None
    ) -> Iterator[Cutter]:
        cutter = cls(port, cuts, before)
        thread = threading.Thread(target=cutter._run)
        thread.start()
        try:
            yield cutter
        finally:
            cutter._listener.shutdown(socket.SHUT_RDWR)
            cutter._listener.close()
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number = self.n_connections
            self.n_connections += 1
            self._before(number)
            most = self._cuts[number] if number < len(self._cuts) else None
            with client:
                self._relay(client, most)

    def _relay(self, client: socket.socket, most: int | None) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            asking = threading.Thread(target=_pass, args=(client, server))
            asking.start()
            n = 0
            while most is None or n < most:
                try:
                    piece = server.recv(65536 if most is None else min(65536, most - n))
                except OSError:
                    break
                if not piece:
                    break
                n += len(piece)
                with contextlib.suppress(OSError):
                    client.sendall(piece)
            if most is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RD)
            asking.join()


def _pass(client: socket.socket, server: socket.socket) -> None:
    """Pass on what the client sends, until it or the server ends."""
    with contextlib.suppress(OSError):
        while piece := client.recv(65536):
            server.sendall(piece)
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
