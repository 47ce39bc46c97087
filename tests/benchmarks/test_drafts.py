"""What is counted of drafts, and that the texts lead to some."""

from __future__ import annotations

import pytest

from benchmarks.draft_texts import works
from benchmarks.drafts import draft
from workers.speculation.ngram import NgramSource
from workers.speculation.suffix import SuffixSource


def test_a_copy_takes_a_step_for_its_drafts_and_the_token_after_them() -> None:
    # After 500, 0 and 1 have no match of two; 2 to 46 come by fives, and 47 to 50 end the answer.
    done = draft(NgramSource(), [(list(range(100)), [500, *range(51)])], limit=4)
    assert (done.n_tokens, done.n_steps, done.n_drafts, done.n_right) == (51, 12, 40, 40)
    assert {match: len(steps) for match, steps in done.by_match.items()} == {
        2: 1,
        7: 1,
        12: 1,
        16: 7,
    }


def test_what_is_wrong_is_counted_as_drafted_only() -> None:
    done = draft(NgramSource(), [([1, 2, 3, 1, 2, 4, 9], [1, 2, 8])], limit=1)
    assert (done.n_steps, done.n_drafts, done.n_right) == (2, 1, 0)
    assert done.by_match == {2: [(1, 0)]}


@pytest.mark.parametrize("work", works())
def test_each_work_has_answers_that_can_be_drafted(work: str) -> None:
    exchanges = [
        ([ord(one) for one in prompt], [ord(one) for one in answer])
        for prompt, answer in works()[work]
    ]
    done = draft(SuffixSource(), exchanges, limit=8)
    assert len(exchanges) >= 6
    assert done.n_tokens == sum(len(answer) - 1 for _, answer in exchanges)
    assert 0 < done.n_right < done.n_drafts
