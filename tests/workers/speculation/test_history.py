from __future__ import annotations

import random
import tracemalloc
from array import array
from collections.abc import Callable

import pytest

from workers.speculation import history as module
from workers.speculation.history import LONGEST, History


def end_of(history: History) -> tuple[int, int]:
    return history.find(history.text[-LONGEST:])


def grown(tokens: list[int]) -> History:
    """A text that was searched after each of its tokens."""
    history = History(tokens[:4])
    for token in tokens[4:]:
        history.text.append(token)
        end_of(history)
    return history


@pytest.mark.parametrize("made", [History, grown], ids=["at once", "one by one"])
@pytest.mark.parametrize(
    ("longest", "shorter"), [([1, 2, 3], [2, 3]), ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6])]
)
def test_the_longest_suffix_is_found_before_later_ones_that_are_shorter(
    made: Callable[[list[int]], History], longest: list[int], shorter: list[int]
) -> None:
    text = [0, 0, *longest, 70, *shorter, 71, *shorter, 72, *longest]
    assert end_of(made(text)) == (len(longest), 2 + len(longest))


@pytest.mark.parametrize("made", [History, grown], ids=["at once", "one by one"])
def test_the_latest_of_equals_is_found(made: Callable[[list[int]], History]) -> None:
    assert end_of(made([1, 2, 3, 7, 1, 2, 3, 8, 0, 2, 3])) == (2, 7)


def test_places_that_are_too_early_for_what_is_asked_do_not_match() -> None:
    tail = array("i", [9] * 12 + [1, 2, 3, 4])
    assert History([1, 2, 3, 4, 5]).find(tail) == (4, 4)
    assert History([1, 2, 3, 4, 5]).find(tail, beyond=10) == (0, 0)


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 1, 1], [1, 2, 3, 4, 5, 6]])
def test_a_text_without_repetition_and_a_tiny_one_have_no_match(tokens: list[int]) -> None:
    assert end_of(History(tokens)) == (0, 0)


def test_a_match_has_at_most_the_tokens_that_were_given() -> None:
    assert end_of(History(list(range(100)) * 2)) == (LONGEST, 100)


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("length", [200, 20_000])
def test_a_periodic_text_is_found_one_period_before(period: int, length: int) -> None:
    tokens = list(range(period)) * length
    assert end_of(History(tokens)) == (LONGEST, len(tokens) - period)
    assert end_of(grown(tokens[:500])) == (LONGEST, min(500, len(tokens)) - period)


def test_a_text_that_ends_goes_on_from_the_place_it_is_read_from() -> None:
    history = History([5, 6, 7, 8])
    assert history.after(1, 2) == [6, 7]
    assert history.after(1, 8) == [6, 7, 8, 6, 7, 8, 6, 7]
    assert history.after(3, 3) == [8, 8, 8]


@pytest.mark.parametrize("n_after", [10, 1000, 30_000])
def test_early_places_are_found_in_a_text_that_has_grown(n_after: int) -> None:
    early = [70_000, 70_001, 70_002, 70_003, 70_004]
    draw = random.Random(7)
    history = grown(early + [draw.randrange(50_000) for _ in range(300)])
    history.text.extend(draw.randrange(50_000) for _ in range(n_after))
    history.text.extend(early[:4])
    assert end_of(history) == (4, 4)


@pytest.mark.parametrize("length", [100, 1000, 10_000])
@pytest.mark.parametrize("step", [1, 2, 7, 64])
def test_tokens_that_count_up_are_found(length: int, step: int) -> None:
    """So that hashes which are close to each other do not hide a place."""
    history = History(range(0, length * step, step))
    history.text.append(5 * step)
    for n_matched in (1, 2, 3, 4, 5):
        history.text.append((5 + n_matched) * step)
        assert end_of(history) == (n_matched + 1, 6 + n_matched)


def test_tokens_with_equal_hashes_are_not_taken_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_WEIGHTS", (0, 0, 0, 0))
    tokens = list(range(60))
    assert end_of(History(tokens)) == (0, 0)
    assert end_of(grown(tokens)) == (0, 0)
    assert end_of(History([*tokens, 59])) == (1, 60)


def test_a_search_visits_a_bounded_number_of_places() -> None:
    often = [1, 2, 3, 4]
    longest = [8, 9, *often]
    filler = [token for n in range(1000) for token in (100 + n, *often)]
    # The best place is older than a thousand others, and is not looked for so far back.
    match, place = end_of(History([*longest, *filler, *longest]))
    assert match == 4
    assert place > 4 * 1000


@pytest.mark.parametrize("length", [1_000, 16_384, 16_385, 100_000])
def test_a_token_takes_at_most_64_bytes(length: int) -> None:
    draw = random.Random(length)
    tokens = [draw.randrange(50_000) for _ in range(length)]
    for one_by_one in (False, True):
        n_filed = max(4, length - 2000) if one_by_one else length
        tracemalloc.start()
        history = History(tokens[:n_filed])
        end_of(history)
        for token in tokens[n_filed:]:
            history.text.append(token)
            end_of(history)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(history.text) == length
        assert taken <= 64 * length


def test_a_text_that_is_never_searched_takes_four_bytes_a_token() -> None:
    tracemalloc.start()
    history = History(range(10_000))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(history.text) == 10_000
    assert taken <= 5 * 10_000
