"""Acceptance is learnt by the length of the match, of all rows and of each."""

from __future__ import annotations

import pytest

from workers.speculation.acceptance import CLASSES, PRIOR, Acceptance, class_of
from workers.speculation.source import Proposal


def test_classes_ascend_with_the_match() -> None:
    kinds = [class_of(match) for match in range(100)]
    assert kinds == sorted(kinds)
    assert kinds[0] == 0
    assert kinds[-1] == len(CLASSES) == len(PRIOR) - 1


def test_a_longer_match_is_likelier_before_anything_is_known() -> None:
    acceptance = Acceptance()
    acceptance.admit(0)
    chances = [acceptance.chances(0, Proposal([7], match))[0] for match in (1, 2, 4, 8, 32)]
    assert chances == sorted(chances)


def test_chances_fall_from_draft_to_draft() -> None:
    acceptance = Acceptance()
    acceptance.admit(0)
    chances = acceptance.chances(0, Proposal([1, 2, 3, 4], 3))
    assert chances == sorted(chances, reverse=True)
    assert all(0 < one < 1 for one in chances)


def learn(acceptance: Acceptance, row: int, right: bool, times: int) -> None:
    for _ in range(times):
        acceptance.learn(row, Proposal([5], 3), [5 if right else 6])


def test_a_row_learns_from_what_it_emits() -> None:
    acceptance = Acceptance()
    for row in range(2):
        acceptance.admit(row)
    learn(acceptance, 0, right=True, times=60)
    learn(acceptance, 1, right=False, times=60)
    good, bad = (acceptance.chances(row, Proposal([5], 3))[0] for row in range(2))
    assert good > 0.7
    assert bad < 0.3


def test_a_new_row_begins_with_what_the_others_show() -> None:
    acceptance = Acceptance()
    acceptance.admit(0)
    acceptance.admit(1)
    before = acceptance.chances(1, Proposal([5], 3))[0]
    learn(acceptance, 0, right=True, times=50)
    assert acceptance.chances(1, Proposal([5], 3))[0] > before + 0.2


def test_a_row_that_changes_is_noticed() -> None:
    acceptance = Acceptance()
    acceptance.admit(0)
    learn(acceptance, 0, right=False, times=500)
    learn(acceptance, 0, right=True, times=60)
    assert acceptance.chances(0, Proposal([5], 3))[0] > 0.6


def test_what_comes_after_a_wrong_draft_teaches_nothing() -> None:
    acceptance, other = Acceptance(), Acceptance()
    for one in (acceptance, other):
        one.admit(0)
    acceptance.learn(0, Proposal([1, 2, 3], 4), [9, 2, 3])
    other.learn(0, Proposal([1], 4), [9])
    proposal = Proposal([1, 2, 3], 4)
    assert acceptance.chances(0, proposal) == pytest.approx(other.chances(0, proposal))


def test_a_row_that_is_admitted_again_begins_anew() -> None:
    acceptance = Acceptance()
    acceptance.admit(0)
    learn(acceptance, 0, right=False, times=40)
    acceptance.admit(0)
    shared = acceptance.chances(0, Proposal([5], 3))[0]
    acceptance.admit(1)
    assert acceptance.chances(1, Proposal([5], 3))[0] == shared
