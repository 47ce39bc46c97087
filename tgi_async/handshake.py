"""TLS in front of a connection, with bounds: until a client has shown that it speaks TLS it costs a
socket, and how long and how many may be in a handshake is limited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tgi_async.certificate import Certificate
from tgi_async.connection import Connection, make_room
from tgi_async.refusal import ConnectionRefused

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""Time limit of a handshake, from the connection to its end."""
CLOSE_SECONDS = 1.0
"""Time that a client gets to confirm the end of a connection. Most that are idle do not read it."""
PART = 4
"""The most handshakes at once are this part of the most connections."""
HANDSHAKE_RECORD = 0x16
"""The first byte of TLS."""
NOT_TLS = ConnectionRefused(400, "This port speaks TLS: use https:// instead of http://")


def secured(certificate: Certificate) -> Callable[..., Handshake]:
    """Return what makes the protocol of each new connection, as uvicorn does with `Connection`."""
    pending: dict[Handshake, None] = {}

    def protocol(**given: Any) -> Handshake:
        return Handshake(Connection(**given), certificate, pending)

    return protocol


class Handshake(asyncio.Protocol):
    """One client until it speaks TLS, when `connection` takes over.

    It is among uvicorn's connections meanwhile. `pending` has all handshakes, the oldest one first:
    for one too many that one is cut.
    """

    def __init__(
        self, connection: Connection, certificate: Certificate, pending: dict[Handshake, None]
    ) -> None:
        self._connection = connection
        self._connections: set[Any] = connection.connections
        self._certificate = certificate
        self._pending = pending
        self._loop = connection.loop
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._securing: asyncio.Task[None] | None = None
        self._early = bytearray()
        """What the client sent behind the handshake, before `connection` took over."""
        self._lost = self._passed_on = False

    # -- the socket -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._connections.add(self)
        self._pending[self] = None
        self._timer = self._loop.call_later(HANDSHAKE_SECONDS, self._abort)
        most = self._connection.limit_concurrency
        if most is None:
            return
        if len(self._pending) > max(1, most // PART):
            next(iter(self._pending))._abort()
        elif len(self._connections) > most and not make_room(self._connections):
            self._abort()

    def data_received(self, data: bytes) -> None:
        if self._securing is not None:
            self._early += data
        elif data[0] == HANDSHAKE_RECORD:
            assert self._transport is not None
            self._transport.pause_reading()
            self._securing = self._loop.create_task(self._secure())
            # start_tls puts its own protocol between in the turn after its first one; what was read
            # before belongs to that.
            self._loop.call_soon(self._loop.call_soon, self._feed, data)
        else:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._forget()
        if self._passed_on:
            self._connection.connection_lost(exc)

    def shutdown(self) -> None:
        """Give up, since the server stops."""
        self._abort()

    # -- the handshake --------------------------------------------------------------------------

    async def _secure(self) -> None:
        assert self._transport is not None
        peer = self._transport.get_extra_info("peername")
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
        except OSError as error:  # a TLS error is one, and so is the end of the connection
            reason = getattr(error, "reason", None) or str(error) or "it hung up"
            log.info("no TLS with %s: %s", peer, reason)
            self._forget()
            return
        self._forget()
        if transport is None or self._lost or self._transport.is_closing():
            return
        self._pass_on(transport)
        if self._early:
            self._connection.data_received(bytes(self._early))

    def _feed(self, data: bytes) -> None:
        """Give start_tls's protocol, which takes over reading, what was read before."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        protocol: Any = self._transport.get_protocol()  # as asyncio.BufferedProtocol
        rest = memoryview(data)
        while rest:
            buffer = protocol.get_buffer(len(rest))
            n = min(len(buffer), len(rest))
            buffer[:n] = rest[:n]
            protocol.buffer_updated(n)
            rest = rest[n:]

    def _refuse(self) -> None:
        """Tell a client that does not speak TLS, in plain HTTP."""
        assert self._transport is not None
        self._forget()
        self._pass_on(self._transport)
        self._connection.refuse(NOT_TLS)

    def _pass_on(self, transport: asyncio.Transport) -> None:
        self._passed_on = True
        transport.set_protocol(self._connection)
        self._connection.connection_made(transport)

    def _abort(self) -> None:
        assert self._transport is not None
        self._forget()
        self._transport.abort()

    def _forget(self) -> None:
        self._pending.pop(self, None)
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
