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
import time
from collections.abc import Callable

import msgspec

from tgi_async.backoff import Backoff
from tgi_async.errors import (
    GenerationError,
    IncompleteGeneration,
    ServerError,
    StartError,
    Unhealthy,
    ValidationError,
)
from tgi_async.generation import GenerationRequest
from tgi_async.generation_stream import GenerationStream, TokenNames
from tgi_async.incarnations import Incarnations
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import FailedEvent, PromptEvent, Request, TokenEvent
from tgi_async.scheduler.reservations import Capacity, Reservation
from tgi_async.scheduler.results import UnexpectedResult
from tgi_async.supervisor import WORKER, WorkerDied
from tgi_async.telemetry.steps import StepMetrics, StepTimer
from tgi_async.wire.messages import MAX_END_IDS, Loading, Ready, Start, StepDone

log = logging.getLogger(__name__)

MOST_MERGED_STEPS = 16
MOST_MERGED_TOKENS = 512
"""What is handed on in one turn of the event loop where results wait already: 3 ms or so.

A router that is behind its workers keeps these busy first, and then writes to each client once for
several tokens. A first token is handed on at once.
"""
MAX_DEATHS = 3
"""Deaths of the workers with no token between them, after which the requests that ran fail."""
STOPPING = "The server is shutting down"
GONE = "The model worker is gone for good"


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
        capacity: Capacity | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._overcommit = overcommit
        self._lookahead = lookahead
        self._max_batch_total_tokens = max_batch_total_tokens
        self._capacity = capacity or Capacity(start.max_rows)
        self._workers = Incarnations(world_size, command, backoff or Backoff())
        self._streams: dict[int, GenerationStream] = {}
        self._last_id = 0
        self._deaths = 0
        self._serving = False
        self._retired = False
        self._stopping = False
        self._pump_scheduled = False
        self._began = False
        """Whether somebody is to be handed a first token."""
        self._due: list[GenerationStream] = []
        """Those that emitted something which was not handed on."""
        self._task: asyncio.Task[None] | None = None
        self.worker_restarts = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with an exception, when the workers cannot be brought back."""

    # -- life -----------------------------------------------------------------------------------

    async def launch(self, on_loading: Callable[[Loading], None]) -> Ready:
        """Start the workers and find the limits. Raises StartError."""
        try:
            ready = await self._workers.launch(self._start, on_loading)
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
                capacity=self._capacity,
            )
        )
        self._stop_ids = frozenset(ready.eos_token_ids)
        self._grammar_stop_ids = self._stop_ids | frozenset(self._start.stop_token_ids)
        self._vocab_size = ready.vocab_size
        return ready

    def serve(self, metrics: StepMetrics) -> None:
        """Begin to take requests, once launched."""
        self._steps = StepTimer(metrics)
        self._serving = True
        self._task = asyncio.create_task(self._serve())

    def retire(self) -> None:
        """Be not ready from now on, so that clients look elsewhere; requests are still taken."""
        self._retired = True

    async def stop(self, grace: float) -> None:
        """End the workers. What still lives gets an IncompleteGeneration; what never ran, a 503."""
        self._stopping = True
        self._serving = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._fail(IncompleteGeneration(), Unhealthy(STOPPING))
        await self._workers.stop(grace)

    # -- what the API sees ----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether workers are there to make progress, and will be for a while."""
        return self._serving and not self._retired and not self._stopping

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

    def reserve(
        self, client: str, n_rows: int, n_bytes: int, on_evicted: Callable[[], None]
    ) -> Reservation:
        """Reserve rows for requests to come, whose bodies have `n_bytes`.

        `on_evicted` is called if another client gets them before any of them runs; whatever was
        submitted for them is over then, and its streams bring nothing.

        Raises ValidationError for more than there are, Overloaded where there is no room now,
        Unhealthy when stopping or gone for good.
        """
        self._check_serving()
        reservation, evicted = self.core.reserve(client, n_rows, n_bytes)
        reservation.on_evicted = on_evicted
        for one in evicted:
            for request in one.requests:
                self._streams.pop(request.id, None)
            if one.on_evicted is not None:
                one.on_evicted()
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Give its rows back. Idempotent."""
        self.core.reservations.release(reservation)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queue a request.

        Raises ValidationError if it can never fit, Overloaded if its reservation was evicted,
        Unhealthy when stopping or gone for good.
        """
        self._check_serving()
        if (largest := max(request.prompt, default=0)) >= self._vocab_size:
            raise ValidationError(
                f"the prompt has the token {largest}, and the model knows those below "
                f"{self._vocab_size}: its tokenizer has more tokens than the model"
            )
        wanted = request.max_new_tokens
        if wanted is None:
            wanted = max(1, self.core.budget.max_total_tokens - len(request.prompt))
        self._last_id += 1
        stop_ids = self._stop_ids_of(request)
        sampling = request.sampling
        if sampling.min_tokens:
            ends = sorted(stop_ids | self._stop_ids)[:MAX_END_IDS]
            sampling = msgspec.structs.replace(sampling, end_ids=ends)
        queued = Request(
            self._last_id,
            request.prompt,
            wanted,
            client=request.client,
            sampling=sampling,
            stop_ids=stop_ids,
            grammar=request.grammar,
            prompt_logprobs=request.prompt_logprobs,
            prompt_top_n_tokens=request.prompt_top_n_tokens,
            reservation=request.reservation,
        )
        self.core.submit(queued)
        stream = GenerationStream(request, queued, self._tokenizer, self.cancel)
        self._streams[queued.id] = stream
        self._schedule_pump()
        return stream

    def _stop_ids_of(self, request: GenerationRequest) -> frozenset[int]:
        own = frozenset(request.stop_token_ids)
        if request.grammar:
            # The text ends by such a token, and the grammar knows nothing to say after it.
            return own | self._grammar_stop_ids
        return own if request.ignore_eos else own | self._stop_ids

    def cancel(self, request: Request) -> None:
        """The client left."""
        if self._streams.pop(request.id, None) is not None:
            self.core.finish(request)
            self._schedule_pump()

    def _check_serving(self) -> None:
        if self._stopping:
            raise Unhealthy(STOPPING)
        if self.failed.done():
            raise Unhealthy(GONE)

    # -- the loop -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while True:
                try:
                    await self._serve_group()
                except (WorkerDied, UnexpectedResult) as error:
                    await self._recover(str(error))
        except (StartError, WorkerDied) as error:
            log.error("the model worker cannot be brought back: %s", error)
            self._give_up(error, str(error))
        except Exception as error:
            log.exception("the engine failed")
            self._give_up(error, "the engine failed")

    def _give_up(self, error: Exception, message: str) -> None:
        self._serving = False
        self.failed.set_exception(error)
        self.failed.exception()  # looked at, should nobody else do so
        self._fail(GenerationError(message), Unhealthy(GONE))

    async def _serve_group(self) -> None:
        """Receive results until the workers die."""
        group = self._workers.group
        assert group is not None
        self._pump()
        while True:
            done: StepDone | None = await group.receive()
            n_steps = n_tokens = 0
            while done is not None:
                self._take(done)
                n_steps += 1
                n_tokens += len(done.sampled)
                if self._began or n_steps == MOST_MERGED_STEPS or n_tokens >= MOST_MERGED_TOKENS:
                    break
                done = group.poll()
            self._hand_on()
            if done is not None:
                # More may wait already, and others want to run.
                await asyncio.sleep(0)

    def _take(self, done: StepDone) -> None:
        """Hand on a step's result, and send the next step."""
        received = time.monotonic()
        if self._complete(done):
            self._deaths = 0
        self._steps.done(done, received)
        self._pump()

    async def _recover(self, reason: str) -> None:
        """Replay every live request on new workers. Raises if these do not start either."""
        self._hand_on()
        self._serving = False
        self.worker_restarts += 1
        self._deaths += 1
        live = len(self._streams)
        log.error("%s; starting it again, %d requests will be replayed", reason, live)
        await self._workers.kill()
        self._steps.lost()
        self.core.reset()
        if self._deaths >= MAX_DEATHS:
            log.error("%d deaths without progress: what ran fails", self._deaths)
            # What has not run yet cannot have been the cause.
            self._fail(GenerationError(f"{reason}, {self._deaths} times without progress"), None)
            self._deaths = 0
        ready = await self._workers.relaunch(self._start)
        if ready.n_blocks < self.n_blocks:
            raise StartError(
                f"it came back with {ready.n_blocks} blocks of KV cache and had {self.n_blocks}"
            )
        self._serving = True
        log.info("the worker is back")

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
            assert self._workers.group is not None
            self._workers.group.end()

    def _pump(self) -> None:
        """Send steps while the core plans any."""
        group = self._workers.group
        if not self._serving or group is None:
            return
        while True:
            began = time.monotonic()
            plan = self.core.plan()
            if plan is None:
                return
            now = time.monotonic()
            for request in plan.admitted:
                if (stream := self._streams.get(request.id)) is not None:
                    stream.started(now)
            self._steps.sent(plan, began, now)
            group.send(plan.step)

    def _complete(self, done: StepDone) -> bool:
        """Tell the requests what a step brought them. True if it brought anything."""
        events = self.core.complete(done)
        for event in events:
            stream = self._streams.get(event.request.id)
            if stream is None:
                continue
            if isinstance(event, TokenEvent):
                if not stream.due:
                    stream.due = True
                    self._due.append(stream)
                    if not stream.begun:
                        stream.begun = self._began = True
                if stream.emit(event.sampled, event.finish_reason) is not None:
                    del self._streams[event.request.id]
                    # It knows of every end but that by a stop sequence.
                    self.core.finish(event.request)
            elif isinstance(event, PromptEvent):
                stream.score(event)
            elif isinstance(event, FailedEvent):
                self._streams.pop(event.request.id).fail(GenerationError(event.message))
        return bool(events)

    def _hand_on(self) -> None:
        """Let clients have what steps brought them, once for all that came together."""
        due, self._due, self._began = self._due, [], False
        for stream in due:
            stream.hand_on()

    def _fail(self, error: ServerError, of_waiting: ServerError | None) -> None:
        """End what has run with `error`, and what has not with the other one, if there is any."""
        for stream in list(self._streams.values()):
            reason = error if stream.request.charged else of_waiting
            if reason is not None:
                del self._streams[stream.request.id]
                self.core.finish(stream.request)
                stream.fail(reason)
