from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.telemetry.test_record import made
from tgi_async.errors import GenerationError
from tgi_async.generation import Emitted, FinishReason, GenerationRequest, Token
from tgi_async.generation_stream import GenerationStream
from tgi_async.scheduler.request import PromptEvent, Request
from tgi_async.telemetry import record
from tgi_async.telemetry.record import RequestRecord
from tgi_async.wire.messages import Sampling, TopToken

NAMES = tiny_tokenizer()
A, B, C = NAMES.encode("abc")


class Cancelled(list[Request]):
    """The requests that were cancelled."""


def stream(cancelled: Cancelled | None = None, **asked: Any) -> GenerationStream:
    request = GenerationRequest([A], Sampling(seed=7), **asked)
    queued = Request(1, request.prompt, 9)
    reported = Cancelled() if cancelled is None else cancelled
    return GenerationStream(request, queued, NAMES, reported.append)


@pytest.fixture
def seen() -> Iterator[RequestRecord]:
    """The record of the request that a stream is made for."""
    seen = made()
    before = record.enter(seen)
    yield seen
    record.leave(before)


def text_of(emitted: Emitted) -> str:
    return "".join(token.text for token in emitted.tokens)


async def test_tokens_that_came_together_are_taken_together() -> None:
    one = stream()
    assert [one.emit(id) for id in (A, B)] == [None, None]
    assert text_of(await anext(one)) == "ab"
    assert one.emit(C, "length") == "length"
    last = await anext(one)
    assert (text_of(last), last.finish_reason) == ("c", "length")
    with pytest.raises(StopAsyncIteration):
        await anext(one)


async def test_whoever_waits_is_woken() -> None:
    one = stream()
    waiting = asyncio.create_task(anext(one))
    await asyncio.sleep(0)
    one.emit(A)
    one.deliver()
    assert text_of(await waiting) == "a"


class Sink(list[str]):
    """Takes what it is offered, unless it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open = True

    def __call__(self, emitted: Emitted) -> bool:
        if self.open:
            self.append(text_of(emitted))
        return self.open


def emit(one: GenerationStream, *ids: int, last: FinishReason | None = None) -> None:
    for id in ids:
        one.emit(id, last)
    one.deliver()


async def test_a_tap_is_offered_all_but_the_end_while_somebody_waits() -> None:
    one = stream()
    one.sink = sink = Sink()
    waiting = asyncio.create_task(anext(one))
    await asyncio.sleep(0)
    emit(one, A)
    emit(one, B, C)
    assert sink == ["a", "bc"]
    assert not waiting.done()
    emit(one, A, last="length")
    assert await waiting == Emitted([Token(A, "a", None, False)], "length")
    assert sink == ["a", "bc"]


async def test_a_tap_overtakes_nobody() -> None:
    one = stream()
    one.sink = sink = Sink()
    emit(one, A)
    assert text_of(await anext(one)) == "a"
    emit(one, B)
    assert sink == []
    assert text_of(await anext(one)) == "b"


async def test_what_a_tap_does_not_take_is_for_whoever_waits() -> None:
    one = stream()
    one.sink = sink = Sink()
    waiting = asyncio.create_task(anext(one))
    await asyncio.sleep(0)
    sink.open = False
    emit(one, A)
    emit(one, B)
    assert text_of(await waiting) == "ab"
    assert sink == []


async def test_a_tap_that_fails_fails_only_whoever_waits() -> None:
    def broken(emitted: Emitted) -> bool:
        raise KeyError("bug")

    one = stream()
    one.sink = broken
    waiting = asyncio.create_task(anext(one))
    await asyncio.sleep(0)
    emit(one, A)
    with pytest.raises(KeyError, match="bug"):
        await waiting


async def test_a_stop_sequence_is_an_end_of_its_own() -> None:
    one = stream(stop=("ab",))
    assert one.emit(A) is None
    assert one.emit(B) == "stop_sequence"
    assert (await anext(one)).finish_reason == "stop_sequence"


async def test_an_error_comes_after_what_was_emitted() -> None:
    one = stream()
    one.emit(A)
    one.fail(GenerationError("broken"))
    assert text_of(await anext(one)) == "a"
    with pytest.raises(GenerationError, match="broken"):
        await anext(one)


async def test_cancelling_ends_it_for_everybody() -> None:
    cancelled = Cancelled()
    one = stream(cancelled)
    waiting = asyncio.create_task(anext(one))
    await asyncio.sleep(0)
    one.cancel()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert cancelled == [one.request]


def test_the_prompt_is_scored_from_its_second_token_on() -> None:
    one = stream(prompt_logprobs=True, prompt_top_n_tokens=1)
    one.add_prompt_logprobs(PromptEvent(one.request, 1, [-1.0], [[TopToken(B, -0.5)]], [7]))
    assert one.prompt_logprobs == [None, -1.0]
    assert one.prompt_ranks == [None, 7]
    assert one.prompt_top_tokens == [(), ((B, "b", -0.5, False),)]


class Held:
    """Something that lives as long as a request."""


def test_what_a_request_holds_lives_as_long_as_its_stream(seen: RequestRecord) -> None:
    held = Held()
    alive = weakref.ref(held)
    one = stream(held=(held,))
    del held
    assert alive() is not None
    del one
    assert seen.requests  # which an idle connection may keep
    assert alive() is None


def test_a_replay_does_not_begin_the_wait_again() -> None:
    one = stream()
    one.started(one._submitted + 1.0)
    one.started(one._submitted + 5.0)
    assert one.timings.queued == pytest.approx(1.0)


def test_the_record_of_its_request_follows_it(seen: RequestRecord) -> None:
    one = stream()
    (generated,) = seen.generations
    assert generated.timings is one.timings
    assert seen.requests[0].prompt == [A]
    one.started(one._submitted + 1e-9)
    one.emit(A, "length")
    assert seen.finish_reasons == ["length"]
    assert generated.timings.inference > 0


@pytest.mark.parametrize("started", [False, True])
def test_a_failure_ends_the_inference_that_began(seen: RequestRecord, started: bool) -> None:
    one = stream()
    if started:
        one.started(one._submitted + 1e-9)
    one.fail(GenerationError("broken"))
    assert (seen.generations[0].timings.inference > 0) == started


END = NAMES.encode("<|im_end|>")[0]
"""A special token."""


def finished(one: GenerationStream, *ids: int, reason: FinishReason = "eos_token") -> list[str]:
    """The texts of these tokens, the last of which ends the text."""
    for id in ids[:-1]:
        assert one.emit(id) is None
    assert one.emit(ids[-1], reason) == reason
    return [token.text for token in one._buffer]


def test_the_token_that_ends_a_text_is_no_part_of_it_where_stops_are_not() -> None:
    assert finished(stream(include_stop=True), A, C) == ["a", "c"]
    assert finished(stream(include_stop=False), A, C) == ["a", ""]
    assert finished(stream(include_stop=False), A, C, reason="length") == ["a", "c"]


def test_what_was_held_back_comes_with_the_end() -> None:
    one = stream(include_stop=False, stop=("bcd",))
    assert finished(one, A, B, C) == ["a", "", "b"]
    half = NAMES.encode("한")[0]
    assert finished(stream(include_stop=False), A, half, C) == ["a", "", "\ufffd"]


def test_special_tokens_are_shown_where_they_are_asked_for() -> None:
    texts = NAMES.special_texts
    name = "<|im_end|>"
    assert finished(stream(include_stop=False), A, END, B, END) == ["a", "", "b", ""]
    shown = stream(include_stop=False, special_texts=texts)
    assert finished(shown, A, END, B, END) == ["a", name, "b", ""]
    shown = stream(include_stop=True, special_texts=texts)
    assert finished(shown, A, END, B, END) == ["a", name, "b", name]


def test_a_mark_stays_in_the_text_that_it_ends() -> None:
    one = stream(include_stop=False, shown={END: "<|im_end|>"})
    assert finished(one, A, END) == ["a", "<|im_end|>"]


def test_half_a_character_comes_before_the_mark_behind_it() -> None:
    one = stream(include_stop=False, special_texts=NAMES.special_texts)
    half = NAMES.encode("한")[0]
    assert finished(one, half, END, A, C) == ["", "\ufffd<|im_end|>", "a", ""]


def test_a_stop_sequence_ends_nothing_before_min_tokens() -> None:
    request = GenerationRequest([A], Sampling(min_tokens=3), stop=("ab", "c"), include_stop=False)
    one = GenerationStream(request, Request(1, [A], 9), NAMES, lambda _: None)
    reasons = [one.emit(id) for id in (A, B, C, A, B)]
    assert reasons == [None, None, None, None, "stop_sequence"]
    assert "".join(token.text for token in one._buffer) == "abc"


@pytest.mark.parametrize(("include_stop", "text"), [(False, "ab"), (True, "abab")])
def test_a_stop_sequence_may_begin_before_min_tokens(include_stop: bool, text: str) -> None:
    request = GenerationRequest(
        [A], Sampling(min_tokens=3), stop=("ab",), include_stop=include_stop
    )
    one = GenerationStream(request, Request(1, [A], 9), NAMES, lambda _: None)
    reasons = [one.emit(id) for id in (A, B, A, B)]
    assert reasons == [None, None, None, "stop_sequence"]
    assert "".join(token.text for token in one._buffer) == text


def test_the_scheduler_learns_where_a_stop_sequence_ends_the_text() -> None:
    one = stream(stop=("bc",))
    assert one.request.text_end is not None
    assert one.request.text_end([A, B, C, A]) == 3
    one.emit(B)
    assert one.request.text_end([C, A]) == 1
    assert one.request.text_end([A]) is None
    assert stream().request.text_end is None


def test_what_cannot_be_decoded_has_no_end() -> None:
    one = stream(stop=("b",))
    assert one.request.text_end is not None
    assert one.request.text_end([2**40, B]) is None


def test_a_generation_knows_what_its_drafts_gained() -> None:
    one = stream()
    one.request.n_drafts, one.request.n_accepted = 5, 3
    assert (one.drafts.accepted, one.drafts.rejected) == (3, 2)
