from __future__ import annotations

from workers.speculation.ngram import NgramSource
from workers.speculation.source import NOTHING, DraftRows, Proposal


def drafting(*texts: list[int]) -> NgramSource:
    """Rows 0 and up, each with a text as its prompt."""
    source = NgramSource()
    for row, tokens in enumerate(texts):
        source.admit(row, tokens, len(tokens), "someone")
    return source


def test_what_followed_is_drafted_up_to_the_limit() -> None:
    source = drafting([1, 2, 3, 4, 5, 6, 0, 1, 2])
    assert source.propose(DraftRows([0], [3])) == [Proposal([3, 4, 5], match=2)]
    assert source.propose(DraftRows([0], [1])) == [Proposal([3], match=2)]


def test_a_text_that_repeats_with_a_period_goes_on_repeating() -> None:
    source = drafting([0, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert source.propose(DraftRows([0], [7])) == [Proposal([1, 2, 3, 1, 2, 3, 1], match=6)]


def test_one_token_is_no_match() -> None:
    assert drafting([1, 2, 3, 4, 1]).propose(DraftRows([0], [4])) == [NOTHING]


def test_prompt_and_output_are_one_text() -> None:
    source = drafting([1, 2, 3, 4])
    source.observe(0, [7])
    source.observe(0, [1, 2])
    assert source.propose(DraftRows([0], [3])) == [Proposal([3, 4, 7], match=2)]


def test_rows_have_texts_of_their_own() -> None:
    source = drafting([1, 2, 3, 1, 2], [1, 2, 9, 1, 2], [3, 4, 5, 6])
    assert source.propose(DraftRows([2, 1, 0], [1, 1, 1])) == [
        NOTHING,
        Proposal([9], match=2),
        Proposal([3], match=2),
    ]


def test_a_row_can_be_released_twice_and_admitted_again() -> None:
    source = drafting([1, 2, 3, 1, 2])
    source.release(0)
    source.release(0)
    source.admit(0, [5, 6, 7, 5, 6], 5, "someone")
    assert source.propose(DraftRows([0], [1])) == [Proposal([7], match=2)]
