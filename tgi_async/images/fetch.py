"""Fetch images over HTTP, from where the operator allows it.

Whatever the URL and its server do, a fetch ends in time and within its bytes, and connects to
nothing but addresses that were checked: each hop's name is resolved once, and the connection goes
to an address of that answer. There are no cookies, no credentials and no proxies.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from typing import NamedTuple, Protocol

from tgi_async.fair_threads import CLIENT
from tgi_async.images.addresses import Domains, Place, not_fetched, place_of
from tgi_async.images.exchange import PIECE, Answer, Exchange
from tgi_async.images.source import too_large
from tgi_async.images.turns import Turns

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
MAX_ADDRESSES = 4
"""How many of a host's addresses are tried."""
CONNECT_SECONDS = 2.0
"""For each of them, TLS included."""
AT_ONCE, AT_ONCE_EACH, WAITING = 32, 8, 1024
"""Fetches at once, of them for one client, and how many may wait."""
RESOLVERS = 8
NO_IMAGES = ("text/html", "application/xhtml+xml", "application/json")
"""What pages and interfaces of programs answer."""
UNSAID_SECONDS, MOST_SECONDS = 60.0, 3600.0
"""How long a URL stands for the same bytes, where its server does not say so, and at most."""
_MAX_AGE = re.compile(r"\bmax-age=(\d{1,9})\b")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to addresses. Raises OSError."""


class Room(Protocol):
    """Room for the bytes of an image."""

    def grow(self, size: int) -> None: ...


class Fetched(NamedTuple):
    """An image as it came."""

    digest: bytes
    """16 bytes."""
    seconds: float
    """How long its URL may be taken to stand for the same bytes."""


class Fetcher:
    """Fetches images from `domains`, each of at most `max_bytes` within `seconds`. For one event
    loop."""

    def __init__(
        self,
        domains: Domains,
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.domains = domains
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "image names")
        self._resolve = resolve or self._addresses
        self._turns = Turns(AT_ONCE, AT_ONCE_EACH, WAITING)
        self._tls = tls
        self._headers = [
            ("Accept", "image/png, image/jpeg, image/webp, image/gif, image/*;q=0.5"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
            ("User-Agent", f"tgi-async/{version('tgi-async')}"),
        ]

    async def fetch(self, url: str, path: str, room: Room) -> Fetched:
        """Write the image at `url` to `path`, for the client of this task, in turn with others'.

        Raises:
            Refused: it is not allowed, too large, or did not come in time.
            Overloaded: too many wait for their turn.
            NoRoom: there is no room for it.
            OSError: it cannot be written to `path`.
        """
        place = place_of(url)
        self.domains.check(place)
        async with self._turns.take(CLIENT.get()):
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._fetch(place, path, room)
            except TimeoutError:
                raise not_fetched(
                    f"it took more than {self._seconds:g} seconds. The limit is set by the "
                    "server's --image-fetch-timeout"
                ) from None

    def close(self) -> None:
        """Resolve no more names."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, place: Place, path: str, room: Room) -> Fetched:
        for _ in range(MAX_REDIRECTS + 1):
            self.domains.check(place)
            addresses = await self._checked_addresses(place)
            async with self._connected(place, addresses) as exchange:
                answer = await exchange.get(place, self._headers)
                if answer.status not in REDIRECTS:
                    return await self._body(exchange, answer, path, room)
            place = place_of(answer.header("location"), place)
        raise not_fetched(f"its URL leads to more than {MAX_REDIRECTS} others")

    async def _checked_addresses(self, place: Place) -> list[str]:
        """Return the addresses of a host, all of which are allowed. Raises Refused."""
        if place.is_address:
            addresses = [place.host]
        else:
            try:
                addresses = list(await self._resolve(place.host, place.port))
            except (OSError, UnicodeError):
                addresses = []
            if not addresses:
                raise not_fetched(f"there is no host {place.host[:100]}")
        self.domains.check_addresses(place, addresses)
        return addresses[:MAX_ADDRESSES]

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Ask the system, in a thread of our own: it may take long, and others have names too."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolvers, ask)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    @asynccontextmanager
    async def _connected(self, place: Place, addresses: Sequence[str]) -> AsyncIterator[Exchange]:
        """Connect to the first of these addresses that takes a connection. Raises Refused."""
        tls = await self._certificates() if place.scheme == "https" else None
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    reader, writer = await asyncio.open_connection(
                        address,
                        place.port,
                        ssl=tls,
                        server_hostname=place.host if tls else None,
                        limit=PIECE,
                    )
                break
            except ssl.SSLError:
                raise not_fetched(
                    f"{place.host[:100]} has no certificate that is valid for it, or no TLS that "
                    "can be used"
                ) from None
            except (OSError, ValueError):
                continue
        else:
            raise not_fetched(f"{place.shown[:100]} takes no connections")
        try:
            yield Exchange(reader, writer)
        finally:
            writer.transport.abort()

    async def _certificates(self) -> ssl.SSLContext:
        if self._tls is None:
            # Reading all certificates takes time.
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return self._tls

    async def _body(self, exchange: Exchange, answer: Answer, path: str, room: Room) -> Fetched:
        if answer.status != 200:
            raise not_fetched(f"its server answered with status {answer.status}")
        if answer.header("content-encoding", "identity").lower() != "identity":
            raise not_fetched("its server answered in a compressed form, which was not asked for")
        if (kind := answer.header("content-type").partition(";")[0].strip().lower()) in NO_IMAGES:
            raise not_fetched(f"its server answered with {kind}, which is no image")
        if answer.size is not None:
            self._bound(answer.size)
            room.grow(answer.size)
        digest = blake2b(digest_size=16)
        size = 0
        # Its writes go to memory, or to what the kernel writes to a disk later.
        with open(path, "wb", buffering=PIECE) as file:  # noqa: ASYNC230
            async for piece in exchange.body():
                size += len(piece)
                self._bound(size)
                room.grow(size)
                digest.update(piece)
                file.write(piece)
        if not size:
            raise not_fetched("its server answered with nothing")
        return Fetched(digest.digest(), _freshness(answer.header("cache-control").lower()))

    def _bound(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large(size, self._max_bytes)


def _freshness(control: str) -> float:
    """Return for how many seconds a response with this `Cache-Control` may be taken for the
    next one."""
    if "no-store" in control or "no-cache" in control:
        return 0.0
    age = _MAX_AGE.search(control)
    return UNSAID_SECONDS if age is None else min(float(age[1]), MOST_SECONDS)
