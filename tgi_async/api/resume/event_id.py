"""The id of an event: which stream it is of, and what had been sent there with it.

    wPzS3xO0rQhWm1f3Xk2a.37,12.0.kf9wQ2mB
    stream and request    |    |  hash of the tokens
             tokens of each choice
                               events since the last of these tokens, or `end`

An id is not secret and not signed: whoever makes one up reaches no stream but those of their own
account, whose seed they would have to guess, and else has a text computed that is their own.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import a2b_base64
from hashlib import blake2b
from typing import NamedTuple

from tgi_async.errors import ValidationError

MOST_CHOICES = 128
"""Streams of more choices have no ids, which would be longer than proxies take."""
MOST_CHARACTERS = 1200
SEED_BYTES, REQUEST_BYTES, HASH_BYTES = 8, 7, 6
"""Multiples of three in all, and so without padding."""
_NUMBER = r"0|[1-9][0-9]{0,6}"
_ID = re.compile(
    rf"([A-Za-z0-9_-]{{20}})\.((?:{_NUMBER})(?:,(?:{_NUMBER}))*)\.({_NUMBER}|end)\.([A-Za-z0-9+/]{{8}})"
)


class EventId(NamedTuple):
    """A place in a stream."""

    seed: int
    """The stream's, from 0 to 2^64 - 1."""
    request: bytes
    """A hash of what was asked."""
    counts: tuple[int, ...]
    """Tokens of each choice so far."""
    extra: int
    """Events since the last of these tokens came."""
    ended: bool
    """Whether it is the last one."""
    hash: bytes
    """Of these tokens."""

    @classmethod
    def parse(cls, text: bytes) -> EventId:
        """Read an id.

        Raises:
            ValidationError: it is none of this server's.
        """
        shown = text[:MOST_CHARACTERS].decode("latin-1")
        found = _ID.fullmatch(shown) if len(text) <= MOST_CHARACTERS else None
        counts = tuple(map(int, found[2].split(","))) if found else ()
        if found is None or len(counts) > MOST_CHOICES:
            raise ValidationError(
                "the header Last-Event-ID must be the id of an event of this server's. Given: "
                f"{shown[:80]!r}. Leave it out to begin from the beginning"
            )
        stream = urlsafe_b64decode(found[1])
        ended = found[3] == "end"
        return cls(
            int.from_bytes(stream[:SEED_BYTES], "big"),
            stream[SEED_BYTES:],
            counts,
            0 if ended else int(found[3]),
            ended,
            a2b_base64(found[4]),
        )


def prefix_of(seed: int, request: bytes) -> bytes:
    """Return what the ids of a stream begin with."""
    return urlsafe_b64encode(seed.to_bytes(SEED_BYTES, "big") + request)


def request_hash(path: str, body: bytes, owner: str = "", reading: bytes = b"") -> bytes:
    """Return the hash of what is asked, by whom, and of how it is understood: the route and the
    body, byte for byte, and what `Service.reading` is."""
    asked = f"{len(reading)} {len(owner)} {owner}{path}\0".encode() + reading + body
    return blake2b(asked, digest_size=REQUEST_BYTES, person=b"tgi-async id 1").digest()
