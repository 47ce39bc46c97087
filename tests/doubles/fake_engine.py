"""An engine that emits what a test tells it to, and remembers what was asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from tgi_async.generation import (
    Drafts,
    Emitted,
    FinishReason,
    GenerationRequest,
    Timings,
    Token,
    TopToken,
)
from tgi_async.scheduler.reservations import Capacity, Reservation, Reservations

EOS = Token(257, "", -0.5, True)
"""`<|im_end|>` of the tiny tokenizer; as in the engine, it adds no text."""


def words(*texts: str) -> list[Token]:
    """Ordinary tokens with these texts."""
    return [Token(place, text, -0.25, False) for place, text in enumerate(texts)]


class FakeGeneration:
    """Emits one batch of tokens after another; waits for `go` before the batch `wait_before`."""

    def __init__(self, engine: FakeEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self._batches = list(engine.batches_of(request))
        self.place = 0
        self.seed = request.sampling.seed
        self.timings = Timings(queued=0.5, inference=2.0)
        self.n_cached = engine.n_cached
        self.drafts = engine.drafts
        self.prompt_logprobs: list[float | None] = [None] + [-1.0] * (len(request.prompt) - 1)
        self.prompt_ranks: list[int | None] = [None] + [2] * (len(request.prompt) - 1)
        n_top = request.prompt_top_n_tokens
        top = tuple(TopToken(97 + i, chr(97 + i), -0.5 * i, False) for i in range(n_top))
        self.prompt_top_tokens: list[tuple[TopToken, ...]] = (
            [()] + [top] * (len(request.prompt) - 1) if n_top else []
        )
        self.sink: Callable[[Emitted], bool] | None = None
        """Never called: all is left to the reader."""
        self.cancelled = False
        self.done = False

    def __aiter__(self) -> AsyncIterator[Emitted]:
        return self

    async def __anext__(self) -> Emitted:
        if self.place == len(self._batches):
            raise StopAsyncIteration
        await asyncio.sleep(0)  # as a real one does, which waits for a step
        if self.place == self._engine.wait_before:
            self._engine.waiting.set()
            await self._engine.go.wait()
        if self.place == self._engine.fail_before and self._engine.error is not None:
            raise self._engine.error
        tokens = self._batches[self.place]
        if self.place == 0 and self._request.reservation is not None:
            self._engine.reservations.start(self._request.reservation)
        self.place += 1
        self.done = self.place == len(self._batches)
        return Emitted(tokens, self._engine.finish_reason if self.done else None)

    def cancel(self) -> None:
        if not self.done:
            self.cancelled = True


class FakeEngine:
    """`batches` are the tokens of each look; `refusal` is raised by `submit`.

    A generation waits, for the reservations, until its first tokens come.
    """

    def __init__(self, capacity: Capacity | None = None) -> None:
        self.reservations = Reservations(capacity or Capacity(4))
        self.ready = True
        self.n_running = 3
        self.n_waiting = 2
        self.used_blocks = 7
        self.cached_blocks = 4
        self.n_blocks = 64
        self.block_size = 16
        self.resident_tokens = 99
        self.worker_restarts = 1
        self.n_cached = 0
        self.drafts = Drafts(5, 2)
        self.batches: list[list[Token]] = [words("Hel"), words("lo", " there"), [EOS]]
        self.batches_by_choice: dict[int, list[list[Token]]] = {}
        self.batches_in_order: list[list[list[Token]]] = []
        self.finish_reason: FinishReason = "eos_token"
        self.refusal: Exception | None = None
        self.error: Exception | None = None
        self.fail_before = -1
        self.wait_before = -1
        self.waiting = asyncio.Event()
        self.go = asyncio.Event()
        self.requests: list[GenerationRequest] = []
        self.generations: list[FakeGeneration] = []

    def batches_of(self, request: GenerationRequest) -> list[list[Token]]:
        if self.batches_in_order:
            return self.batches_in_order[len(self.requests) - 1]
        return self.batches_by_choice.get(request.sampling.choice, self.batches)

    def reserve(
        self, client: str, n_rows: int, n_bytes: int, on_evicted: Callable[[], None]
    ) -> Reservation:
        reservation, evicted = self.reservations.reserve(client, n_rows, n_bytes)
        reservation.on_evicted = on_evicted
        for one in evicted:
            assert one.on_evicted is not None
            one.on_evicted()
        return reservation

    def release(self, reservation: Reservation) -> None:
        self.reservations.release(reservation)

    def submit(self, request: GenerationRequest) -> FakeGeneration:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        generation = FakeGeneration(self, request)
        self.generations.append(generation)
        return generation


__all__ = ["EOS", "FakeEngine", "FakeGeneration", "TopToken", "words"]
