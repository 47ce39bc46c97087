"""What is known of a request besides its body."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tgi_async.api.unknown_fields import Unknown
from tgi_async.keys import ApiKey
from tgi_async.scheduler.blocks import Salt
from tgi_async.scheduler.reservations import Reservation

_SECRET = os.urandom(16)


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """Facts about one request, and what its handler adds."""

    peer: str = ""
    """Address of the client, without its port; empty on a Unix socket."""
    authorization: bytes = b""
    """What it sent in the header of that name."""
    key: ApiKey | None = None
    """The API key that it came with; None where none is needed."""
    of_tenant: str = ""
    """The tenant that a trusted proxy names; empty: none."""
    timeout: float | None = None
    """Seconds that it has from `started` on, queue and generation together; None: any number."""
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
        """Who shares of the server are counted for: the tenant, or else the address, of a key."""
        name = "" if self.key is None else self.key.name
        if self.of_tenant:
            return f"{name}/{self.of_tenant}"
        return f"{name}@{self.peer}" if name else self.peer

    @property
    def weight(self) -> int:
        """The weight of its client's share."""
        return 1 if self.key is None else self.key.weight

    @property
    def account(self) -> str:
        """A name for whose API key this is, and which tenant's request, from any address. It does
        not show the key."""
        digest = hashlib.blake2b(self.authorization, key=_SECRET, digest_size=8)
        if self.of_tenant:
            digest.update(b"\0\0" + self.of_tenant.encode())
        return digest.hexdigest()

    @property
    def owner(self) -> str:
        """Whose request it is, by the names of its key and its tenant: the same on all servers,
        whatever the key is."""
        return f"{'' if self.key is None else self.key.name}/{self.of_tenant}"

    @property
    def tenant(self) -> str:
        """A name for which tenant's request this is, or for who sends from this address, with this
        API key. It shows none of these."""
        if self.of_tenant:
            return self.account
        digest = hashlib.blake2b(self.authorization, key=_SECRET, digest_size=8)
        digest.update(b"\0" + self.peer.encode())
        return digest.hexdigest()

    @property
    def cache_salt(self) -> Salt:
        """What keeps its prefixes from all others: its tenant, or else its API key, or where no key
        is needed its address."""
        owner = self.account if self.key is not None else self.tenant
        digest = hashlib.blake2b(owner.encode(), key=_SECRET, digest_size=16).digest()
        return Salt(0, 1, digest)

    def ignore(self, names: Iterable[str]) -> None:
        """Report that these fields of the request have no effect."""
        self.ignored += [name for name in names if name not in self.ignored]

    def part(self, n_bytes: int) -> RequestContext:
        """Return the context of a part of this request, with so many of its bytes."""
        return RequestContext(
            peer=self.peer,
            authorization=self.authorization,
            key=self.key,
            of_tenant=self.of_tenant,
            timeout=self.timeout,
            n_bytes=n_bytes,
            ignored=self.ignored,
            started=self.started,
        )
