from __future__ import annotations

import pytest

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.scheduler.reservations import Capacity, Reservation, Reservations


def two_and_eight(max_queued_bytes: int = 2**62) -> Reservations:
    return Reservations(Capacity(2, 8, max_queued_bytes))


def reserve(kept: Reservations, client: str, n: int, size: int = 0) -> list[Reservation]:
    """One row each."""
    made = []
    for _ in range(n):
        one, evicted = kept.reserve(client, 1, size)
        assert not evicted
        made.append(one)
    return made


def run(kept: Reservations, reservations: list[Reservation]) -> None:
    for one in reservations:
        kept.start(one)


def test_a_client_alone_takes_all_there_is() -> None:
    kept = two_and_eight()
    reserve(kept, "ann", 10)
    with pytest.raises(Overloaded, match=r"serves 2 requests at once .* and 8 more may wait"):
        kept.reserve("ann", 1, 0)


def test_without_a_queue_whoever_finds_no_row_is_refused() -> None:
    kept = Reservations(Capacity(2))
    reserve(kept, "ann", 2)
    for client in ("ann", "bob"):
        with pytest.raises(Overloaded, match="none may wait"):
            kept.reserve(client, 1, 0)


def test_rows_that_are_free_are_for_everybody() -> None:
    kept = Reservations(Capacity(6, 2))
    reserve(kept, "bob", 1)
    reserve(kept, "ann", 5)


def test_while_another_waits_nobody_takes_more_than_half() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "eve", 2))
    reserve(kept, "bob", 1)
    reserve(kept, "ann", 4)
    with pytest.raises(Overloaded, match="at most half of its queue"):
        kept.reserve("ann", 1, 0)


def test_what_a_client_took_alone_it_keeps_while_there_is_room() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "ann", 2))
    mine = reserve(kept, "ann", 6)
    reserve(kept, "bob", 2)
    assert not any(one.evicted for one in mine)
    assert kept.waiting("ann") == 6


def test_in_a_full_queue_the_newest_of_who_has_most_gives_way() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "ann", 2))
    mine = reserve(kept, "ann", 5)
    reserve(kept, "bob", 3)
    _, evicted = kept.reserve("eve", 1, 0)
    assert evicted == [mine[-1]]
    assert mine[-1].evicted
    assert kept.n_rows == 10
    assert (kept.waiting("ann"), kept.waiting("eve")) == (4, 1)


def test_several_give_way_for_several_rows() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "ann", 2))
    mine = reserve(kept, "ann", 8)
    _, evicted = kept.reserve("eve", 3, 0)
    assert evicted == mine[:-4:-1]


def test_a_request_of_several_rows_gives_way_as_a_whole() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "ann", 2))
    reserve(kept, "ann", 4)
    whole, _ = kept.reserve("ann", 4, 0)
    _, evicted = kept.reserve("eve", 1, 0)
    assert evicted == [whole]
    assert kept.n_rows == 7


def test_shares_that_are_equal_stay() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "joe", 2))
    for client in ("ann", "bob"):
        reserve(kept, client, 4)
    for _ in range(2):
        kept.reserve("eve", 1, 0)
    with pytest.raises(Overloaded):
        kept.reserve("eve", 1, 0)
    assert sorted(map(kept.waiting, ("ann", "bob", "eve"))) == [2, 3, 3]


def test_what_has_begun_to_run_never_gives_way() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "ann", 10))
    with pytest.raises(Overloaded):
        kept.reserve("bob", 1, 0)


def test_a_request_part_of_which_runs_never_gives_way() -> None:
    kept = two_and_eight()
    large, _ = kept.reserve("ann", 8, 0)
    kept.start(large)
    reserve(kept, "ann", 2)
    assert kept.waiting("ann") == 9
    _, evicted = kept.reserve("bob", 1, 0)
    assert large not in evicted
    _, evicted = kept.reserve("bob", 1, 0)
    with pytest.raises(Overloaded):
        kept.reserve("bob", 1, 0)


def test_nobody_is_evicted_for_a_request_that_does_not_fit_then() -> None:
    kept = two_and_eight()
    run(kept, reserve(kept, "joe", 2))
    mine = reserve(kept, "ann", 5) + reserve(kept, "bob", 3)
    with pytest.raises(Overloaded):
        kept.reserve("eve", 4, 0)
    assert not any(one.evicted for one in mine)


def test_more_rows_than_there_are_can_never_be_had() -> None:
    with pytest.raises(ValidationError, match=r"at most 10 generations .* Given: 11\. .*--max-qu"):
        two_and_eight().reserve("ann", 11, 0)


def test_bytes_that_wait_are_bounded_and_shared_too() -> None:
    kept = two_and_eight(max_queued_bytes=100)
    run(kept, reserve(kept, "ann", 2, size=90))
    assert kept.n_queued_bytes == 0
    mine = reserve(kept, "ann", 2, size=45)
    with pytest.raises(Overloaded, match=r"may have 100 bytes .*--payload-limit"):
        kept.reserve("ann", 1, 45)
    _, evicted = kept.reserve("bob", 1, 45)
    assert evicted == [mine[-1]]
    with pytest.raises(Overloaded, match="one of them may have 50 bytes"):
        kept.reserve("bob", 1, 45)


def test_rows_come_back_as_they_end_and_the_last_with_the_request() -> None:
    kept = two_and_eight()
    one, _ = kept.reserve("ann", 3, 10)
    for _ in range(3):
        kept.start(one)
        kept.end(one, ran=True)
    assert kept.n_rows == 1
    for _ in range(2):
        kept.release(one)
        assert kept.n_rows == 0
    assert kept.waiting_clients == []


def test_a_second_generation_in_the_place_of_the_first_counts_once() -> None:
    kept = two_and_eight()
    one, _ = kept.reserve("ann", 1, 0)
    kept.start(one)
    kept.end(one, ran=True)
    kept.start(one)
    assert (kept.n_rows, kept.waiting("ann")) == (1, 0)
    kept.end(one, ran=True)
    kept.release(one)
    assert kept.n_rows == 0


class TestTokens:
    """Of prompts, in a queue of eight rows and a hundred tokens behind two rows."""

    @pytest.fixture
    def kept(self) -> Reservations:
        return Reservations(Capacity(2, 8, max_queued_tokens=100))

    def come(self, kept: Reservations, client: str, n_tokens: int) -> list[Reservation]:
        """Those that were evicted for a newcomer."""
        reservation, _ = kept.reserve(client, 1, 1)
        try:
            return kept.weigh(reservation, n_tokens)
        except Overloaded:
            kept.release(reservation)
            raise

    def run_two(self, kept: Reservations) -> None:
        for _ in range(2):
            reservation, _ = kept.reserve("joe", 1, 1)
            kept.weigh(reservation, 1000)
            kept.start(reservation)
        assert kept.n_queued_tokens == 0

    def test_who_waits_alone_may_have_all_of_them(self, kept: Reservations) -> None:
        self.run_two(kept)
        assert self.come(kept, "eve", 60) == []
        assert self.come(kept, "eve", 40) == []
        with pytest.raises(Overloaded, match=r"100 tokens \(--max-queued-tokens\)"):
            self.come(kept, "eve", 1)

    def test_while_others_wait_a_client_has_half(self, kept: Reservations) -> None:
        self.run_two(kept)
        self.come(kept, "ann", 10)
        self.come(kept, "eve", 50)
        with pytest.raises(Overloaded, match="50 tokens in its queue"):
            self.come(kept, "eve", 1)

    def test_the_newest_of_who_has_most_gives_way(self, kept: Reservations) -> None:
        self.run_two(kept)
        self.come(kept, "eve", 60)
        newest, _ = kept.reserve("eve", 1, 1)
        kept.weigh(newest, 40)
        assert self.come(kept, "ann", 30) == [newest]
        assert newest.evicted
        assert kept.n_queued_tokens == 90
        # She would have more than eve is left with.
        with pytest.raises(Overloaded):
            self.come(kept, "ann", 15)

    def test_they_come_back_with_the_first_row_that_runs(self, kept: Reservations) -> None:
        self.run_two(kept)
        several, _ = kept.reserve("eve", 2, 1)
        kept.weigh(several, 30)
        kept.weigh(several, 30)
        assert kept.n_queued_tokens == 60
        kept.start(several)
        assert kept.n_queued_tokens == 0
        assert kept.weigh(several, 30) == []
        assert kept.n_queued_tokens == 0

    def test_where_rows_are_free_nobody_is_refused(self, kept: Reservations) -> None:
        assert self.come(kept, "eve", 1000) == []
        assert self.come(kept, "eve", 1000) == []
        with pytest.raises(Overloaded):
            self.come(kept, "ann", 1)
