"""The scheduler core: decides which rows run in the next step.

Deterministic, and alone: no I/O, no clock, no randomness, no asyncio. The engine around it calls
`reserve`, `submit`, `plan`, `complete`, `finish` and `reset`, sends the steps it plans to the
workers in order, and hands back their results in the same order.

A step is `{row: n tokens}`; prefill, chunk and decode differ only in their counts. Each plan first
gives every decoding row its token, then spends the prefill budget on decoding rows that have more
than one (a grammar forced some), on the row that is in mid-prefill, and on new admissions. At most
one row is left in mid-prefill. Where workers verify drafts, these get what is left then.

**One step ahead.** Up to `lookahead` steps are planned before the results of the ones before have
come back. A sampled token that is still in flight counts as one token of unknown value. Frees wait:
the table of a request that ended or was preempted is closed once the last step that may touch its
blocks is acknowledged.

**Drafts.** The count of a row whose drafts are verified is an upper bound: until the result is
back, the row is planned for, and granted blocks, as if all were accepted. Then it goes on from
those that were. Only blocks below these enter the prefix cache; what was granted beyond them the
row keeps. A row that comes to its limit if all are accepted waits for the result.

**Mask not ready.** A row whose grammar mask is not computed in time gets no token, and computes the
last of its known tokens again.

**No stall.** Each plan leaves enough blocks available for every decoding row to go on for one more
step; where it cannot, it preempts the latest arrivals now, so that their blocks are back in time.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.scheduler.blocks import BlockManager, BlockTable
from tgi_async.scheduler.fairness import INPUT_COST, OUTPUT_COST, WaitingQueue
from tgi_async.scheduler.plan import Budget, Plan, ScheduledRow, StepBuilder
from tgi_async.scheduler.request import (
    Event,
    FailedEvent,
    FinishReason,
    PromptEvent,
    Request,
    Status,
    TokenEvent,
)
from tgi_async.scheduler.reservations import EVICTED, Reservation, Reservations
from tgi_async.scheduler.results import InFlight, UnexpectedResult, check_result
from tgi_async.wire.messages import (
    Admit,
    Constraint,
    Grow,
    PromptLogprobs,
    Run,
    Sampled,
    Step,
    StepDone,
)


class Core:
    """The waiting queue, the running batch, the blocks and the budgets."""

    def __init__(self, budget: Budget) -> None:
        if budget.lookahead not in (0, 1):
            raise ValueError(f"lookahead is 0 or 1, got {budget.lookahead}")
        if min(budget.max_rows, budget.max_batch_prefill_tokens) < 1:
            raise ValueError(f"a step needs at least one row and one prefill token, got {budget}")
        self.budget = budget
        self.blocks = BlockManager(budget.pools, budget.block_size)
        self.reservations = Reservations(budget.capacity)
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        """In order of arrival."""
        self.n_preemptions = 0
        self.n_hit_tokens = 0
        self._free_rows = list(range(budget.max_rows - 1, -1, -1))
        self._release: list[int] = []
        self._in_flight: deque[InFlight] = deque()
        self._closing: list[BlockTable] = []
        """Tables of ended requests, waiting for the steps in flight that may touch them."""
        self._last_step = 0
        self._acknowledged = 0
        self._arrivals = 0
        self._committed_tokens = 0
        """Prompt tokens and maximum output tokens of all running requests."""
        self._n_replays = 0
        """Admissions that are still to be made one by one."""
        self._trial: Request | None = None
        self._trial_length = 0

    # -- events ---------------------------------------------------------------------------------

    def reserve(
        self, client: str, n_rows: int, n_bytes: int
    ) -> tuple[Reservation, list[Reservation], list[Request]]:
        """Reserve rows for later requests. Return the reservation, the evicted ones, and their
        requests, which are ended.

        Raises ValidationError for more than there are, Overloaded where there is no room now.
        """
        reservation, evicted = self.reservations.reserve(client, n_rows, n_bytes)
        # None of their requests has run.
        ended = [one for one in self.waiting if one.reservation in evicted] if evicted else []
        for request in ended:
            self.finish(request)
        return reservation, evicted, ended

    def submit(self, request: Request) -> None:
        """Queue a new request.

        Raises ValidationError, by name of the limit, if it can never fit; Overloaded if its
        reservation was evicted.
        """
        budget = self.budget
        total = request.n_prompt + request.max_new_tokens
        if not request.n_prompt or request.max_new_tokens < 1:
            raise ValidationError(
                "a request needs at least one prompt token and one token to generate. "
                f"Given: {request.n_prompt} and {request.max_new_tokens}"
            )
        if total > budget.max_total_tokens:
            raise ValidationError(
                f"`inputs` tokens + `max_new_tokens` must be <= {budget.max_total_tokens}. Given: "
                f"{request.n_prompt} `inputs` tokens and {request.max_new_tokens} `max_new_tokens`"
            )
        if self._n_blocks(request.limit) > self.blocks.n_blocks:
            raise ValidationError(
                f"`inputs` tokens + `max_new_tokens` must fit in the KV cache of "
                f"{self.blocks.n_tokens} tokens (`max_batch_total_tokens`). Given: "
                f"{request.n_prompt} `inputs` tokens and {request.max_new_tokens} `max_new_tokens`"
            )
        if request.reservation is not None and request.reservation.evicted:
            raise Overloaded(EVICTED)
        self._arrivals += 1
        request.arrival = self._arrivals
        self.waiting.add(request)

    def finish(self, request: Request) -> None:
        """End a request: its client left, or a stop sequence appeared. Idempotent."""
        if request.status is Status.ENDED:
            return
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        else:
            self._leave(request)
        request.status = Status.ENDED
        self.waiting.ended(request)
        if request.reservation is not None:
            self.reservations.end(request.reservation, ran=request.charged)

    def reset(self, live: Iterable[Request] | None = None, *, one_by_one: bool = False) -> None:
        """Start over with new workers: every live request waits, and none runs.

        `live` are the requests that the caller still serves, for the lists here are in doubt once
        a method has raised. None: what the lists say. With `one_by_one` each of them is admitted
        when the one before has got a token, so that there is a `suspect` if it happens again.
        """
        if live is None:
            live = [*self.running, *self.waiting]
        running: list[Request] = []
        waiting: list[Request] = []
        for request in sorted(live, key=lambda one: one.arrival):
            (waiting if request.status is Status.WAITING else running).append(request)
            request.requeue()
        self._in_flight.clear()
        self._acknowledged = self._last_step
        self._closing.clear()
        self._release.clear()
        self.blocks.reset()
        self.running.clear()
        self.waiting.reset(waiting, running)
        self._committed_tokens = 0
        self._free_rows = list(range(self.budget.max_rows - 1, -1, -1))
        self._n_replays = len(running) + len(waiting) if one_by_one else 0
        self._trial = None

    @property
    def suspect(self) -> Request | None:
        """The request that was admitted last, one by one, and has got no token since."""
        trial = self._trial
        if trial is None or len(trial.tokens) != self._trial_length:
            return None
        return trial

    @property
    def on_trial(self) -> bool:
        """Whether admissions wait until the suspect has got a token."""
        suspect = self.suspect
        return self._n_replays > 0 and suspect is not None and suspect.status is Status.RUNNING

    def complete(self, done: StepDone) -> list[Event]:
        """Complete the oldest step in flight.

        Raises UnexpectedResult, and changes nothing, if this is not its result.
        """
        if not self._in_flight or self._in_flight[0].step != done.step:
            raise UnexpectedResult(f"step {done.step} is not the one awaited")
        scheduled_rows = self._in_flight[0].scheduled_rows
        sampled = {one.row: one for one in done.sampled}
        failed = {error.row: error.message for error in done.errors}
        check_result(done, scheduled_rows, sampled, failed)
        self._in_flight.popleft()
        self._acknowledged = done.step
        postponed = set(done.masks_not_ready)
        events: list[Event] = []
        if done.prompt_logprobs:
            requests = {scheduled.row: scheduled.request for scheduled in scheduled_rows}
            for found in done.prompt_logprobs:
                self._add_prompt_logprobs(requests[found.row], found, events)
        for scheduled in scheduled_rows:
            if scheduled.row in failed:
                self._fail(scheduled, failed[scheduled.row], events)
            elif scheduled.row in postponed:
                self._postpone(scheduled)
            else:
                self._acknowledge(scheduled, sampled, events)
        self._close_tables()
        return events

    # -- planning -------------------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """Return the next step, or None while there is nothing to run or too much in flight."""
        if len(self._in_flight) > self.budget.lookahead:
            return None
        builder = StepBuilder(self._last_step + 1)
        preempted = self._reserve(builder)
        prefilling: Request | None = None
        jump_forward: list[Request] = []
        drafting: list[Request] = []
        max_drafts = self.budget.max_drafts
        for request in self.running:
            if request.n_planned < request.prefill_end and not request.decoding:
                prefilling = request
            elif request.prefill_end - request.n_planned > 1:
                jump_forward.append(request)
            elif request.n_planned < request.limit:
                if max_drafts:
                    drafting.append(request)
                else:
                    self._schedule(request, 1, builder)
        n_decodes = len(builder.run) + len(jump_forward) + len(drafting)
        most = builder.left = self.budget.prefill_tokens(n_decodes)
        # Jump-forward rows leave half of it to the row that waits for a first token.
        held = builder.left // 2 if prefilling is not None else 0
        builder.left -= held
        for request in jump_forward:
            self._schedule_until(request, request.prefill_end, builder, free=1)
        builder.left += held
        # Jump-forward rows may have used up the budget.
        if prefilling is not None and builder.left > 0:
            self._schedule_until(prefilling, prefilling.prefill_end, builder)
        while (
            builder.left > 0
            and not preempted
            and (prefilling is None or prefilling.n_planned == prefilling.prefill_end)
        ):
            prefilling = self._admit(builder)
            if prefilling is None:
                break
        for request in drafting:
            end = min(request.n_planned + 1 + max_drafts, request.limit)
            self._schedule_until(request, end, builder, free=1)
        if not builder.run:
            return None
        self._last_step = builder.step
        self._in_flight.append(InFlight(builder.step, builder.scheduled_rows))
        step = Step(builder.step, self._release, builder.admit, builder.grow, builder.run)
        self._release = []
        return Plan(step, builder.admitted, most - builder.left, n_decodes)

    def _reserve(self, builder: StepBuilder) -> bool:
        """Keep blocks for one token of every running row in this step and in the next.

        Preempts the latest arrivals where there are too few; returns whether it did. The oldest is
        never preempted: what it can ever need was checked to fit when it was submitted.
        """
        preempted = False
        while True:
            needed = 0
            for request in self.running:
                assert request.table is not None
                end = request.n_planned + 2
                # Most rows lack no block, and this finds out without a call for each.
                if end > len(request.table.blocks) * self.budget.block_size:
                    needed += self._short(request, end)
            builder.spare = self.blocks.n_available - needed
            if builder.spare >= 0 or len(self.running) < 2:
                return preempted
            # Tables that wait to be closed are closed before the next step is planned.
            if builder.spare + sum(map(self.blocks.n_exclusive, self._closing)) >= 0:
                return preempted
            self._preempt(self.running[-1])
            preempted = True

    def _schedule_until(
        self, request: Request, end: int, builder: StepBuilder, free: int = 0
    ) -> None:
        """Schedule a row's positions before `end` as far as budget and blocks allow, at least one.

        `free` of them are not of the budget.
        """
        start = request.n_planned
        n = min(end - start, builder.left + free)
        needs_prompt_logprobs = request.needs_prompt_logprobs and not request.decoding
        if needs_prompt_logprobs:
            n = min(n, builder.prompt_logprobs_left)
        reserved = self._short(request, start + 2)
        # Where spare is negative, closing tables owe it, and not all of the reserved blocks are
        # free yet.
        room = max(0, reserved + builder.spare)
        if self._short(request, start + n + 1) > room:
            assert request.table is not None
            granted = len(request.table.blocks) + room
            n = max(1, min(n, granted * self.budget.block_size - 1 - start))
        builder.spare -= self._short(request, start + n + 1) - reserved
        builder.left -= n - free
        builder.prompt_logprobs_left -= n if needs_prompt_logprobs else 0
        self._schedule(request, n, builder)

    def _admit(self, builder: StepBuilder) -> Request | None:
        """Admit the head of the queue, if its row, its known tokens and its limit fit."""
        if not self._free_rows:
            return None
        request = self.waiting.head()
        if request is None or request.n_in_flight:
            return None
        if self._n_replays:
            if self.on_trial:
                return None
            self._trial, self._trial_length = request, len(request.tokens)
        if request.waits_for is not None and request.waits_for.owner is not None:
            return None
        committed = self._committed_tokens + request.n_prompt + request.max_new_tokens
        if self.running and committed > self.budget.overcommit * self.blocks.n_tokens:
            return None
        if request.lacking - self.blocks.n_shared > builder.spare:
            return None
        known = len(request.tokens)
        needs_prompt_logprobs = request.needs_prompt_logprobs
        if needs_prompt_logprobs and not builder.prompt_logprobs_left:
            return None
        keys = request.block_keys(self.budget.block_size)
        # The last known token is always computed, for its logits.
        match = self.blocks.match(
            [] if needs_prompt_logprobs else keys[: (known - 1) // self.budget.block_size]
        )
        request.waits_for = match.computing
        if match.computing is not None:
            return None
        taken = self.blocks.n_taken(match.hits)
        fresh = self._n_blocks(min(known + 1, request.limit)) - len(match.hits)
        if taken + fresh > builder.spare:
            # Matching a long prompt again costs more than a step, so wait until the result can have
            # changed.
            request.lacking = taken + fresh + self.blocks.n_shared
            return None

        self.waiting.remove(request)
        self._n_replays = max(0, self._n_replays - 1)
        request.status = Status.RUNNING
        request.lacking = 0
        request.row = self._free_rows.pop()
        request.table = table = self.blocks.open(match.hits, [] if needs_prompt_logprobs else keys)
        n_cached = request.n_planned = table.n_computed
        request.prefill_end = known
        request.decoding = False
        insort(self.running, request, key=lambda other: other.arrival)
        self._committed_tokens = committed
        self.n_hit_tokens += n_cached
        if not request.charged:
            request.charged = True
            request.n_cached = n_cached
            if request.reservation is not None:
                self.reservations.start(request.reservation)
            self.waiting.charge(request.client, INPUT_COST * (request.n_prompt - n_cached))
        builder.spare -= taken + self._short(request, n_cached + 2)
        n_grown = len(builder.grow)
        self._schedule_until(request, known, builder)
        del builder.grow[n_grown:]
        builder.admitted.append(request)
        builder.admit.append(
            Admit(
                row=request.row,
                tokens=list(request.tokens),
                n_prompt=request.n_prompt,
                n_cached=n_cached,
                blocks=list(table.blocks),
                sampling=request.sampling,
                prompt_logprobs=needs_prompt_logprobs,
                prompt_top_n_tokens=request.prompt_top_n_tokens if needs_prompt_logprobs else 0,
                constraint=Constraint(request.grammar, request.max_new_tokens)
                if request.grammar
                else None,
            )
        )
        return request

    def _schedule(self, request: Request, n: int, builder: StepBuilder) -> None:
        """Put `n` positions of a running request into the step, and grant the blocks they need.

        Those beyond its known tokens are for drafts.
        """
        table = request.table
        assert table is not None
        end = request.n_planned + n
        if end > len(table.blocks) * self.budget.block_size:
            short = self._n_blocks(end) - len(table.blocks)
            builder.grow.append(Grow(request.row, self.blocks.grow(table, short)))
        n_drafts = max(0, n - max(1, request.prefill_end - request.n_planned)) if n > 1 else 0
        samples = end >= request.prefill_end
        request.n_planned = end
        request.n_in_flight += samples
        request.decoding = request.decoding or samples
        table.last_step = builder.step
        builder.run.append(Run(request.row, n))
        builder.scheduled_rows.append(
            ScheduledRow(request, table, request.row, n, n_drafts, samples)
        )

    # -- results --------------------------------------------------------------------------------

    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        request, table = scheduled.request, scheduled.table
        reason: FinishReason | None = None
        if scheduled.samples:
            request.n_in_flight -= 1
            found = sampled[scheduled.row]
            several = found.tokens[1:]
            if several or scheduled.n_drafts:
                # Also for a request that has ended: the worker runs what it was sent.
                self._settle(scheduled, found)
            if request.status is not Status.ENDED:
                logprobs, tops = found.logprobs, found.top
                index = -1  # counted by hand, as this runs for every token and calls are expensive
                for token in found.tokens:
                    index += 1
                    request.tokens.append(token)
                    self.waiting.charge(request.client, OUTPUT_COST)
                    spent = len(request.tokens) > request.limit  # the last token is never computed
                    if token in request.stop_ids and (not spent or request.grammar):
                        reason = "eos_token"  # a text that a grammar ended in time is complete
                    elif spent:
                        reason = "length"
                    logprob = logprobs[index] if logprobs else None
                    top = tops[index] if tops and index < len(tops) else []
                    events.append(TokenEvent(request, token, logprob, top, reason))
                    if reason is not None:
                        break
                if several:
                    request.prefill_end = len(request.tokens)
        end = table.n_computed = table.n_computed + scheduled.n
        if end // self.budget.block_size > table.n_committed and not table.failed:
            # Accepted drafts are known by now; what comes behind the end of a text never is.
            self.blocks.commit(table, request.block_keys(self.budget.block_size))
        if reason is not None:
            self.finish(request)

    def _settle(self, scheduled: ScheduledRow, found: Sampled) -> None:
        """Count of a row's drafts those that were accepted, and let the steps in flight begin with
        the tokens that are known now and not computed yet."""
        request = scheduled.request
        self._take_back(scheduled, scheduled.n_drafts - found.n_computed)
        known = len(found.tokens) - found.n_computed
        if known == 1:
            return
        for step in self._in_flight:
            for later in step.scheduled_rows:
                if later.request is not request or not later.samples:
                    continue
                later.n_drafts = max(0, later.n - known)
                if later.n >= known:
                    return
                known -= later.n
                later.samples = False
                request.n_in_flight -= 1

    def _postpone(self, scheduled: ScheduledRow) -> None:
        """Have a row whose mask was not ready compute its last token again, in a later step."""
        request = scheduled.request
        if request is self._trial:
            # The workers survived it, and the others need not wait for its mask.
            self._trial = None
        self._take_back(scheduled, 1 + scheduled.n_drafts)
        scheduled.samples = False  # so there is nothing to take below
        request.n_in_flight -= 1
        self._acknowledge(scheduled, {}, [])

    def _take_back(self, scheduled: ScheduledRow, n: int) -> None:
        """Have the last `n` positions of a row not count as computed."""
        scheduled.n -= n
        if scheduled.request.table is scheduled.table:
            scheduled.request.n_planned -= n

    def _add_prompt_logprobs(
        self, request: Request, found: PromptLogprobs, events: list[Event]
    ) -> None:
        """Report the new ones: a preempted prefill is computed again, also those reported
        before."""
        n_known = max(0, request.n_prompt_logprobs - found.start)
        if request.status is not Status.ENDED and n_known < len(found.logprobs):
            request.n_prompt_logprobs = found.start + len(found.logprobs)
            start = found.start + n_known
            events.append(
                PromptEvent(
                    request,
                    start,
                    found.logprobs[n_known:],
                    found.top[n_known:],
                    found.ranks[n_known:],
                )
            )

    def _fail(self, scheduled: ScheduledRow, message: str, events: list[Event]) -> None:
        request = scheduled.request
        request.n_in_flight -= scheduled.samples
        scheduled.table.failed = True
        if request.status is not Status.ENDED:
            events.append(FailedEvent(request, message))
            self.finish(request)

    # -- rows and tables ------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        """Free a request's blocks; it will be computed again from its known tokens."""
        self.n_preemptions += 1
        self._leave(request)
        request.status = Status.WAITING
        request.row = -1
        request.n_planned = 0
        self.waiting.put_back(request)

    def _leave(self, request: Request) -> None:
        """Take a request out of the running batch."""
        table = request.table
        assert table is not None
        self.running.remove(request)
        self._release.append(request.row)
        self._free_rows.append(request.row)
        self._committed_tokens -= request.n_prompt + request.max_new_tokens
        request.table = None
        if table.last_step > self._acknowledged:
            self._closing.append(table)
        else:
            self.blocks.close(table)

    def _close_tables(self) -> None:
        """Close the tables whose last steps have been acknowledged."""
        still = []
        for table in self._closing:
            if table.last_step > self._acknowledged:
                still.append(table)
            else:
                self.blocks.close(table)
        self._closing = still

    def _n_blocks(self, n_tokens: int) -> int:
        return -(-n_tokens // self.budget.block_size)

    def _short(self, request: Request, end: int) -> int:
        """Return how many blocks a row lacks to compute its positions before `end`, or all it ever
        will."""
        assert request.table is not None
        needed = self._n_blocks(min(end, request.limit))
        return max(0, needed - len(request.table.blocks))
