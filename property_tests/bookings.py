"""Who holds rows of the server, kept beside the core's own account, and what must hold of it.

A1: what is reserved stays within its bounds. A2: no client takes more than half of the queue while
another waits. A3: only what never ran gives way, the newest of a client first, to one with no more.
A4: nobody is refused for whom there is room, or could be made. A5: rows and bytes come back.
"""

from __future__ import annotations

from collections.abc import Sequence

from property_tests.model import require
from tgi_async.scheduler.reservations import Capacity, Reservation, Reservations


class Booking:
    """A reservation as its client knows it."""

    def __init__(self, reservation: Reservation, client: str, n_rows: int, n_bytes: int) -> None:
        self.reservation = reservation
        self.client = client
        self.n_rows = self.n_waiting = n_rows
        self.n_bytes = n_bytes
        self.n_tokens = 0
        self.ran = False
        self.requests: list[int] = []
        """The ids of those that live."""


class Bookings:
    """Follows each event in the order of the core's own."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.held: list[Booking] = []
        """In order of arrival."""

    @property
    def n_rows(self) -> int:
        return sum(one.n_rows for one in self.held)

    @property
    def n_bytes(self) -> int:
        return sum(one.n_bytes for one in self.held if not one.ran)

    @property
    def n_tokens(self) -> int:
        return sum(one.n_tokens for one in self.held if not one.ran)

    def tokens_of(self, client: str) -> int:
        return sum(one.n_tokens for one in self.held if one.client == client and not one.ran)

    def rows_of(self, client: str) -> int:
        return sum(one.n_waiting for one in self.held if one.client == client)

    def bytes_of(self, client: str) -> int:
        return sum(one.n_bytes for one in self.held if one.client == client and not one.ran)

    def others_wait(self, client: str) -> bool:
        return any(one.client != client and (one.n_waiting or not one.ran) for one in self.held)

    def has_room(self, n_rows: int) -> bool:
        """Whether nobody needs to wait for rows."""
        return self.n_rows + n_rows <= self.capacity.max_concurrent

    def over_half(self, client: str, n_rows: int, n_bytes: int) -> bool:
        capacity = self.capacity
        return self.others_wait(client) and (
            self.rows_of(client) + n_rows > max(1, capacity.max_queued // 2)
            or 2 * (self.bytes_of(client) + n_bytes) > capacity.max_queued_bytes
        )

    def refuse(self, client: str, n_rows: int, n_bytes: int) -> str:
        """The core found no room. Returns why that is right."""
        require(not self.has_room(n_rows), "A4", f"{client} is refused, and rows are free")
        if not self.capacity.max_queued:
            return "refused without a queue"
        if self.over_half(client, n_rows, n_bytes):
            return "half of the queue"
        lacking = self.n_rows + n_rows - self.capacity.max_rows
        lacking_bytes = n_bytes - max(0, self.capacity.max_queued_bytes - self.n_bytes)
        require(lacking > 0 or lacking_bytes > 0, "A4", f"{client} is refused, and places are free")
        if lacking_bytes <= 0:
            could = self._could_give(client, self.rows_of(client) + n_rows, of_bytes=False)
            require(could < lacking, "A4", f"{client} is refused, and others have more rows")
        elif lacking <= 0:
            could = self._could_give(client, self.bytes_of(client) + n_bytes, of_bytes=True)
            require(could < lacking_bytes, "A4", f"{client} is refused, and others have more bytes")
        return "full queue"

    def add(self, booking: Booking, evicted: Sequence[Reservation]) -> list[Booking]:
        """A reservation was made. Returns the evicted bookings."""
        client, n_rows, n_bytes = booking.client, booking.n_rows, booking.n_bytes
        free = self.has_room(n_rows)
        require(not (free and evicted), "A3", "rows are free, and others are evicted")
        if not free:
            require(bool(self.capacity.max_queued), "A1", "there is no queue")
            over = self.over_half(client, n_rows, n_bytes)
            require(not over, "A2", f"{client} takes more than half while another waits")
        bytes_before = self.n_bytes
        gone = []
        for reservation in evicted:
            fits = self.n_rows + n_rows <= self.capacity.max_rows and self.n_bytes + n_bytes <= max(
                self.capacity.max_queued_bytes, bytes_before
            )
            require(not fits, "A3", "more are evicted than need be")
            gone.append(self._evict(reservation, booking))
        self.held.append(booking)
        require(self.n_rows <= self.capacity.max_rows, "A1", f"{self.n_rows} rows")
        if not free:
            most = max(self.capacity.max_queued_bytes, bytes_before)
            require(self.n_bytes <= most, "A1", f"{self.n_bytes} bytes wait")
        return gone

    def weigh(
        self, booking: Booking, n_tokens: int, evicted: Sequence[Reservation]
    ) -> list[Booking]:
        """The tokens of a prompt were taken in. Returns the evicted bookings."""
        if booking.ran or booking not in self.held:
            require(not evicted, "A3", "others are evicted for what waits no more")
            return []
        most, before = self.capacity.max_queued_tokens, self.n_tokens
        free = most is None or self.n_rows <= self.capacity.max_concurrent
        require(not (free and evicted), "A3", "there is room, and others are evicted")
        due = self.tokens_of(booking.client) + n_tokens
        if not free and most is not None and self.others_wait(booking.client):
            require(due <= most // 2, "A2", f"{booking.client} takes more than half of the tokens")
        gone = []
        for reservation in evicted:
            require(most is not None and self.n_tokens + n_tokens > most, "A3", "too many evicted")
            one = next(one for one in self.held if one.reservation is reservation)
            require(not one.ran and one.client != booking.client, "A3", "the wrong one is evicted")
            mine = [other for other in self.held if other.client == one.client and not other.ran]
            require(mine[-1] is one, "A3", "it was not the newest of its client")
            self.held.remove(one)
            require(self.tokens_of(one.client) >= due, "A3", f"{one.client} is left with less")
            gone.append(one)
        booking.n_tokens += n_tokens
        if not free and most is not None:
            require(self.n_tokens <= max(most, before), "A1", f"{self.n_tokens} tokens wait")
        return gone

    def too_heavy(self, booking: Booking, n_tokens: int) -> None:
        """The core had no room for the tokens of a prompt."""
        most = self.capacity.max_queued_tokens
        require(most is not None, "A4", "tokens are refused without a bound")
        assert most is not None
        require(self.n_rows > self.capacity.max_concurrent, "A4", "rows are free for these tokens")
        full = self.n_tokens + n_tokens > most
        half = self.tokens_of(booking.client) + n_tokens > most // 2
        others = self.others_wait(booking.client)
        require(full or (half and others), "A4", "there is room for these tokens")

    def start(self, booking: Booking) -> None:
        """A row of it runs for the first time."""
        require(booking in self.held, "A3", "an evicted request runs")
        booking.ran = True
        booking.n_waiting -= 1

    def end(self, booking: Booking, *, ran: bool) -> None:
        """A row of it is over."""
        booking.n_waiting -= not ran
        booking.n_rows -= booking.n_rows > 1

    def release(self, booking: Booking) -> None:
        self.held.remove(booking)

    def check(self, kept: Reservations) -> None:
        """A5: the core's account is this one."""
        require(kept.n_rows == self.n_rows, "A5", f"{kept.n_rows} rows, not {self.n_rows}")
        bytes_kept = kept.n_queued_bytes
        require(bytes_kept == self.n_bytes, "A5", f"{bytes_kept} bytes, not {self.n_bytes}")
        tokens_kept = kept.n_queued_tokens
        require(tokens_kept == self.n_tokens, "A5", f"{tokens_kept} tokens, not {self.n_tokens}")
        clients = {one.client for one in self.held}
        for client in clients:
            rows = self.rows_of(client)
            require(kept.waiting(client) == rows, "A5", f"{rows} rows of {client} wait")
        require(set(kept.waiting_clients) <= clients, "A5", "a client stays that has left")

    def _evict(self, reservation: Reservation, newcomer: Booking) -> Booking:
        one = next((one for one in self.held if one.reservation is reservation), None)
        require(one is not None, "A3", "what is evicted was not held")
        assert one is not None
        require(not one.ran, "A3", "what is evicted has run")
        require(one.client != newcomer.client, "A3", "a client evicts its own")
        mine = [other for other in self.held if other.client == one.client and not other.ran]
        require(mine[-1] is one, "A3", "it was not the newest of its client")
        self.held.remove(one)
        rows = self.rows_of(newcomer.client) + newcomer.n_rows
        size = self.bytes_of(newcomer.client) + newcomer.n_bytes
        keeps = self.rows_of(one.client) >= rows or self.bytes_of(one.client) >= size
        require(keeps, "A3", f"{one.client} is left with less than {newcomer.client} gets")
        return one

    def _could_give(self, client: str, due: int, *, of_bytes: bool) -> int:
        """What other clients have beyond the `due` of this one, newest first."""
        given = 0
        for other in {one.client for one in self.held} - {client}:
            left = self.bytes_of(other) if of_bytes else self.rows_of(other)
            for one in reversed([one for one in self.held if one.client == other and not one.ran]):
                size = one.n_bytes if of_bytes else one.n_waiting
                if left - size < due:
                    break
                left -= size
                given += one.n_bytes if of_bytes else one.n_rows
        return given
