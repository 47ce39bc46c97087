from __future__ import annotations

from tgi_async.scheduler.blocks import keys_of
from tgi_async.scheduler.request import Request, Status


def test_a_new_request_waits_and_has_emitted_nothing() -> None:
    request = Request(1, [5, 6, 7], 4)
    assert request.status is Status.WAITING
    assert request.n_prompt == 3
    assert request.n_emitted == 0


def test_emitted_tokens_are_those_after_the_prompt() -> None:
    request = Request(1, [5, 6, 7], 4)
    request.tokens += [8, 9]
    assert request.n_emitted == 2


def test_the_last_token_is_never_computed() -> None:
    assert Request(1, [5, 6, 7], 1).limit == 3
    assert Request(1, [5, 6, 7], 4).limit == 6


def test_the_prompt_is_a_copy() -> None:
    prompt = [1, 2]
    Request(1, prompt, 1).tokens.append(3)
    assert prompt == [1, 2]


def test_block_keys_are_the_tokens_of_full_blocks_only() -> None:
    assert Request(1, [1, 2, 3, 4, 5], 4).block_keys(2) == keys_of([1, 2, 3, 4], 2)
    assert Request(1, [1, 2, 3, 4], 4).block_keys(2) == keys_of([1, 2, 3, 4], 2)
    assert Request(1, [1], 4).block_keys(2) == []


def test_block_keys_follow_the_emitted_tokens() -> None:
    request = Request(1, [1, 2, 3], 4)
    assert request.block_keys(2) == keys_of([1, 2], 2)
    request.tokens += [4, 5, 6]
    assert request.block_keys(2) == keys_of([1, 2, 3, 4, 5, 6], 2)
