"""The stream of one generation: sampled tokens in, text out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from tgi_async.errors import ServerError
from tgi_async.generation import (
    Drafts,
    Emitted,
    FinishReason,
    GenerationRequest,
    Timings,
    Token,
    TopToken,
)
from tgi_async.scheduler.request import PromptEvent, Request
from tgi_async.telemetry import record
from tgi_async.text.stream import TextStream, TokenDecoder
from tgi_async.wire import messages


class TokenNames(TokenDecoder, Protocol):
    """What a stream needs of a tokenizer: decoding, and the texts of single tokens."""

    def token_text(self, id: int) -> str: ...


def _text_end(text: TextStream, tokens: list[int]) -> int | None:
    """Return after how many of these tokens, the next ones, a stop sequence ends the text."""
    try:
        return text.end_within(tokens)
    except Exception:
        # What cannot be decoded fails when it is emitted, and its request alone.
        return None


class GenerationStream:
    """An asynchronous iterator over what one request emits.

    Its `request` is the scheduler's; `cancel` of the engine is called when the client leaves.
    """

    def __init__(
        self,
        asked: GenerationRequest,
        request: Request,
        names: TokenNames,
        cancel: Callable[[Request], None],
    ) -> None:
        self.seed = asked.sampling.seed
        self.timings = Timings()
        self.prompt_logprobs: list[float | None] = [None] if asked.prompt_logprobs else []
        self.prompt_ranks: list[int | None] = [None] if asked.prompt_logprobs else []
        self.prompt_top_tokens: list[tuple[TopToken, ...]] = (
            [()] if asked.prompt_top_n_tokens else []
        )
        self.request = request
        self.sink: Callable[[Emitted], bool] | None = None
        self.n_emitted = 0
        """Tokens added, which a replay keeps."""
        self.begun = False
        """Whether it has emitted anything."""
        self.due = False
        """Whether it has emitted something that was not delivered."""
        self._held = asked.held
        self._names = names
        self._text = TextStream(
            names,
            asked.prompt,
            asked.stop,
            asked.include_stop,
            {**asked.special_texts, **asked.shown} if asked.special_texts else asked.shown,
            asked.sampling.min_tokens,
        )
        if asked.stop:
            request.text_end = partial(_text_end, self._text)
        self._hides_end = not asked.include_stop
        self._marks = asked.shown.keys()
        self._cancel = cancel
        self._record = record.current()
        self._submitted = self._started = time.monotonic()
        if self._record is not None:
            self._record.submitted(asked, self._submitted, self.timings)
        self._buffer: list[Token] = []
        self._finish_reason: FinishReason | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._exhausted = False

    # -- for the client --------------------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """The `x-request-id` of the request, for the log; empty outside HTTP."""
        return "" if self._record is None else self._record.request_id

    @property
    def n_cached(self) -> int:
        """Prompt tokens that were not computed, but found in the prefix cache."""
        return self.request.n_cached

    @property
    def drafts(self) -> Drafts:
        """The drafts that were verified for it so far."""
        return Drafts(self.request.n_drafts, self.request.n_accepted)

    def __aiter__(self) -> GenerationStream:
        return self

    async def __anext__(self) -> Emitted:
        """Return what was emitted since the last call; wait if there is nothing.

        Raises the ServerError that ended the generation, after all that was emitted before it.
        """
        while not self._buffer and self._finish_reason is None:
            if self._error is not None:
                raise self._error
            if self._exhausted:
                raise StopAsyncIteration
            self._waiter = waiter = asyncio.get_running_loop().create_future()
            await waiter
        tokens, self._buffer = self._buffer, []
        reason, self._finish_reason = self._finish_reason, None
        self._exhausted = self._exhausted or reason is not None
        return Emitted(tokens, reason)

    def cancel(self) -> None:
        """End the generation and free its blocks. Idempotent, and harmless after the end."""
        self._exhausted = True
        self._cancel(self.request)
        self._wake()

    # -- for the engine --------------------------------------------------------------------------

    def started(self, now: float) -> None:
        """Note that its first step was sent, at `now` of the monotonic clock."""
        if not self.timings.queued:
            self._started = now
            self.timings.queued = now - self._submitted

    def add_prompt_logprobs(self, event: PromptEvent) -> None:
        """Add log-probabilities of the prompt."""
        self.prompt_logprobs += event.logprobs
        self.prompt_ranks += event.ranks
        self.prompt_top_tokens += map(self._top, event.top)

    def emit(
        self,
        token: int,
        reason: FinishReason | None = None,
        logprob: float | None = None,
        top: Sequence[messages.TopToken] = (),
    ) -> FinishReason | None:
        """Add a token, the last one if `reason` is set. Return why the text ends, if it does.

        A stop sequence may end it where the scheduler knows of no end. Readers get the token when
        `deliver` is called.
        """
        if reason == "eos_token" and self._hides_end and token not in self._marks:
            text = self._text.flush()
        else:
            text, stopped = self._text.push(token)
            if stopped:
                reason = "stop_sequence"
            elif reason is not None:
                text += self._text.flush()
        likeliest = self._top(top) if top else ()
        special = self._names.is_special(token)
        self._buffer.append(Token(token, text, logprob, special, likeliest))
        self.n_emitted += 1
        if reason is not None:
            self._finish(reason)
        return reason

    def deliver(self) -> None:
        """Pass what was emitted to the sink, or wake the reader."""
        self.due = False
        if self._waiter is None:
            return
        if self.sink is not None and self._finish_reason is None:
            tokens, self._buffer = self._buffer, []
            try:
                if self.sink(Emitted(tokens, None)):
                    return
                self._buffer = tokens
            except Exception as error:
                # A fault of the sink: the reader, which set it, gets the error.
                self._error = error
        self._wake()

    def fail(self, error: ServerError) -> None:
        """End the stream with an error."""
        self._error = error
        if self.timings.queued:
            self.timings.inference = time.monotonic() - self._started
        self._wake()

    def _finish(self, reason: FinishReason) -> None:
        self._finish_reason = reason
        # Not the loop's clock: uvloop's has a resolution of a millisecond.
        self.timings.inference = time.monotonic() - self._started
        if self._record is not None:
            self._record.finish_reasons.append(reason)

    def _top(self, likeliest: Sequence[messages.TopToken]) -> tuple[TopToken, ...]:
        names = self._names
        return tuple(
            TopToken(one.id, names.token_text(one.id), one.logprob, names.is_special(one.id))
            for one in likeliest
        )

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
