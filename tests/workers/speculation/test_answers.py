from __future__ import annotations

from array import array

import pytest

from workers.speculation import answers as answers_module
from workers.speculation.answers import SEPARATOR, Answers


def answer(first: int, length: int) -> array[int]:
    return array("i", range(first, first + length))


def texts(answers: Answers, *tenants: str) -> list[list[int]]:
    """What is kept of each tenant."""
    found = [answers.of(tenant) for tenant in tenants]
    return [[] if history is None else history.text.tolist() for history in found]


def test_answers_are_kept_apart_by_tenant_and_by_separators() -> None:
    answers = Answers()
    answers.add("a", answer(0, 2))
    answers.add("b", answer(10, 2))
    answers.add("a", answer(20, 1))
    assert texts(answers, "a", "b", "c") == [
        [0, 1, SEPARATOR, 20, SEPARATOR],
        [10, 11, SEPARATOR],
        [],
    ]


def test_a_tenant_keeps_its_last_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "TENANT_TOKENS", 20)
    answers = Answers()
    for number in range(50):
        answers.add("a", answer(100 * number, 3))
        (text,) = texts(answers, "a")
        assert text[-4:] == [100 * number, 100 * number + 1, 100 * number + 2, SEPARATOR]
        assert min(4 * number + 4, 10) <= len(text) <= 20


def test_of_an_answer_longer_than_that_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "TENANT_TOKENS", 20)
    answers = Answers()
    answers.add("a", answer(0, 15))
    answers.add("a", answer(100, 1000))
    answers.add("a", answer(5000, 1))
    assert texts(answers, "a") == [[*range(1093, 1100), SEPARATOR, 5000, SEPARATOR]]


def test_beyond_the_tokens_of_all_the_tenant_who_was_away_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers_module, "TENANT_TOKENS", 20)
    monkeypatch.setattr(answers_module, "TOKENS", 30)
    answers = Answers()
    for tenant in "abc":
        answers.add(tenant, answer(0, 9))
    answers.add("a", answer(50, 1))
    assert texts(answers, "b") == [[]]
    assert all(texts(answers, "a", "c"))
    for number in range(200):
        answers.add("abcde"[number % 5], answer(number, 1 + number % 9))
        assert sum(map(len, texts(answers, *"abcde"))) <= 30


def test_what_a_tenant_forgot_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "TENANT_TOKENS", 20)
    monkeypatch.setattr(answers_module, "TOKENS", 30)
    answers = Answers()
    answers.add("b", answer(0, 5))
    for number in range(100):
        answers.add("a", answer(number, 5))
    assert texts(answers, "b") == [[0, 1, 2, 3, 4, SEPARATOR]]


def test_no_more_tenants_than_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "TENANTS", 3)
    answers = Answers()
    for tenant in "abcd":
        answers.add(tenant, answer(0, 1))
    assert [len(text) for text in texts(answers, *"abcd")] == [0, 2, 2, 2]
