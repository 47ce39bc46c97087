"""An engine whose texts depend on the seed, and whose tokens come in pieces of any size."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import cast

from tests.doubles.fake_engine import FakeEngine, FakeGeneration
from tgi_async.errors import ServerError
from tgi_async.generation import FinishReason, GenerationRequest
from tgi_async.generation_stream import GenerationStream
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.reservations import Capacity
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling, TopToken

END = 257
Script = Callable[[Sampling], str]


class SeededEngine(FakeEngine):
    """Emits the tokens of `script` by way of real streams; `pause` is called before each of them.

    `dice` decide how many tokens come together.
    """

    def __init__(self, tokenizer: Tokenizer, script: Script, dice: random.Random) -> None:
        super().__init__(Capacity(16))
        self._tokenizer = tokenizer
        self._script = script
        self._dice = dice
        self.n_tokens = 0
        """Tokens of all generations so far."""
        self.tasks: dict[Request, asyncio.Task[None]] = {}
        self.streams: list[GenerationStream] = []
        self.go.set()
        """Emits while this is set."""

    def submit(self, request: GenerationRequest) -> FakeGeneration:
        self.requests.append(request)
        if request.reservation is not None:
            self.reservations.start(request.reservation)
        queued = Request(len(self.requests), request.prompt, request.max_new_tokens or 1)
        stream = GenerationStream(request, queued, self._tokenizer, self._cancel)
        self.streams.append(stream)
        self.tasks[queued] = asyncio.create_task(self._emit(stream, request))
        return cast(FakeGeneration, stream)

    def fail(self, error: ServerError) -> None:
        """Fail the latest generation."""
        stream = self.streams[-1]
        self._cancel(stream.request)
        stream.fail(error)

    def _cancel(self, request: Request) -> None:
        if (task := self.tasks.pop(request, None)) is not None:
            task.cancel()

    async def _emit(self, stream: GenerationStream, request: GenerationRequest) -> None:
        ids = [*self._tokenizer.encode(self._script(request.sampling)), END]
        most = request.max_new_tokens or 1
        for n, id in enumerate(ids[:most], 1):
            if not self._dice.randrange(3):
                stream.deliver()
                await asyncio.sleep(0)
                await self.go.wait()
            reason: FinishReason | None = "length" if n == most else None
            if id == END:
                reason = "eos_token"
            top = [TopToken(65, -1.0)] * request.sampling.top_n_tokens
            self.n_tokens += 1
            if stream.emit(id, reason, -n / 8, top):
                break
        self.tasks.pop(stream.request, None)
        stream.deliver()
