"""Headers in which proxies say who asks: of those that are trusted, and of nobody else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

ANY, UNIX = "*", "unix"
MOST_HOPS = 32
"""Proxies that a request is followed through; one beyond them counts as the client."""
_HOST = re.compile(rb"[\w.-]{1,255}(:\d{1,5})?|\[[\da-fA-F:.]{2,45}\](:\d{1,5})?", re.ASCII)
_PAIR = re.compile(r'\s*([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*(;|,|$)', re.ASCII)
_PORT = re.compile(r"\d{1,5}", re.ASCII)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Hop(NamedTuple):
    """Who sent a request to a proxy. `address` None: the proxy does not say, or not in a form that
    is understood."""

    address: Address | None
    port: int = 0
    scheme: str = ""
    host: bytes = b""


class Trusted:
    """Proxies whose headers count: addresses, networks, `unix` for whoever connects to the Unix
    socket, and `*` for whoever connects at all. Raises ValueError for anything else.
    """

    def __init__(self, listed: Collection[str]) -> None:
        self._any = ANY in listed
        self._unix = UNIX in listed
        self._networks: list[Network] = []
        for text in listed:
            if text in (ANY, UNIX):
                continue
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise ValueError(
                    f"{error}. Allowed are addresses, networks such as 10.0.0.0/8, {UNIX} and {ANY}"
                ) from None

    def peer(self, host: str | None) -> bool:
        """Return whether who is connected is trusted; None for a Unix socket."""
        if self._any:
            return True
        if host is None:
            return self._unix
        address = _address(host)
        return address is not None and self.hop(address)

    def hop(self, address: Address) -> bool:
        """Return whether a proxy behind the one that is connected is trusted. `*` names none."""
        return any(address in network for network in self._networks)


class Proxies:
    """Sets client, scheme and host of each request to what trusted proxies say of it.

    The client is the last one before the trusted proxies: each proxy adds who sent it the request,
    so what is left of the first one that is not trusted may be invented.
    """

    def __init__(self, app: ASGIApp, trusted: Trusted) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = scope["client"]
            if self._trusted.peer(client[0] if client else None):
                self._set(scope)
        await self._app(scope, receive, send)

    def _set(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = [value for name, value in headers if name == b"x-forwarded-for"]
        if given:
            hops = [_hop(text) for text in _text(given).split(",")[-MOST_HOPS:]]
        else:
            given = [value for name, value in headers if name == b"forwarded"]
            hops = list(_forwarded(_text(given)))[-MOST_HOPS:]
        found = self._client(hops)
        if found.address is not None:
            scope["client"] = (str(found.address), found.port)
        scheme = found.scheme or _last(headers, b"x-forwarded-proto").decode("latin-1").lower()
        if scheme in ("http", "https"):
            scope["scheme"] = scheme
        host = found.host or _last(headers, b"x-forwarded-host")
        if _HOST.fullmatch(host):
            kept = [pair for pair in headers if pair[0] != b"host"]
            scope["headers"] = [*kept, (b"host", host)]

    def _client(self, hops: Sequence[Hop]) -> Hop:
        """Return the client; its address is None where that is who is connected."""
        found = Hop(None)
        for hop in reversed(hops):
            if hop.address is None:
                break
            found = hop
            if not self._trusted.hop(hop.address):
                break
        return found


def _text(values: Sequence[bytes]) -> str:
    return b",".join(values).decode("latin-1")


def _last(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return the last value of a header that may be a list: the nearest proxy's."""
    values = [value for one, value in headers if one == name]
    return values[-1].rpartition(b",")[2].strip() if values else b""


def _forwarded(text: str) -> Iterator[Hop]:
    """Yield the hops of a header `Forwarded` (RFC 7239), up to the first thing that is none."""
    at, pairs = 0, dict[str, str]()
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None:
            # What follows cannot be told from what a client invented, and neither can its number.
            yield Hop(None)
            return
        name, quoted, plain, end = match.groups()
        value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        pairs.setdefault(name.lower(), value)
        at = match.end()
        if end != ";":
            hop = _hop(pairs.get("for", ""))
            yield hop._replace(
                scheme=pairs.get("proto", "").lower(), host=pairs.get("host", "").encode("latin-1")
            )
            pairs = {}


def _hop(text: str) -> Hop:
    """Read an address with or without a port: `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`."""
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    number = int(port) if _PORT.fullmatch(port) else 0
    return Hop(_address(host), number)


def _address(text: str) -> Address | None:
    """Read an address. Sockets for both kinds show one of IPv4 in the form of IPv6."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
