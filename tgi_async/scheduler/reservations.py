"""Rows, bytes and tokens that requests hold, from their arrival to their end.

A request reserves a row for each of its generations when it arrives, before anything is computed
for it. `max_concurrent` rows are given to any client that asks. Beyond these, `max_queued` more may
wait, shared so that no client locks others out:

**Half.** While another client waits, no client reserves so much of the queue that more than half of
it would wait for this one. What it had before, when it waited alone, it keeps until it is needed.

**Eviction.** Where the queue is full, the newest waiting request of another client gives way, of
the one with the most, provided that it still has no less than the newcomer then has. So shares move
towards equal ones and never back and forth, and a client with less than the others always gets in.
What has run is never evicted.

A row waits until it runs for the first time, whether it is being tokenized or is in the waiting
queue, whose order is not decided here. The bytes are those of the bodies of requests that have not
begun to run: prompts and tokens take memory in proportion to them. The tokens are those of their
prompts, known a little later: the work that is due before a newcomer's turn. Where they are
bounded, they are shared by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tgi_async.errors import Overloaded, ValidationError

QUEUED_PAYLOADS = 16
"""Bodies of the largest size that may wait; as tokens, prompts are a few times as large."""
BYTES_OF = f"{QUEUED_PAYLOADS} times --payload-limit"
EVICTED = (
    "Model is overloaded: this request waited in a full queue (--max-queued-requests), and its "
    "place went to a client with fewer"
)


class Capacity(NamedTuple):
    """How much may be reserved."""

    max_concurrent: int = 2**31
    """Rows that run at once, given to any client that asks."""
    max_queued: int = 0
    """Further rows, which wait. 0: a request that finds no row is refused."""
    max_queued_bytes: int = 2**62
    """Most bytes of the bodies of waiting requests, where one of them has to wait."""
    max_queued_tokens: int | None = None
    """Most tokens of the prompts of waiting requests, where one of them has to wait; None: any."""

    @property
    def max_rows(self) -> int:
        return self.max_concurrent + self.max_queued

    @classmethod
    def of(
        cls,
        max_concurrent: int,
        max_queued: int,
        payload_limit: int,
        max_queued_tokens: int | None = None,
    ) -> Capacity:
        """Return the capacity by the settings of these names."""
        return cls(max_concurrent, max_queued, QUEUED_PAYLOADS * payload_limit, max_queued_tokens)


class Reservation:
    """What one request holds: a row for each of its generations, and the bytes of its body."""

    __slots__ = (
        "began",
        "client",
        "evicted",
        "n_bytes",
        "n_queued_tokens",
        "n_rows",
        "n_tokens",
        "n_waiting",
        "on_evicted",
    )

    def __init__(self, client: str, n_rows: int, n_bytes: int) -> None:
        self.client = client
        self.n_rows = n_rows
        self.n_bytes = n_bytes
        self.n_waiting = n_rows
        """Rows that have not run yet."""
        self.n_queued_tokens = 0
        """Tokens of its prompts, as far as they were weighed while it waited."""
        self.began = False
        """Whether any row of it has run."""
        self.n_tokens = 0
        """Tokens of its texts that have run and ended, prompts and answers."""
        self.evicted = False
        """Whether its place went to another client."""
        self.on_evicted: Callable[[], None] | None = None


class Share:
    """The reservations of one client that wait."""

    __slots__ = ("n_bytes", "n_rows", "n_tokens", "reservations")

    def __init__(self) -> None:
        self.n_rows = 0
        self.n_bytes = 0
        self.n_tokens = 0
        self.reservations: dict[Reservation, None] = {}
        """The client's reservations of which no row has run, in order of arrival."""


class Reservations:
    """All reservations."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.n_rows = 0
        self.n_queued_bytes = 0
        self.n_queued_tokens = 0
        self._shares: dict[str, Share] = {}

    def waiting(self, client: str) -> int:
        """Return how many rows of a client have not run yet."""
        share = self._shares.get(client)
        return share.n_rows if share is not None else 0

    @property
    def waiting_clients(self) -> list[str]:
        return list(self._shares)

    def reserve(
        self, client: str, n_rows: int, n_bytes: int
    ) -> tuple[Reservation, list[Reservation]]:
        """Reserve rows for a request. Return its reservation and those that were evicted for it.

        Raises:
            ValidationError: the request has more rows than can ever be reserved.
            Overloaded: it would have to wait, and there is no room for it.
        """
        if n_rows > self.capacity.max_rows:
            raise ValidationError(
                f"a request may ask for at most {self.capacity.max_rows} generations (prompts "
                f"times choices) at once. Given: {n_rows}. Ask for fewer, or start the server with "
                "a larger --max-concurrent-requests or --max-queued-requests"
            )
        evicted = self._make_room(client, n_rows, n_bytes)
        for one in evicted:
            self._give_back(one)
            one.evicted = True
        reservation = Reservation(client, n_rows, n_bytes)
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = Share()
        share.n_rows += n_rows
        share.n_bytes += n_bytes
        share.reservations[reservation] = None
        self.n_rows += n_rows
        self.n_queued_bytes += n_bytes
        return reservation, evicted

    def weigh(self, reservation: Reservation, n_tokens: int) -> list[Reservation]:
        """Add the tokens of a prompt to a reservation that waits. Return those that were evicted
        for it.

        Raises Overloaded where there is no room for so many.
        """
        share = self._shares.get(reservation.client)
        if share is None or reservation not in share.reservations:
            return []  # It runs already, or is over.
        evicted = self._make_room_for_tokens(share, n_tokens)
        for one in evicted:
            self._give_back(one)
            one.evicted = True
        reservation.n_queued_tokens += n_tokens
        share.n_tokens += n_tokens
        self.n_queued_tokens += n_tokens
        return evicted

    def start(self, reservation: Reservation) -> None:
        """Note that one of its rows runs for the first time."""
        reservation.began = True
        if not reservation.n_waiting:
            return  # It has taken the place of one that has ended.
        share = self._shares[reservation.client]
        share.n_rows -= 1
        reservation.n_waiting -= 1
        if reservation in share.reservations:
            self._begin(reservation, share)
        self._tidy(reservation.client, share)

    def end(self, reservation: Reservation, *, ran: bool) -> None:
        """Note that a row of it is over, whether it had run or not. The last one stays until
        `release`."""
        if not ran and reservation.n_waiting:
            self._shares[reservation.client].n_rows -= 1
            reservation.n_waiting -= 1
            self._tidy(reservation.client, self._shares[reservation.client])
        if reservation.n_rows > 1:
            reservation.n_rows -= 1
            self.n_rows -= 1

    def release(self, reservation: Reservation) -> None:
        """End a reservation. Idempotent."""
        self._give_back(reservation)

    def _give_back(self, reservation: Reservation) -> None:
        share = self._shares.get(reservation.client)
        if share is not None:
            share.n_rows -= reservation.n_waiting
            if reservation in share.reservations:
                self._begin(reservation, share)
            self._tidy(reservation.client, share)
        self.n_rows -= reservation.n_rows
        reservation.n_rows = reservation.n_waiting = 0

    def _begin(self, reservation: Reservation, share: Share) -> None:
        """Note that the reservation no longer waits as a whole."""
        del share.reservations[reservation]
        share.n_bytes -= reservation.n_bytes
        self.n_queued_bytes -= reservation.n_bytes
        share.n_tokens -= reservation.n_queued_tokens
        self.n_queued_tokens -= reservation.n_queued_tokens

    def _tidy(self, client: str, share: Share) -> None:
        if not share.n_rows and not share.reservations:
            del self._shares[client]

    def _make_room(self, client: str, n_rows: int, n_bytes: int) -> list[Reservation]:
        """Return which reservations to evict so that this request fits. Raises Overloaded."""
        capacity = self.capacity
        if self.n_rows + n_rows <= capacity.max_concurrent:
            return []
        if not capacity.max_queued:
            raise Overloaded(
                f"Model is overloaded: it serves {capacity.max_concurrent} requests at once "
                "(--max-concurrent-requests), and none may wait (--max-queued-requests 0)"
            )
        own = self._shares.get(client) or Share()
        rows, size = own.n_rows + n_rows, own.n_bytes + n_bytes
        others = [share for name, share in self._shares.items() if name != client]
        if others:
            self._check_half(rows, size)
        lacking = self.n_rows + n_rows - capacity.max_rows
        lacking_bytes = n_bytes - max(0, capacity.max_queued_bytes - self.n_queued_bytes)
        if lacking <= 0 and lacking_bytes <= 0:
            return []
        candidates = [_Candidate(share) for share in others]
        evicted: list[Reservation] = []
        while lacking > 0 or lacking_bytes > 0:
            if lacking > 0:
                able = [one for one in candidates if one.rows_without_newest >= rows]
                most = max(able, key=lambda one: one.n_rows, default=None)
            else:
                able = [one for one in candidates if one.bytes_without_newest >= size]
                most = max(able, key=lambda one: one.n_bytes, default=None)
            if most is None:
                raise Overloaded(self._why_full(of_rows=lacking > 0))
            newest = most.give_newest()
            lacking -= newest.n_rows
            lacking_bytes -= newest.n_bytes
            evicted.append(newest)
        return evicted

    def _make_room_for_tokens(self, own: Share, n_tokens: int) -> list[Reservation]:
        """Return which reservations to evict so that these tokens fit. Raises Overloaded."""
        most = self.capacity.max_queued_tokens
        if most is None or self.n_rows <= self.capacity.max_concurrent:
            return []
        due = own.n_tokens + n_tokens
        others = [share for share in self._shares.values() if share is not own]
        if due > most // 2 and others:
            raise Overloaded(
                "Model is overloaded: while other clients wait, the prompts of one of them may "
                f"have {most // 2} tokens in its queue (half of --max-queued-tokens)"
            )
        lacking = self.n_queued_tokens + n_tokens - most
        candidates = [_Candidate(share) for share in others]
        evicted: list[Reservation] = []
        while lacking > 0:
            able = [one for one in candidates if one.tokens_without_newest >= due]
            largest = max(able, key=lambda one: one.n_tokens, default=None)
            if largest is None:
                raise Overloaded(
                    "Model is overloaded: the prompts in its queue may have "
                    f"{most} tokens (--max-queued-tokens)"
                )
            newest = largest.give_newest()
            lacking -= newest.n_queued_tokens
            evicted.append(newest)
        return evicted

    def _check_half(self, rows: int, size: int) -> None:
        """Check a client's share of the queue while others wait. Raises Overloaded."""
        capacity = self.capacity
        if rows > max(1, capacity.max_queued // 2):
            raise Overloaded(
                "Model is overloaded: while other clients wait, at most half of its queue may "
                f"wait for one of them (--max-queued-requests, here {capacity.max_queued})"
            )
        if size > capacity.max_queued_bytes // 2:
            raise Overloaded(
                "Model is overloaded: while other clients wait, the requests of one of them may "
                f"have {capacity.max_queued_bytes // 2} bytes in its queue ({BYTES_OF})"
            )

    def _why_full(self, *, of_rows: bool) -> str:
        capacity = self.capacity
        if of_rows:
            return (
                f"Model is overloaded: it serves {capacity.max_concurrent} requests at once "
                f"(--max-concurrent-requests), and {capacity.max_queued} more may wait "
                "(--max-queued-requests)"
            )
        return (
            f"Model is overloaded: the requests in its queue may have {capacity.max_queued_bytes} "
            f"bytes ({BYTES_OF})"
        )


class _Candidate:
    """A share from which reservations may be evicted, and what remains of it."""

    def __init__(self, share: Share) -> None:
        self.n_rows = share.n_rows
        self.n_bytes = share.n_bytes
        self.n_tokens = share.n_tokens
        self._left = list(share.reservations)

    @property
    def rows_without_newest(self) -> int:
        return self.n_rows - self._left[-1].n_waiting if self._left else -1

    @property
    def bytes_without_newest(self) -> int:
        return self.n_bytes - self._left[-1].n_bytes if self._left else -1

    @property
    def tokens_without_newest(self) -> int:
        return self.n_tokens - self._left[-1].n_queued_tokens if self._left else -1

    def give_newest(self) -> Reservation:
        newest = self._left.pop()
        self.n_rows -= newest.n_waiting
        self.n_bytes -= newest.n_bytes
        self.n_tokens -= newest.n_queued_tokens
        return newest
