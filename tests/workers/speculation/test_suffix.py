from __future__ import annotations

import pytest

from workers.speculation.source import NOTHING, DraftRows, Proposal
from workers.speculation.suffix import SuffixSource

ANSWER = list(range(100, 130))


def answered(tenant: str, prompt: list[int], answer: list[int]) -> SuffixSource:
    """A source that has seen one answer, of a row that is there no more."""
    source = SuffixSource()
    source.admit(0, prompt, len(prompt), tenant)
    source.observe(0, answer)
    source.release(0)
    return source


def drafts(source: SuffixSource, tenant: str, tokens: list[int], limit: int = 8) -> Proposal:
    """What is drafted for a new row with this text."""
    source.admit(1, tokens, len(tokens), tenant)
    (proposal,) = source.propose(DraftRows([1], [limit]))
    source.release(1)
    return proposal


@pytest.mark.parametrize(("match", "n_drafts"), [(1, 2), (2, 4), (3, 6), (4, 8), (8, 16)])
def test_a_longer_match_leads_further(match: int, n_drafts: int) -> None:
    text = [*range(50), 99, *range(match)]
    expected = Proposal([*range(match, match + n_drafts)], match)
    assert drafts(SuffixSource(), "a", text, limit=100) == expected
    assert drafts(SuffixSource(), "a", text, limit=2) == Proposal(expected.tokens[:2], match)


def test_the_longest_suffix_of_the_own_text_counts() -> None:
    assert drafts(SuffixSource(), "a", [1, 2, 3, 4, 5, 2, 3, 9, 7, 1, 2, 3], 1) == Proposal([4], 3)


@pytest.mark.parametrize(
    "copied",
    [[50, 15], [60, 15], [15], [60, 61, 15], [50, 60, 15]],
    ids=["nothing", "one token", "left out", "two for one", "added"],
)
def test_after_a_change_the_passage_goes_on_though_a_later_place_matches_as_well(
    copied: list[int],
) -> None:
    passage, later = [10, 11, 12, 13, 14, 50, 15, 16, 17, 18], [15, 77, 78]
    source = SuffixSource()
    source.admit(0, [*passage, *later, 10, 11, 12], 16, "a")
    assert source.propose(DraftRows([0], [2])) == [Proposal([13, 14], 3)]
    source.observe(0, [13, 14, *copied])
    (proposal,) = source.propose(DraftRows([0], [2]))
    assert proposal.tokens == [16, 17]


def test_there_too_it_must_match_as_much() -> None:
    source = SuffixSource()
    source.admit(0, [10, 11, 12, 13, 14, 15, 16, 20, 15, 77, 78, 10, 11, 12], 14, "a")
    source.propose(DraftRows([0], [1]))
    source.observe(0, [13, 20, 15])
    assert source.propose(DraftRows([0], [2])) == [Proposal([77, 78], 2)]


def test_the_last_token_is_not_taken_for_the_passage() -> None:
    source = SuffixSource()
    source.admit(0, [5, 8, 9, 0, 0, 1, 2, 3, 4, 1, 2, 3], 12, "a")
    assert source.propose(DraftRows([0], [1])) == [Proposal([4], 3)]
    source.observe(0, [5])
    assert source.propose(DraftRows([0], [2])) == [Proposal([8, 9], 1)]


def test_without_a_passage_the_later_place_counts() -> None:
    text = [10, 11, 12, 13, 14, 50, 15, 16, 17, 18, 15, 77, 78, 60, 15]
    assert drafts(SuffixSource(), "a", text, 2) == Proposal([77, 78], 1)


def test_a_text_that_repeats_with_a_period_goes_on_repeating() -> None:
    assert drafts(SuffixSource(), "a", [1, 2, 3] * 4) == Proposal([1, 2, 3, 1, 2, 3, 1, 2], 9)


def test_an_earlier_answer_of_the_tenant_is_drafted_from() -> None:
    source = answered("a", [1, 2, 3], ANSWER)
    assert drafts(source, "a", [7, 8, 9, 104, 105, 106], 3) == Proposal([107, 108, 109], 3)


def test_the_beginning_of_an_answer_is_found_by_the_end_of_its_prompt() -> None:
    source = answered("a", [1, 2, 3, 4], ANSWER)
    assert drafts(source, "a", [9, 2, 3, 4], 2) == Proposal([100, 101], 3)


def test_of_a_prompt_no_more_than_that_is_kept() -> None:
    source = answered("a", list(range(40)), ANSWER)
    assert drafts(source, "a", [7, 21, 22, 23]) == NOTHING


def test_nobody_else_is_given_drafts_from_it() -> None:
    source = answered("a", [1, 2, 3], ANSWER)
    assert drafts(source, "b", ANSWER[:10]) == NOTHING
    assert drafts(source, "", ANSWER[:10]) == NOTHING


def test_the_own_text_comes_before_an_answer_with_an_equal_match() -> None:
    source = answered("a", [], [1, 2, 3, 50])
    assert drafts(source, "a", [1, 2, 3, 60, 0, 1, 2, 3], 1) == Proposal([60], 3)
    assert drafts(source, "a", [2, 3, 60, 0, 1, 2, 3], 1) == Proposal([50], 3)


def test_the_latest_answer_comes_first_among_equals() -> None:
    source = answered("a", [], [1, 2, 3, 50])
    source.admit(0, [], 0, "a")
    source.observe(0, [1, 2, 3, 70])
    source.release(0)
    assert drafts(source, "a", [9, 1, 2, 3], 1) == Proposal([70], 3)


def test_drafts_end_where_an_answer_ends() -> None:
    source = answered("a", [], ANSWER)
    source.admit(0, [], 0, "a")
    source.observe(0, [200, 201])
    source.release(0)
    assert drafts(source, "a", ANSWER[-6:-2]) == Proposal(ANSWER[-2:], 4)


def test_the_whole_of_an_answer_leads_nowhere() -> None:
    source = answered("a", [], ANSWER)
    assert drafts(source, "a", ANSWER) == NOTHING
    # The own text is asked then.
    assert drafts(source, "a", [128, 129, 7, *ANSWER], 2) == Proposal([7, 100], 2)


def test_an_answer_that_was_interrupted_is_kept_once() -> None:
    prompt, source = [1, 2, 3, 4], SuffixSource()
    source.admit(0, prompt, 4, "a")
    source.observe(0, ANSWER[:20])
    source.release(0)
    source.admit(5, prompt + ANSWER[:20], 4, "a")
    source.observe(5, ANSWER[20:])
    source.release(5)
    kept = source._answers.of("a")
    assert kept is not None
    # Twice those that lead from the first part to the second, so that this place is found too.
    assert [kept.text.count(token) for token in ANSWER] == [1] * 4 + [2] * 16 + [1] * 10
    assert drafts(source, "a", ANSWER[12:20], 4) == Proposal(ANSWER[20:24], 8)


def test_a_row_that_was_given_nothing_since_leaves_nothing() -> None:
    source = SuffixSource()
    source.admit(0, [1, 2, 3, *ANSWER], 3, "a")
    source.release(0)
    source.release(0)
    assert source._answers.of("a") is None
    assert drafts(source, "a", ANSWER[:10]) == NOTHING
