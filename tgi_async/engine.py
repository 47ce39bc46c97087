"""The engine: sockets, time and tasks around the deterministic core.

**One task.** It alone plans and sends steps, hands results to the core, turns tokens into text and
wakes the readers that wait for them; submitting or cancelling a request wakes it. Everything
happens on one event loop, so nothing is locked.

**Nothing is lost.** A worker's death is a preemption of everything: the core forgets what was in
flight, another group of workers is launched with the first one's block count, and every live
request is computed again from its prompt and what it has emitted.

**Nobody waits for nothing.** Whatever is raised ends in one of three ways. What goes wrong with the
text of one request, or with its parameters, fails that request. Anything else that the task meets,
in the core, on the wire or in a worker, is recovered from like a worker's death, for after it
neither the core nor the workers can be relied on. A request that keeps killing the workers is found
(`scheduler/suspects.py`) and fails, and all do after `MAX_DEATHS` in a row without a token. If
recovery itself fails, the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import ParamSpec, TypeVar

import msgspec

from tgi_async.backoff import Backoff
from tgi_async.errors import (
    GenerationError,
    IncompleteGeneration,
    Overloaded,
    ServerError,
    StartError,
    Unhealthy,
    ValidationError,
)
from tgi_async.generation import GenerationRequest
from tgi_async.generation_stream import GenerationStream, TokenNames
from tgi_async.live_streams import LiveStreams
from tgi_async.pace import Pace
from tgi_async.scheduler.chunks import chunks_beside_decodes
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget, half
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.reservations import EVICTED, Capacity, Reservation
from tgi_async.scheduler.results import UnexpectedResult
from tgi_async.scheduler.state import lines_of
from tgi_async.supervisor import WORKER, NodeLost, WorkerDied, WorkerGroup
from tgi_async.telemetry.steps import StepMetrics, StepTimer
from tgi_async.wire.messages import MAX_END_IDS, Loading, Ready, Start, StepDone
from tgi_async.worker_restarter import Restarts, WorkerRestarter

log = logging.getLogger(__name__)

MOST_MERGED_STEPS = 16
MOST_MERGED_TOKENS = 512
"""What is delivered in one turn of the event loop where results wait already: 3 ms or so.

A router that is behind its workers keeps these busy first, and then writes to each client once for
several tokens. A first token is delivered at once.
"""
LEAST_DELAY = 0.001
"""Seconds; the clock of the event loop's timers has no finer steps."""
MAX_DEATHS = 5
"""Restarts without a token between them after which every live request fails."""
MOST_FORGIVEN = 2
"""Culprits whose deaths do not count among these."""
RESTARTS = Restarts()
STOPPING = "The server is shutting down"
GONE = "The model worker is gone for good"
FAILED = "the engine failed"

P = ParamSpec("P")
T = TypeVar("T")


class State(Enum):
    """The states of an engine. It moves to later ones only, but for restarts."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """The workers are started again; requests are accepted and wait."""
    RETIRED = "retired"
    """Serving, through restarts too, though clients should go elsewhere."""
    STOPPED = "stopped"
    FAILED = "failed"
    """The workers could not be restarted."""


class Engine:
    """Requests in, tokens out."""

    def __init__(
        self,
        *,
        tokenizer: TokenNames,
        start: Start,
        command: tuple[str, ...] = WORKER,
        overcommit: float = 4.0,
        lookahead: int = 1,
        max_batch_total_tokens: int | None = None,
        capacity: Capacity | None = None,
        restarts: Restarts = RESTARTS,
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._overcommit = overcommit
        self._lookahead = lookahead
        self._max_batch_total_tokens = max_batch_total_tokens
        self._capacity = capacity or Capacity(start.batch.max_rows)
        self._workers = WorkerRestarter(
            start.ranks.world_size,
            command,
            restarts.backoff or Backoff(),
            standby=restarts.standby,
            nodes=restarts.nodes,
        )
        self._streams = LiveStreams()
        self._last_id = 0
        self._state = State.STARTING
        self._deaths = self._forgiven = 0
        """Restarts since the last token, not counting deaths of workers that had nothing to do."""
        self._fault: Exception | None = None
        """The core's error in a client's call, which the task recovers from."""
        self._task: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        """Wakes the task when it is time to send the next step."""
        self.worker_restarts = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with an exception, when the workers cannot be restarted."""

    # -- life -----------------------------------------------------------------------------------

    async def launch(self, on_loading: Callable[[Loading], None]) -> Ready:
        """Start the workers and find the limits. Raises StartError."""
        try:
            ready = await self._workers.launch(self._start, on_loading)
        except WorkerDied as error:
            raise StartError(
                f"The model worker did not start: {error}. Its own message is above, if it had one."
            ) from error
        replace = msgspec.structs.replace
        pools = ready.pools
        if self._max_batch_total_tokens is not None:
            most = self._max_batch_total_tokens // ready.block_size
            pools = [replace(one, n_blocks=min(one.n_blocks, most)) for one in pools]
        n_blocks = [pool.n_blocks for pool in pools]
        if min(n_blocks) < 1:
            await self.stop(0)
            raise StartError(
                f"No block of {ready.block_size} tokens fits in the KV cache. Give it more memory "
                "(--kv-cache-memory) or raise --max-batch-total-tokens."
            )
        # A restarted worker uses what the first one found.
        self._start = replace(
            self._start,
            cache=replace(self._start.cache, n_blocks=n_blocks, block_size=ready.block_size),
            batch=replace(self._start.batch, max_prefill_tokens=ready.max_batch_prefill_tokens),
            speculation=replace(self._start.speculation, decode_costs=ready.decode_costs),
        )
        self._workers.stand_by(self._start, ready)
        longest = min(ready.max_total_tokens, min(n_blocks) * ready.block_size)
        max_rows = self._start.batch.max_rows
        self.core = Core(
            Budget(
                pools=pools,
                block_size=ready.block_size,
                max_rows=max_rows,
                max_batch_prefill_tokens=ready.max_batch_prefill_tokens,
                max_total_tokens=longest,
                overcommit=self._overcommit,
                lookahead=self._lookahead,
                max_drafts=ready.max_drafts,
                capacity=self._capacity,
                beside_decodes=chunks_beside_decodes(
                    ready.prefill_costs,
                    ready.target_inter_token_latency,
                    half(ready.max_batch_prefill_tokens),
                    ready.block_size,
                    max_rows,
                ),
            )
        )
        self._stop_ids = frozenset(ready.eos_token_ids)
        self._grammar_stop_ids = self._stop_ids | frozenset(self._start.stop_token_ids)
        self._vocab_size = ready.vocab_size
        self._pace = Pace(ahead=ready.device.startswith("cuda"))
        return ready

    def serve(self, metrics: StepMetrics) -> None:
        """Begin to take requests, after `launch`."""
        self._steps = StepTimer(metrics)
        if self._state is State.STARTING:
            self._state = State.READY
        self._task = asyncio.create_task(self._serve())

    def retire(self) -> None:
        """Report not ready from now on, so that clients go elsewhere; requests are still
        accepted."""
        if self._state in (State.STARTING, State.READY, State.RESTARTING):
            self._state = State.RETIRED

    async def stop(self, grace: float) -> None:
        """Stop the workers. Running requests get an IncompleteGeneration, waiting ones a 503."""
        self._state = State.STOPPED
        if self._later is not None:
            self._later.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            self._fail_all(IncompleteGeneration(), Unhealthy(STOPPING))
        finally:
            await self._workers.stop(grace)

    # -- what the API sees ----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether workers are running, and will be for a while."""
        return self._state is State.READY

    @property
    def max_total_tokens(self) -> int:
        """The longest request, prompt and output, that the model and the cache allow."""
        return self.core.budget.max_total_tokens

    @property
    def n_running(self) -> int:
        return len(self.core.running)

    @property
    def n_waiting(self) -> int:
        return len(self.core.waiting)

    @property
    def n_blocks(self) -> int:
        return self.core.blocks.n_blocks

    @property
    def block_size(self) -> int:
        return self.core.blocks.block_size

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

    def described(self) -> list[str]:
        """Return the state of the engine and its scheduler in words: no text and no token."""
        return [
            f"{self._state.value}, {len(self._streams)} streams, {self.worker_restarts} restarts",
            *lines_of(self.core),
        ]

    def reserve(
        self, client: str, n_rows: int, n_bytes: int, on_evicted: Callable[[], None]
    ) -> Reservation:
        """Reserve rows for later requests, whose bodies have `n_bytes`.

        `on_evicted` is called if another client gets them before any of them runs; whatever was
        submitted for them is over then, and its streams raise Overloaded.

        Raises ValidationError for more than there are, Overloaded where there is no room now,
        Unhealthy when stopping or gone for good.
        """
        self._check_serving()
        reservation, evicted, ended = self._in_core(self.core.reserve, client, n_rows, n_bytes)
        reservation.on_evicted = on_evicted
        self._tell_evicted(evicted, ended)
        return reservation

    def _tell_evicted(self, evicted: list[Reservation], ended: list[Request]) -> None:
        for request in ended:
            if (stream := self._streams.remove(request)) is not None:
                stream.fail(Overloaded(EVICTED))
        for one in evicted:
            if one.on_evicted is not None:
                one.on_evicted()

    def release(self, reservation: Reservation) -> None:
        """Free its rows. Idempotent."""
        self.core.reservations.release(reservation)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queue a request.

        Raises ValidationError if it can never fit, Overloaded if its reservation was evicted or
        there is no room for its tokens, Unhealthy when stopping or gone for good.
        """
        self._check_serving()
        if (largest := _largest_token(request)) >= self._vocab_size:
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
            weight=request.weight,
            tenant=request.tenant,
            sampling=sampling,
            stop_ids=stop_ids,
            grammar=request.grammar,
            prompt_logprobs=request.prompt_logprobs,
            prompt_top_n_tokens=request.prompt_top_n_tokens,
            salts=request.salts,
            images=request.images,
            spans=request.spans,
            reservation=request.reservation,
        )
        if (reservation := request.reservation) is not None and not reservation.evicted:
            n_tokens = len(request.prompt)
            self._tell_evicted(*self._in_core(self.core.weigh, reservation, n_tokens))
        self._in_core(self.core.submit, queued)
        stream = GenerationStream(request, queued, self._tokenizer, self.cancel)
        self._streams.add(stream)
        self._wake()
        return stream

    def _stop_ids_of(self, request: GenerationRequest) -> frozenset[int]:
        own = frozenset(request.stop_token_ids)
        if request.grammar:
            # The text ends with such a token, and the grammar allows nothing after it.
            return own | self._grammar_stop_ids
        return own if request.ignore_eos else own | self._stop_ids

    def cancel(self, request: Request) -> None:
        """End a request whose client left."""
        if self._streams.remove(request) is not None:
            with contextlib.suppress(GenerationError):
                self._in_core(self.core.finish, request)
            self._wake()

    def _check_serving(self) -> None:
        if self._state is State.STOPPED:
            raise Unhealthy(STOPPING)
        if self._state is State.FAILED:
            raise Unhealthy(GONE)

    def _in_core(self, call: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Call the core for a client. Raises the ServerError that refuses the request.

        What else it raises fails the request, and leaves a core that the task is to recover.
        """
        try:
            return call(*given, **named)
        except ServerError:
            raise
        except Exception as error:
            self._fault = error
            self._wake()
            raise GenerationError(FAILED) from error

    def _wake(self) -> None:
        """Have the task plan a step, once for everything that comes in one turn of the event
        loop."""
        if self._workers.group is not None:
            self._workers.group.wake()

    # -- the task -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        try:
            while True:
                try:
                    await self._serve_group()
                except Exception as error:
                    await self._recover(error)
        except (StartError, WorkerDied) as error:
            log.error(
                "the model worker cannot be brought back: %s; requests fail, and the server ends",
                error,
            )
            self._give_up(error, str(error))
        except Exception as error:
            log.exception(
                "%s, and so did its recovery: all requests fail, and the server ends", FAILED
            )
            self._give_up(error, FAILED)

    def _give_up(self, error: Exception, message: str) -> None:
        self._state = State.FAILED
        self.failed.set_exception(error)
        self.failed.exception()  # retrieve the exception, in case nothing else does
        self._fail_all(GenerationError(message), Unhealthy(GONE))

    async def _serve_group(self) -> None:
        """Send steps and take results until an error."""
        group = self._workers.group
        assert group is not None
        while self._fault is None:
            done = group.poll()
            if done is None:
                # A client came or left, or this is the first time.
                self._pump(group)
            elif self._take_all(group, done):
                # More results may wait already, and other tasks need to run.
                await asyncio.sleep(0)
                continue
            await group.wait()
        raise self._fault

    def _take_all(self, group: WorkerGroup, done: StepDone | None) -> bool:
        """Take the results that have arrived, send the next steps, and deliver the tokens.

        True if more results may be there.
        """
        n_steps = n_tokens = 0
        while done is not None:
            received = time.monotonic()
            self._pace.done(received)
            begun, n_emitted = self._complete(done)
            self._steps.done(done, received)
            self._pump(group)
            n_steps += 1
            n_tokens += n_emitted
            if begun or n_steps == MOST_MERGED_STEPS or n_tokens >= MOST_MERGED_TOKENS:
                break
            done = group.poll()
        self._streams.deliver()
        return done is not None

    def _pump(self, group: WorkerGroup) -> None:
        """Send steps while the core plans any, and it is time for the next one."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        while True:
            began = time.monotonic()
            # What waits already need not wait for what may still come.
            if not len(self.core.waiting) and (left := self._pace.left(began)) > LEAST_DELAY:
                self._later = asyncio.get_running_loop().call_later(left, self._wake)
                return
            plan = self.core.plan()
            if plan is None:
                return
            now = time.monotonic()
            if plan.admitted:
                self._streams.started(plan.admitted, now)
            self._steps.sent(plan, began, now)
            self._pace.sent(now)
            group.send(plan.step)

    def _complete(self, done: StepDone) -> tuple[bool, int]:
        """Give a step's tokens to the requests. Return whether one of them is a first token, and
        how many there are."""
        events = self.core.complete(done)
        if events:
            self._deaths = self._forgiven = 0
        # The core knows of every end but that by a stop sequence with a single token.
        return self._streams.take(events, self.core.finish), len(events)

    # -- what goes wrong ------------------------------------------------------------------------

    async def _recover(self, error: Exception) -> None:
        """Replay every live request on new workers. Raises if these do not start either."""
        foreseen = isinstance(error, (WorkerDied, UnexpectedResult))
        reason = str(error) if foreseen else FAILED
        log.error(
            "%s. In flight: %s. Starting the workers again, %d requests will be replayed",
            reason,
            self.core.lost,
            len(self._streams),
            exc_info=None if foreseen else error,
        )
        if self._state is State.READY:
            self._state = State.RESTARTING
        self.worker_restarts += 1
        self._fault = None
        self._streams.deliver()
        await self._workers.kill()
        self._steps.lost()
        self._pace.lost()
        if isinstance(error, NodeLost):
            self._replay_blameless()
        else:
            self._replay(reason, None if foreseen else error)
        ready = await self._workers.relaunch(self._start)
        if ready.n_blocks < self.n_blocks:
            raise StartError(
                f"it came back with {ready.n_blocks} blocks of KV cache and had {self.n_blocks}"
            )
        if self._state is State.RESTARTING:
            self._state = State.READY
        log.info("the worker is back")

    def _replay(self, reason: str, fault: Exception | None) -> None:
        """Submit all live requests to the core again, except one that keeps killing the workers.

        Raises `fault`, an error of the engine's own, where it comes again and again without any
        request.
        """
        self._rewind()
        culprit = self.core.died([stream.request for stream in self._streams])
        if not self._streams and fault is None:
            self._deaths = 0
            return
        self._deaths += 1
        if culprit is not None and self._forgiven < MOST_FORGIVEN:
            # There may be more like it, for which the others are not to pay.
            self._forgiven += 1
            self._deaths = 1
        if not self._streams and fault is not None and self._deaths >= MAX_DEATHS:
            raise fault
        if self._deaths >= MAX_DEATHS:
            log.error(
                "%d restarts without a token between them: all %d live requests fail, and the "
                "workers are started again",
                self._deaths,
                len(self._streams),
            )
            error = GenerationError(f"{reason}, {self._deaths} times without progress")
            self._deaths = self._forgiven = 0
            self._fail_all(error, Unhealthy(str(error)))
        elif culprit is not None:
            failing = self._streams.remove(culprit)
            log.error(
                "the workers died of request %s again and again: it fails, the others go on",
                culprit.id if failing is None else failing.request_id or culprit.id,
            )
            self.core.finish(culprit)
            if failing is not None:
                failing.fail(GenerationError(f"{reason}, again and again with this request"))

    def _replay_blameless(self) -> None:
        """Submit all live requests to the core again."""
        self._rewind()
        self.core.reset([stream.request for stream in self._streams])

    def _rewind(self) -> None:
        for stream in self._streams:
            stream.request.rewind(stream.n_emitted, len(stream.prompt_logprobs))

    def _fail_all(self, error: ServerError, of_waiting: ServerError) -> None:
        """End requests that have run with `error`, and waiting ones with the other error."""
        requests = [stream.request for stream in self._streams]
        # Clients first, as the core may be what is broken.
        self._streams.fail_all(error, of_waiting)
        if requests:
            self.core.reset(requests)
            for request in requests:
                self.core.finish(request)


def _largest_token(request: GenerationRequest) -> int:
    """Return the largest token of a prompt, placeholders of images aside: these may be beyond what
    a model can emit."""
    ids, images = request.prompt, request.images
    if not images:
        return max(ids, default=0)
    starts = [0, *(image.end for image in images)]
    ends = [*(image.start for image in images), len(ids)]
    return max(max(ids[start:end], default=0) for start, end in zip(starts, ends, strict=True))
