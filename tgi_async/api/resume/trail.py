"""What a stream has told so far: the tokens of each choice, and a hash of these.

A stream that is computed again emits the same tokens, for random numbers are a function of seed,
choice and position. Each choice is read up to where the client is, as if it were sent, and none
of it is; then, if the hash is the id's, all choices go on from there.
"""

from __future__ import annotations

import asyncio
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from tgi_async.api.encoding import Events
from tgi_async.api.resume.event_id import HASH_BYTES, EventId
from tgi_async.errors import NotResumable
from tgi_async.generation import Emitted

MISMATCH = (
    "The text cannot go on where it ended: computed again, it begins differently. This is another "
    "model, or one that rounds differently in another batch. Ask again without Last-Event-ID"
)
OTHER_CHOICES = "Last-Event-ID is of a stream with another number of choices"


class Told(NamedTuple):
    """The payload of an event, and the tokens of a choice since the event before."""

    payload: object
    choice: int
    ids: Sequence[int]


class Trail:
    """Numbers the events of one stream, and leaves out those up to `resumed`.

    `prefix` is what its ids begin with. `on_caught_up` is called when a resumed stream has come to
    where its client is.

    Raises:
        NotResumable: `resumed` is of another number of choices.
    """

    def __init__(
        self,
        prefix: bytes,
        n_choices: int,
        resumed: EventId | None = None,
        on_caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._prefix = prefix
        self._is_single = n_choices == 1
        self._counts = [0] * n_choices
        self._hashes = [choice.to_bytes(HASH_BYTES, "big") for choice in range(n_choices)]
        self._extra = -1
        self._resumed = resumed
        self._on_caught_up = on_caught_up
        self._behind: dict[int, int] = {}
        """How many tokens each choice is behind the client."""
        self._here = asyncio.Event()
        if resumed is None:
            return
        if len(resumed.counts) != n_choices:
            raise NotResumable(OTHER_CHOICES)
        self._behind = {choice: n for choice, n in enumerate(resumed.counts) if n}
        if not self._behind:
            self._catch_up()

    @property
    def is_behind(self) -> bool:
        """Whether a choice has not come to where the client is."""
        return bool(self._behind)

    async def caught_up(self) -> None:
        """Wait until no choice is behind."""
        await self._here.wait()

    def id_of(self, event: object, *, last: bool = False) -> bytes | None:
        """Return the id of the next event; None: the client has it."""
        if isinstance(event, Told) and event.ids:
            self._add(event.choice, event.ids)
        else:
            self._extra += 1
        resumed = self._resumed
        if resumed is not None:
            if self._behind or (
                tuple(self._counts) == resumed.counts and self._extra <= resumed.extra
            ):
                return None
            self._resumed = None
        hash = self._hashes[0] if self._is_single else self._hash()
        hash = b2a_base64(hash, newline=False)
        if not self._is_single or last:
            return self._long_id(hash, last=last)
        return b"%b.%d.%d.%b" % (self._prefix, self._counts[0], self._extra, hash)

    def _long_id(self, hash: bytes, *, last: bool) -> bytes:
        counts = ",".join(map(str, self._counts)).encode()
        extra = b"end" if last else b"%d" % self._extra
        return b"%b.%b.%b.%b" % (self._prefix, counts, extra, hash)

    def numbered(
        self, events_of: Callable[[Emitted], Events], choice: int, *, each: bool
    ) -> Callable[[Emitted], Events]:
        """Return `events_of` of a choice, with what `id_of` needs.

        `each`: a token may have several events, so that tokens that came together are given to
        `events_of` one by one. Else it makes at most one of them.
        """
        untold: list[int] = []

        def told(emitted: Emitted) -> Events:
            tokens = emitted.tokens
            if each and len(tokens) > 1:
                return [event for one in emitted.apart() for event in told(one)]
            events = events_of(emitted)
            ids = [tokens[0].id]
            if untold or tokens[1:]:
                ids = [*untold, *(token.id for token in tokens)]
                untold.clear()
            if not events:
                untold.extend(ids)
                return ()
            first, *others = events
            if not others:
                return (Told(first, choice, ids),)
            return [Told(first, choice, ids), *(Told(one, choice, ()) for one in others)]

        if choice not in self._behind:
            return told

        def catching_up(emitted: Emitted) -> Events:
            behind = self._behind.get(choice)
            if behind is None:
                return told(emitted)
            tokens = emitted.tokens
            if len(tokens) > behind:
                there = self._skip(Emitted(tokens[:behind], None), events_of, choice, each)
                return [*there, *told(Emitted(tokens[behind:], emitted.finish_reason))]
            return self._skip(emitted, events_of, choice, each)

        return catching_up

    def _skip(
        self, emitted: Emitted, events_of: Callable[[Emitted], Events], choice: int, each: bool
    ) -> Events:
        """Pass tokens that the client has; return events of the last one that it may lack.

        Raises:
            NotResumable: they are others.
        """
        events: Events = ()
        for one in emitted.apart() if each else (emitted,):
            events = events_of(one)
        self._add(choice, [token.id for token in emitted.tokens])
        self._behind[choice] -= len(emitted.tokens)
        if self._behind[choice]:
            if emitted.finish_reason is not None:
                raise NotResumable(MISMATCH)
            return ()
        del self._behind[choice]
        if not self._behind:
            self._catch_up()
        if not each or not self._is_single:
            return ()
        return [Told(event, choice, ()) for event in events[1:]]

    def _catch_up(self) -> None:
        """Go on where the client is."""
        assert self._resumed is not None
        if self._hash() != self._resumed.hash:
            raise NotResumable(MISMATCH)
        self._here.set()
        self._on_caught_up()

    def _add(self, choice: int, ids: Sequence[int]) -> None:
        hash = self._hashes[choice]
        for id in ids:
            hash = blake2b(hash + id.to_bytes(4, "big"), digest_size=HASH_BYTES).digest()
        self._hashes[choice] = hash
        self._counts[choice] += len(ids)
        self._extra = 0

    def _hash(self) -> bytes:
        if self._is_single:
            return self._hashes[0]
        return blake2b(b"".join(self._hashes), digest_size=HASH_BYTES).digest()
