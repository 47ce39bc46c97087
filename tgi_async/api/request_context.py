"""What is known of a request besides its body."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tgi_async.api.unknown_fields import Unknown
from tgi_async.scheduler.reservations import Reservation

_SECRET = os.urandom(16)


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """Facts about one request, and what its handler adds."""

    peer: str = ""
    """Address of the client, without its port; empty on a Unix socket."""
    authorization: bytes = b""
    """What it sent in the header of that name."""
    n_bytes: int = 0
    """Size of the body."""
    unknown: Unknown = field(default_factory=dict)
    """Fields of the body that its schema does not have."""
    ignored: list[str] = field(default_factory=list)
    """Names of fields that have no effect, which the reply's header `x-tgi-ignored` lists."""
    started: float = field(default_factory=time.monotonic)
    validation_seconds: float = 0.0
    """From the arrival of the request's head until all its prompts were found valid."""
    seeds: Iterator[int] | None = None
    """The seeds of its generations, in order; None: random ones."""
    reply_name: str = ""
    """What makes the id of its reply unique; empty: a random one is made."""
    reservation: Reservation | None = None
    """The engine's reservation for it."""

    @property
    def client(self) -> str:
        """Who shares of the server are counted for."""
        return self.peer

    @property
    def account(self) -> str:
        """A name for whose API key this is, from any address, which does not show the key."""
        return hashlib.blake2b(self.authorization, key=_SECRET, digest_size=8).hexdigest()

    @property
    def tenant(self) -> str:
        """A name for who sends from this address with this API key, which does not show either."""
        digest = hashlib.blake2b(self.authorization, key=_SECRET, digest_size=8)
        digest.update(b"\0" + self.peer.encode())
        return digest.hexdigest()

    def ignore(self, names: Iterable[str]) -> None:
        """Report that these fields of the request have no effect."""
        self.ignored += [name for name in names if name not in self.ignored]

    def part(self, n_bytes: int) -> RequestContext:
        """Return the context of a part of this request, with so many of its bytes."""
        return RequestContext(
            peer=self.peer,
            authorization=self.authorization,
            n_bytes=n_bytes,
            ignored=self.ignored,
        )
