from __future__ import annotations

from tgi_async.api.resume.history import OVERHEAD, History


def event(number: int) -> bytes:
    return b"data: %d\nid: %d\n\n" % (number, number)


def history(n: int, base: bytes | None = None) -> History:
    found = History(base)
    for number in range(n):
        found.add(event(number))
    return found


def test_events_are_found_by_the_id_before_them() -> None:
    one = history(3)
    assert one.since(one.place_after(b"0") or 0) == [event(1), event(2)]
    assert one.place_after(b"2") == one.end == 3
    assert one.since(3) == []
    assert one.place_after(b"7") is None


def test_an_id_is_no_end_of_another_one() -> None:
    one = history(13)
    assert one.place_after(b"2") == 3
    assert one.place_after(b"12") == 13


def test_all_comes_after_the_base() -> None:
    assert history(2, b"before").place_after(b"before") == 0
    assert history(2).place_after(b"before") is None
    dropped = history(2, b"before")
    dropped.drop_before(2, 0)
    assert dropped.place_after(b"before") is None


def test_the_oldest_are_dropped_first_and_none_that_was_not_sent() -> None:
    one = history(5)
    size = len(event(0)) + OVERHEAD
    assert one.drop_before(3, 4 * size) == size
    assert (one.first, one.n_bytes) == (1, 4 * size)
    assert one.drop_before(3, 0) == 2 * size
    assert one.since(3) == [event(3), event(4)]
    assert one.place_after(b"1") is None
    assert one.place_after(b"3") == 4
