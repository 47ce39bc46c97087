"""This machine's addresses and interfaces on the way to another one. No packet is sent."""

from __future__ import annotations

import array
import asyncio
import fcntl
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tgi_async.aside import aside

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
ASIDE = "names"
SIOCGIFCONF = 0x8912
REQUEST = struct.Struct("@16sHH4s16x") if struct.calcsize("P") == 8 else struct.Struct("@16sHH4s8x")
"""The kernel's `ifreq` with an address of IPv4: name, family, port, address."""
MAX_ADDRESSES = 1024
IF_INET6 = Path("/proc/net/if_inet6")


class NotResolved(Exception):
    """A name has no address, or not yet."""


class Route(NamedTuple):
    """The way to a host."""

    address: str
    """This machine's own address on it."""
    interface: str
    """The one that has this address; empty where that is unknown."""
    peer: str
    """The host's address, which its name meant."""


def towards(host: str, port: int) -> Route | None:
    """Return the way to a name or an address, without brackets; None where there is none. Of
    several addresses of a name, it is to the first one that has a way.

    A name may take seconds: call it `aside`. Raises NotResolved.
    """
    for family, address in _resolved(host, port):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            # To a second address of its own, the kernel would go from the first.
            own = address if _interface(address) else probe.getsockname()
        return Route(_shown(own), _interface(own), _shown(address))
    return None


async def found(host: str, port: int) -> Route:
    """Return the way to a host, once there is one: a name may be known later than its pod runs."""
    told = False
    while True:
        try:
            if (route := await aside(partial(towards, host, port), ASIDE)) is not None:
                return route
            why = "there is no way to it"
        except NotResolved as error:
            why = str(error)
        if not told:
            told = True
            log.warning("waiting until %s can be reached: %s", host, why)
        await asyncio.sleep(RETRY_SECONDS)


def is_mine(host: str) -> bool:
    """Return whether a socket can be bound to a name or an address here.

    A name may take seconds: call it `aside`. Raises NotResolved.
    """
    for family, address in _resolved(host, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        return True
    return False


def _resolved(host: str, port: int) -> list[tuple[int, Any]]:
    """Return the addresses of a host, with their families, in the order in which to try them."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError) as error:
        raise NotResolved(f"{host} has no address: {error}") from None
    return [(family, address) for family, _, _, _, address in found]


def _shown(address: Any) -> str:
    """Return the address of a socket as text, one that is valid on a link with its interface."""
    host, scope = str(address[0]).partition("%")[0], address[3] if len(address) == 4 else 0
    if not scope:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:
        return f"{host}%{scope}"


def _interface(address: Any) -> str:
    """Return the interface that has the address of a socket, or nothing."""
    shown, _, scope = _shown(address).partition("%")
    own: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(shown)
    if isinstance(own, ipaddress.IPv6Address):
        own = own.ipv4_mapped or own
    if scope:
        return scope
    # Of IPv4, the loopback interface has all of 127.0.0.0/8, and the kernel lists one of it.
    return next((name for name, one in _addresses() if one == own), "lo" if own.is_loopback else "")


def _addresses() -> Iterator[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Yield the names and addresses of interfaces, as far as the kernel tells."""
    room = array.array("B", bytes(REQUEST.size * MAX_ADDRESSES))
    place, length = room.buffer_info()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
            found = fcntl.ioctl(asks, SIOCGIFCONF, struct.pack("@iP", length, place))
        used = struct.unpack("@iP", found)[0]
        for label, _, _, packed in REQUEST.iter_unpack(room.tobytes()[:used]):
            # A second address may have a label such as `eth0:1`.
            yield label.rstrip(b"\0").decode().partition(":")[0], ipaddress.IPv4Address(packed)
        for line in IF_INET6.read_text().splitlines():
            digits, *_, name = line.split()
            yield name, ipaddress.IPv6Address(int(digits, 16))
    except (OSError, ValueError):
        return  # a sandbox may have neither
