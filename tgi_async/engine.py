"""The engine: sockets, time and tasks around the deterministic core.

It plans and sends steps while the core allows it, hands results back to the core, turns tokens into
text, and wakes whoever waits for them. Everything happens on one event loop, so nothing is locked.

**Nothing is lost.** A worker's death is a preemption of everything: the core forgets what was in
flight, a new incarnation of the workers is launched with the first one's block count, and every
live request is computed again from its prompt and what it has emitted.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from tgi_async.errors import (
    GenerationError,
    IncompleteGeneration,
    ServerError,
    StartError,
    Unhealthy,
    ValidationError,
)
from tgi_async.generation import (
    Emitted,
    FinishReason,
    GenerationRequest,
    Timings,
    Token,
    TopToken,
)
from tgi_async.scheduler.core import Budget, Core, UnexpectedResult
from tgi_async.scheduler.request import FailedEvent, PromptEvent, Request, TokenEvent
from tgi_async.supervisor import WORKER, WorkerDied, WorkerGroup
from tgi_async.telemetry import record
from tgi_async.text.stream import Decoder, TextStream
from tgi_async.wire.messages import Loading, Ready, Sampled, Start, StepDone

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Deaths of the workers with no token between them, after which live requests fail."""


class TokenNames(Decoder, Protocol):
    """The part of a tokenizer that the engine needs."""

    def token_text(self, id: int) -> str: ...


class StepMetrics(Protocol):
    """Who counts steps."""

    def admitted(self, n_cached: int) -> None: ...

    def step_sent(
        self, *, n_prefill_tokens: int, n_admitted: int, n_decode: int, plan_seconds: float
    ) -> None: ...

    def step(
        self,
        *,
        n_prefill_tokens: int,
        seconds: float,
        forward_seconds: float,
        sample_seconds: float,
        results_seconds: float,
    ) -> None: ...

    def step_lost(self, *, n_prefill_tokens: int) -> None: ...


class _Sent(NamedTuple):
    """A step whose result has not come back."""

    at: float
    n_prefill_tokens: int


class Generation:
    """An asynchronous iterator over what one request emits."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        text: TextStream,
    ) -> None:
        self.seed = request.sampling.seed
        self.timings = Timings()
        self.prompt_logprobs: list[float | None] = [None] if request.prompt_logprobs else []
        self._engine = engine
        self._request = request
        self._text = text
        self._record = record.current()
        self._submitted = self._started = engine.now()
        self._buffer: list[Token] = []
        self._finish_reason: FinishReason | None = None
        self._error: ServerError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._exhausted = False

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Emitted:
        """What was emitted since the last call, waiting for something if there is nothing.

        Raises the ServerError that ended the generation, after all that was emitted before it.
        """
        while not self._buffer and self._finish_reason is None:
            if self._error is not None:
                raise self._error
            if self._exhausted:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        tokens, self._buffer = self._buffer, []
        reason, self._finish_reason = self._finish_reason, None
        self._exhausted = self._exhausted or reason is not None
        return Emitted(tokens, reason)

    def cancel(self) -> None:
        """End the generation and free its blocks. Idempotent, and harmless after the end."""
        self._exhausted = True
        self._engine.cancel(self._request)
        self._wake()

    def _begin(self, now: float) -> None:
        self._started = now
        self.timings.queued = now - self._submitted

    def _push(self, token: Token) -> None:
        self._buffer.append(token)
        self._wake()

    def _finish(self, reason: FinishReason, now: float) -> None:
        self._finish_reason = reason
        if self._record is not None:
            self._record.finish_reasons.append(reason)
        self.timings.inference = now - self._started
        self._wake()

    def _fail(self, error: ServerError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Engine:
    """Requests in, tokens out."""

    def __init__(
        self,
        *,
        tokenizer: TokenNames,
        start: Start,
        world_size: int = 1,
        command: tuple[str, ...] = WORKER,
        overcommit: float = 4.0,
        lookahead: int = 1,
        max_batch_total_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._world_size = world_size
        self._command = command
        self._overcommit = overcommit
        self._lookahead = lookahead
        self._max_batch_total_tokens = max_batch_total_tokens
        self._folder = tempfile.TemporaryDirectory(prefix="tgi-async-")
        self._generations: dict[int, Generation] = {}
        self._last_id = 0
        self._incarnation = 0
        self._deaths = 0
        self._group: WorkerGroup | None = None
        self._serving = False
        self._stopping = False
        self._pump_scheduled = False
        self._sent: dict[int, _Sent] = {}
        self._task: asyncio.Task[None] | None = None
        self.worker_restarts = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with an exception, when the workers can not be brought back."""

    # -- life -----------------------------------------------------------------------------------

    async def launch(self, on_loading: Callable[[Loading], None]) -> Ready:
        """Start the workers and find the limits. Raises StartError."""
        try:
            ready = await self._launch_group(on_loading)
        except WorkerDied as error:
            raise StartError(
                f"The model worker did not start: {error}. Its own message is above, if it had one."
            ) from error
        n_blocks = ready.n_blocks
        if self._max_batch_total_tokens is not None:
            n_blocks = min(n_blocks, self._max_batch_total_tokens // ready.block_size)
        if n_blocks < 1:
            await self.stop(0)
            raise StartError(
                f"No block of {ready.block_size} tokens fits in the KV cache. Give it more memory "
                "(--kv-cache-memory) or raise --max-batch-total-tokens."
            )
        self._start = msgspec.structs.replace(
            self._start,
            n_blocks=n_blocks,
            block_size=ready.block_size,
            max_batch_prefill_tokens=ready.max_batch_prefill_tokens,
        )
        pool = n_blocks * ready.block_size
        longest = min(ready.max_total_tokens, pool)
        self.core = Core(
            Budget(
                n_blocks=n_blocks,
                block_size=ready.block_size,
                max_rows=self._start.max_rows,
                max_batch_prefill_tokens=ready.max_batch_prefill_tokens,
                max_total_tokens=longest,
                overcommit=self._overcommit,
                lookahead=self._lookahead,
            )
        )
        self._stop_ids = frozenset(ready.eos_token_ids)
        self._vocab_size = ready.vocab_size
        return ready

    def serve(self, metrics: StepMetrics) -> None:
        """Begin to take requests, once launched."""
        self._metrics = metrics
        self._serving = True
        self._task = asyncio.create_task(self._serve())

    def refuse(self) -> None:
        """Take no more requests; the live ones go on."""
        self._stopping = True

    async def stop(self, grace: float) -> None:
        """End the workers; what still lives gets an IncompleteGeneration."""
        self._stopping = True
        self._serving = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._fail_all(IncompleteGeneration())
        if self._group is not None:
            await self._group.stop(grace)
            self._group = None
        self._folder.cleanup()

    # -- what the API sees ----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether workers are there to make progress."""
        return self._serving and not self._stopping

    @property
    def max_total_tokens(self) -> int:
        """Longest request that the model and the cache allow."""
        return self.core.budget.max_total_tokens

    @property
    def n_running(self) -> int:
        return len(self.core.running)

    @property
    def n_waiting(self) -> int:
        return len(self.core.waiting)

    @property
    def n_blocks(self) -> int:
        return self.core.budget.n_blocks

    @property
    def used_blocks(self) -> int:
        return self.core.blocks.n_used

    @property
    def cached_blocks(self) -> int:
        return self.core.blocks.n_cached

    @property
    def resident_tokens(self) -> int:
        """Tokens whose keys and values the running requests hold."""
        return sum(request.n_planned for request in self.core.running)

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request.

        Raises ValidationError if it can never fit, Unhealthy when stopping or gone for good.
        """
        if self._stopping:
            raise Unhealthy("The server is shutting down")
        if self.failed.done():
            raise Unhealthy("The model worker is gone for good")
        if (largest := max(request.prompt, default=0)) >= self._vocab_size:
            raise ValidationError(
                f"`inputs` has the token {largest}, and the model knows those below "
                f"{self._vocab_size}: its tokenizer has more tokens than the model"
            )
        wanted = request.max_new_tokens
        if wanted is None:
            wanted = max(1, self.core.budget.max_total_tokens - len(request.prompt))
        self._last_id += 1
        queued = Request(
            self._last_id,
            request.prompt,
            wanted,
            client=request.client,
            sampling=request.sampling,
            stop_ids=frozenset() if request.ignore_eos else self._stop_ids,
            prompt_logprobs=request.prompt_logprobs,
        )
        self.core.submit(queued)
        text = TextStream(self._tokenizer, request.prompt, request.stop, request.include_stop)
        generation = Generation(self, queued, text)
        self._generations[queued.id] = generation
        if (seen := record.current()) is not None:
            seen.requests.append(request)
        self._schedule_pump()
        return generation

    def cancel(self, request: Request) -> None:
        """The client left."""
        if self._generations.pop(request.id, None) is not None:
            self.core.finish(request)
            self._schedule_pump()

    def now(self) -> float:
        # Not the loop's clock: uvloop's has steps of a millisecond.
        return time.monotonic()

    # -- the loop -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while True:
                try:
                    await self._serve_group()
                except (WorkerDied, UnexpectedResult) as error:
                    await self._recover(str(error))
        except (StartError, WorkerDied) as error:
            log.error("the model worker can not be brought back: %s", error)
            self._give_up(error, str(error))
        except Exception as error:
            log.exception("the engine failed")
            self._give_up(error, "the engine failed")

    def _give_up(self, error: Exception, message: str) -> None:
        self._serving = False
        self.failed.set_exception(error)
        self.failed.exception()  # looked at, should nobody else do so
        self._fail_all(GenerationError(message))

    async def _serve_group(self) -> None:
        """Receive results until the workers die."""
        assert self._group is not None
        self._pump()
        while True:
            done = await self._group.receive()
            received = time.perf_counter()
            if self._complete(done):
                self._deaths = 0
            sent = self._sent.pop(done.step)
            self._metrics.step(
                n_prefill_tokens=sent.n_prefill_tokens,
                seconds=self.now() - sent.at,
                results_seconds=time.perf_counter() - received,
                forward_seconds=done.forward_seconds,
                sample_seconds=done.sample_seconds,
            )
            self._pump()

    async def _recover(self, reason: str) -> None:
        """Replay every live request on new workers. Raises if these do not start either."""
        self._serving = False
        self.worker_restarts += 1
        self._deaths += 1
        live = len(self._generations)
        log.error("%s; starting it again, %d requests will be replayed", reason, live)
        assert self._group is not None
        await self._group.kill()
        for sent in self._sent.values():
            self._metrics.step_lost(n_prefill_tokens=sent.n_prefill_tokens)
        self._sent.clear()
        self.core.reset()
        if self._deaths >= MAX_DEATHS:
            log.error("%d deaths without progress: %d requests fail", self._deaths, live)
            self._fail_all(GenerationError(f"{reason}, {self._deaths} times without progress"))
            self._deaths = 0
        for attempt in range(1, MAX_DEATHS + 1):
            try:
                ready = await self._launch_group(_log_loading)
                break
            except WorkerDied as error:
                if attempt == MAX_DEATHS:
                    raise
                log.error("%s while loading (attempt %d of %d)", error, attempt, MAX_DEATHS)
        if ready.n_blocks < self.n_blocks:
            raise StartError(
                f"it came back with {ready.n_blocks} blocks of KV cache and had {self.n_blocks}"
            )
        self._serving = True
        log.info("the worker is back")

    async def _launch_group(self, on_loading: Callable[[Loading], None]) -> Ready:
        self._incarnation += 1
        self._group = WorkerGroup(
            Path(self._folder.name), self._incarnation, self._world_size, self._command
        )
        try:
            return await self._group.launch(self._start, on_loading)
        except BaseException:
            await self._group.kill()
            self._group = None
            raise

    def _schedule_pump(self) -> None:
        """Plan once for everything that comes in one turn of the event loop."""
        if not self._pump_scheduled and self._serving:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._scheduled_pump)

    def _scheduled_pump(self) -> None:
        self._pump_scheduled = False
        try:
            self._pump()
        except WorkerDied as error:
            # The task that waits for results sees this death, and recovers from it.
            log.error("%s", error)
            assert self._group is not None
            self._group.end()

    def _pump(self) -> None:
        """Send steps while the core plans any."""
        if not self._serving or self._group is None:
            return
        while True:
            began = time.perf_counter()
            plan = self.core.plan()
            if plan is None:
                return
            plan_seconds = time.perf_counter() - began
            now = self.now()
            for request in plan.admitted:
                generation = self._generations.get(request.id)
                if generation is not None and not generation.timings.queued:
                    generation._begin(now)
            for admit in plan.step.admit:
                self._metrics.admitted(admit.n_cached)
            self._sent[plan.step.step] = _Sent(now, plan.n_prefill_tokens)
            self._metrics.step_sent(
                n_prefill_tokens=plan.n_prefill_tokens,
                n_admitted=len(plan.admitted),
                n_decode=plan.n_decodes,
                plan_seconds=plan_seconds,
            )
            self._group.send(plan.step)

    def _complete(self, done: StepDone) -> bool:
        """Tell the requests what a step brought them. True if it brought anything."""
        events = self.core.complete(done)
        for event in events:
            generation = self._generations.get(event.request.id)
            if generation is None:
                continue
            if isinstance(event, TokenEvent):
                self._emit(generation, event)
            elif isinstance(event, PromptEvent):
                generation.prompt_logprobs += event.logprobs
            elif isinstance(event, FailedEvent):
                self._end(event.request)._fail(GenerationError(event.message))
        return bool(events)

    def _emit(self, generation: Generation, event: TokenEvent) -> None:
        sampled, reason = event.sampled, event.finish_reason
        text, stopped = generation._text.push(sampled.token)
        if stopped:
            self.core.finish(event.request)
            reason = "stop_sequence"
        elif reason is not None:
            text += generation._text.flush()
        generation._push(self._token(sampled, text))
        if reason is not None:
            self._end(event.request)._finish(reason, self.now())

    def _token(self, sampled: Sampled, text: str) -> Token:
        names = self._tokenizer
        top = tuple(
            TopToken(one.id, names.token_text(one.id), one.logprob, names.is_special(one.id))
            for one in sampled.top
        )
        return Token(sampled.token, text, sampled.logprob, names.is_special(sampled.token), top)

    def _end(self, request: Request) -> Generation:
        return self._generations.pop(request.id)

    def _fail_all(self, error: ServerError) -> None:
        for generation in list(self._generations.values()):
            self.core.finish(generation._request)
            generation._fail(error)
        self._generations.clear()


def _log_loading(loading: Loading) -> None:
    if loading.seconds:
        log.info("%s: %.1f s", loading.phase, loading.seconds)
