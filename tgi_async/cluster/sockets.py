"""The sockets between the nodes: the leader's ROUTER and the members' DEALERs, over TCP with CURVE.

Who lacks the cluster's secret gets nothing through, and nobody reads or changes what is sent. What
fails on the way to that is told in a line for the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import zmq
import zmq.asyncio
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from tgi_async.aside import aside
from tgi_async.cluster.beside import beside
from tgi_async.cluster.repeats import Repeats
from tgi_async.cluster.secret import Keys
from tgi_async.wire.nodes import MAX_FRAME_BYTES

Socket = zmq.asyncio.Socket
Tell = Callable[[str], object]

HIGH_WATER = 64
"""Frames that may wait in a socket for each node."""
OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER,
    zmq.RCVHWM: HIGH_WATER,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES + 64,  # CURVE's own bytes are among them
    zmq.IPV6: 1,
    # A cable that is pulled ends no connection: it is made anew, once nothing comes for 5 s.
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 5000,
    # Whoever connects and says nothing is not waited for.
    zmq.HANDSHAKE_IVL: 5000,
}
OF_MEMBERS: dict[int, int] = {
    zmq.IMMEDIATE: 1,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    # The kernel waits for longer and longer to ask again, up to a minute, and would miss for as
    # long that the cable is back.
    zmq.CONNECT_TIMEOUT: 2000,
}
ZAP = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks, within a context, whether a client's key is good."""
ENDED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
)
GIVEN_UP = (
    zmq.EVENT_DISCONNECTED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
)
NO_SECRET: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "has another cluster secret",
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "speaks ZeroMQ without a cluster secret",
}
"""Failures that are no probe of a port, and what whoever caused them does."""
FAILURES_IN_A_ROW = 3
"""Connections that end before they are secured until a member says so: one may be the leader's
end."""
AGAIN_SECONDS = 1.0
END_SECONDS = 1.0


def endpoint_of(address: str, port: int) -> str:
    """Return the endpoint of a name, or of an address without brackets; `*` is every address."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


@contextlib.asynccontextmanager
async def leader_socket(
    context: zmq.asyncio.Context, endpoint: str, keys: Keys, tell: Tell
) -> AsyncIterator[Socket]:
    """Make the leader's ROUTER, bound to `endpoint`, and close it at the end of the context.

    `tell` gets a line for those that do not have the secret, once a minute for each of them. There
    is one such socket in a `context`. Raises zmq.ZMQError where it cannot be bound.
    """
    repeats = Repeats(tell)
    async with contextlib.AsyncExitStack() as closing:
        asked = closing.enter_context(context.socket(zmq.REP))
        asked.setsockopt(zmq.LINGER, 0)
        asked.bind(ZAP)
        router = closing.enter_context(context.socket(zmq.ROUTER))
        _set(router, OPTIONS)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, keys.leader_secret)
        # Nobody may come in where nobody answers at ZAP.
        router.setsockopt(zmq.ZAP_DOMAIN, b"cluster")
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | ENDED
        monitor = closing.enter_context(_monitor(router, events))
        router.bind(endpoint)
        port = int(bound_to(router).rpartition(":")[2])
        admitting = _admit(asked, keys.member_public, repeats)
        await closing.enter_async_context(beside(admitting, _watch_leader(monitor, port, repeats)))
        yield router


@contextlib.asynccontextmanager
async def member_socket(
    context: zmq.asyncio.Context, endpoint: str, keys: Keys, identity: bytes, tell: Tell
) -> AsyncIterator[Socket]:
    """Make a member's DEALER, which connects to `endpoint` again and again, and close it at the end
    of the context.

    What is sent while it is not connected waits, or raises zmq.Again with NOBLOCK. `tell` gets a
    line, once a minute, where a leader answers that does not have the secret.
    """
    async with contextlib.AsyncExitStack() as closing:
        dealer = closing.enter_context(context.socket(zmq.DEALER))
        _set(dealer, OPTIONS | OF_MEMBERS)
        dealer.setsockopt(zmq.ROUTING_ID, identity)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.leader_public)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.member_public)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.member_secret)
        events = zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED | ENDED
        monitor = closing.enter_context(_monitor(dealer, events))
        dealer.connect(endpoint)
        watching = _watch_member(dealer, monitor, endpoint, Repeats(tell))
        await closing.enter_async_context(beside(watching))
        yield dealer


async def end(context: zmq.asyncio.Context) -> None:
    """End a context whose sockets are closed.

    libzmq waits in there until its connections are gone, and now and then one that ended in its
    handshake never is: the end of this process is not to wait for it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await aside(context.term, "end of ZeroMQ")


def bound_to(made: Socket) -> str:
    """Return the endpoint that a socket is bound to, with the port that was chosen for `*`."""
    return made.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _set(made: Socket, options: dict[int, int]) -> None:
    for option, value in options.items():
        made.setsockopt(option, value)


@contextlib.contextmanager
def _monitor(watched: Socket, events: int) -> Iterator[Socket]:
    monitor = watched.get_monitor_socket(events)
    try:
        yield monitor
    finally:
        watched.disable_monitor()
        monitor.close(linger=0)


async def _admit(asked: Socket, member_public: bytes, repeats: Repeats) -> None:
    """Answer whether clients have the members' key.

    pyzmq's own authenticator for asyncio misses most requests.
    """
    while True:
        version, request, _, address, _, mechanism, *credentials = await asked.recv_multipart()
        good = mechanism == b"CURVE" and credentials == [z85.decode(member_public)]
        if not good:
            repeats.tell(f"{_plain(address.decode())} has another key than the nodes: refused")
        answer = [b"200", b"OK", b"member"] if good else [b"400", b"unknown key", b""]
        await asked.send_multipart([version, request, *answer, b""])


async def _watch_leader(monitor: Socket, port: int, repeats: Repeats) -> None:
    peers: dict[int, str] = {}
    """By descriptor, which is all that these events have of a connection."""
    why = ""
    while True:
        event, value = await _event(monitor)
        if event == zmq.EVENT_ACCEPTED:
            peers[value] = _peer(value, port)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            why = NO_SECRET.get(value, "")
        elif event == zmq.EVENT_DISCONNECTED:
            peer = peers.pop(value, "")
            # The connection may be gone before its address is known. Such a client comes again.
            if why and peer:
                repeats.tell(f"{peer} {why}: refused")
            why = ""


async def _watch_member(dealer: Socket, monitor: Socket, endpoint: str, repeats: Repeats) -> None:
    in_a_row = 0
    given_up = judged = False
    while True:
        try:
            async with asyncio.timeout(AGAIN_SECONDS if given_up else None):
                event, _ = await _event(monitor)
        except TimeoutError:
            with contextlib.suppress(zmq.ZMQError):
                dealer.disconnect(endpoint)
            dealer.connect(endpoint)
            given_up = False
            continue
        # ZeroMQ gives a connection up that broke its protocol, or whose key was not taken. If it
        # does not, it says at once that it tries again.
        given_up = event in GIVEN_UP
        if event == zmq.EVENT_DISCONNECTED:
            if not judged:
                # What came was not of ZeroMQ at all.
                repeats.tell(f"the leader at {endpoint} is none: another program is there")
            judged = False
            continue
        judged = event != zmq.EVENT_CONNECT_RETRIED
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            in_a_row = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            repeats.tell(f"the leader at {endpoint} does not take the key of this node")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            repeats.tell(f"the leader at {endpoint} is none: another program is there")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            in_a_row += 1
            if in_a_row >= FAILURES_IN_A_ROW:
                repeats.tell(
                    f"the leader at {endpoint} does not take the cluster secret of this node, or "
                    "another program is there: it ends each connection"
                )


async def _event(monitor: Socket) -> tuple[int, int]:
    found = parse_monitor_message(await monitor.recv_multipart())
    return int(found["event"]), int(found["value"])


def _peer(descriptor: int, port: int) -> str:
    """Return the address that a connection to our port comes from; nothing if it is gone.

    ZeroMQ may have closed the descriptor, and the number may be another file's by now.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.getsockname()[1] != port:
                return ""
            return _plain(str(connection.getpeername()[0]))
    except (OSError, IndexError):
        return ""


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")
