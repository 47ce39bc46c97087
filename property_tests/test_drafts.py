"""Sources of drafts against a search that compares everything."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.speculation import history
from workers.speculation.history import LONGEST, History
from workers.speculation.ngram import NgramSource
from workers.speculation.source import DraftRows
from workers.speculation.suffix import SuffixSource


def texts(max_size: int = 80) -> st.SearchStrategy[list[int]]:
    """Texts that repeat themselves: of few tokens, and of pieces of themselves."""
    few = st.sampled_from([[1], [1, 2], [1, 2, 3, 4, 5], list(range(30)), [0, 4096, 8192]])
    plain = few.flatmap(lambda tokens: st.lists(st.sampled_from(tokens), max_size=max_size // 2))
    return st.tuples(plain, st.integers(0, max_size), st.integers(0, max_size)).map(
        lambda drawn: drawn[0] + drawn[0][drawn[1] % (len(drawn[0]) + 1) :][: drawn[2]]
    )


def matched(text: list[int], place: int, tail: list[int]) -> int:
    """How many tokens before a place are those at the end of `tail`."""
    length = 0
    while (
        length < min(place, len(tail)) and text[place - length - 1] == tail[len(tail) - length - 1]
    ):
        length += 1
    return length


def by_hand(text: list[int], tail: list[int], beyond: int = 0) -> tuple[int, int]:
    """The longest match of more than `beyond`, and the latest place of it."""
    found = max(
        ((matched(text, place, tail), place) for place in range(1, len(text))), default=(0, 0)
    )
    return found if len(tail) >= 4 and found[0] > beyond else (0, 0)


@pytest.fixture
def every_place_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_VISITS", (range(1000),) * 3)


@given(st.lists(texts(), min_size=1, max_size=4), st.integers(0, LONGEST), st.booleans())
@pytest.mark.usefixtures("every_place_visited")
def test_a_text_finds_the_latest_place_of_its_longest_suffix(
    pieces: list[list[int]], beyond: int, filed_at_once: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "_MANY", 1 if filed_at_once else 1000)
        own, text = History(), list[int]()
        for piece in pieces:
            own.text.extend(piece)
            text += piece
            tail = text[-LONGEST:]
            assert own.find(array("i", tail), beyond) == by_hand(text, tail, beyond)


@given(texts(), texts(), st.integers(0, LONGEST))
@pytest.mark.usefixtures("every_place_visited")
def test_so_it_does_of_another_text(text: list[int], other: list[int], beyond: int) -> None:
    tail = other[-LONGEST:]
    assert History(text).find(array("i", tail), beyond) == by_hand(text, tail, beyond)


@given(st.lists(texts(1000), min_size=1, max_size=4))
def test_what_a_bounded_search_finds_is_there(pieces: list[list[int]]) -> None:
    own, text = History(), list[int]()
    for piece in pieces:
        own.text.extend(piece)
        text += piece
        tail = text[-LONGEST:]
        match, place = own.find(array("i", tail))
        assert (match, place) == (0, 0) or matched(text, place, tail) == match > 0
        # What occurs at all is found, though perhaps not the longest of many.
        assert (match > 0) == (by_hand(text, tail)[0] > 0)


@given(texts(), texts(), st.integers(1, 12))
@pytest.mark.usefixtures("every_place_visited")
def test_ngram_drafts_what_followed(prompt: list[int], output: list[int], limit: int) -> None:
    source = NgramSource()
    source.admit(3, prompt, len(prompt), "")
    source.observe(3, output)
    (drafts,) = source.propose(DraftRows([3], [limit]))
    text = prompt + output
    match, place = by_hand(text, text[-LONGEST:], beyond=1)
    expected = list[int]()
    if match:
        following = text[place:] * limit
        expected = following[:limit]
    assert drafts == (expected, match)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["admit", "observe", "release"]), texts()),
        max_size=40,
    ),
    st.integers(1, 12),
)
def test_a_tenant_never_sees_the_text_of_another(
    acts: list[tuple[int, str, list[int]]], limit: int
) -> None:
    source = SuffixSource()
    tenants = dict[int, int]()
    """By row. The tokens of tenant n are 10,000 n and above."""
    for row, act, tokens in acts:
        if act == "admit" and row not in tenants:
            tenants[row] = row % 2
            own = [10_000 * tenants[row] + token for token in tokens]
            source.admit(row, own, len(own), str(tenants[row]))
        elif act == "observe" and row in tenants:
            source.observe(row, [10_000 * tenants[row] + token for token in tokens])
        elif act == "release":
            source.release(row)
            tenants.pop(row, None)
        rows = sorted(tenants)
        proposals = source.propose(DraftRows(rows, [limit] * len(rows)))
        for drafting, proposal in zip(rows, proposals, strict=True):
            assert len(proposal.tokens) <= limit
            assert bool(proposal.tokens) == bool(proposal.match)
            assert {token // 10_000 for token in proposal.tokens} <= {tenants[drafting]}
