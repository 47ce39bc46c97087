"""Which rows run in the next step, and how many tokens each computes.

A step is `{row: n tokens}`; prefill, chunk and decode differ only in their counts. Each plan first
gives every decoding row its token, then spends the prefill budget on decoding rows that have more
than one (a grammar forced some), on the row that is in mid-prefill, and on new admissions. At most
one row is left in mid-prefill. Where workers verify drafts, these get what is left then. Positions
that attend in both directions (`Request.spans`) are computed in one step, which may go beyond the
budget for one of them.

**One step ahead.** Up to `lookahead` steps are planned before the results of the ones before have
come back. A sampled token that is still in flight counts as one token of unknown value. With
drafts, a row's count is an upper bound: blocks are granted as if all were accepted, and those for
rejected ones stay the row's. A row that comes to its limit if all are accepted waits for the
result.

**No stall.** Each plan leaves enough blocks available for every decoding row to go on for one more
step; where it cannot, it preempts the latest arrivals now, so that their blocks are back in time.

**No thrashing.** Whoever is admitted leaves each running row a block to grow into, and a request
that was preempted returns when there are blocks for all that it can still become. Room that is kept
for these is not idle; where nothing runs, nothing is kept.
"""

from __future__ import annotations

from bisect import insort

from tgi_async.scheduler.batch import RunningBatch
from tgi_async.scheduler.fairness import INPUT_COST, WaitingQueue
from tgi_async.scheduler.plan import Budget, Plan, ScheduledRow, StepBuilder
from tgi_async.scheduler.request import Request, Status
from tgi_async.scheduler.reservations import Reservations
from tgi_async.scheduler.results import InFlight
from tgi_async.scheduler.suspects import Suspects
from tgi_async.wire.messages import Admit, Constraint, Grow, Run, Step


class Planner(RunningBatch):
    """Plans steps: of the rows that run, and of what is admitted from the waiting queue."""

    def __init__(self, budget: Budget) -> None:
        if budget.lookahead not in (0, 1):
            raise ValueError(f"lookahead is 0 or 1, got {budget.lookahead}")
        if min(budget.max_rows, budget.max_batch_prefill_tokens) < 1:
            raise ValueError(f"a step needs at least one row and one prefill token, got {budget}")
        super().__init__(budget)
        self.reservations = Reservations(budget.capacity)
        self.waiting = WaitingQueue()
        self.n_preemptions = 0
        self.n_hit_tokens = 0
        self._replays: set[Request] = set()
        """Those that wait again since the workers died: until all run, admissions are made one by
        one."""
        self._trial: Request | None = None
        self._trial_length = 0
        self._admitting: Request | None = None
        """The head of the queue while it is looked at: if that raises, it is of this request."""
        self._suspects = Suspects()

    @property
    def suspect(self) -> Request | None:
        """The request that was admitted last, one by one, and has got no token since, or the one
        whose admission raised."""
        if self._admitting is not None:
            return self._admitting
        trial = self._trial
        if trial is None or len(trial.tokens) != self._trial_length:
            return None
        return trial

    @property
    def on_trial(self) -> bool:
        """Whether admissions wait until the suspect has got a token."""
        suspect = self.suspect
        return suspect is not None and suspect.status is Status.RUNNING

    def plan(self) -> Plan | None:
        """Return the next step, or None while there is nothing to run or too much in flight."""
        if len(self._in_flight) > self.budget.lookahead:
            return None
        if self._suspects.trying:
            self._release_held()
        builder = StepBuilder(self._last_step + 1, self.budget.max_logits)
        preempted = self._reserve(builder)
        prefilling: Request | None = None
        jump_forward: list[Request] = []
        drafting: list[Request] = []
        max_drafts = self.budget.max_drafts
        for request in self.running:
            if request.n_planned < request.prefill_end:
                if not request.decoding:
                    prefilling = request
                elif request.prefill_end - request.n_planned > 1:
                    jump_forward.append(request)
                else:
                    self._schedule(request, 1, builder)
            elif request.n_planned < request.limit:
                if max_drafts and not (request.prompt_logprobs and request.needs_prompt_logprobs):
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
            self._admitting = None
            if prefilling is None:
                break
        if drafting:
            # Beside no prompt there are no decodes to hold up.
            alone = builder.left == most
            left = self.budget.max_batch_prefill_tokens if alone else max(0, builder.left)
            self._schedule_drafting(drafting, left, builder)
        if not builder.run:
            return None
        self._last_step = builder.step
        self._in_flight.append(InFlight(builder.step, builder.scheduled_rows))
        step = Step(builder.step, self._release, builder.admit, builder.grow, builder.run)
        self._release = []
        return Plan(step, builder.admitted, most - builder.left, n_decodes)

    def _release_held(self) -> None:
        """Queue those again that were held for a trial that is over."""
        idle = not self.running and self.waiting.head() is None
        for request in reversed(self._suspects.released(idle=idle)):
            if request.status is Status.WAITING:
                self.waiting.release(request)
                self._replays.add(request)

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
        """Schedule a row's known tokens before `end`, as far as budget and blocks allow.

        `free` of them are not of the budget.
        """
        start = request.n_planned
        n = min(end - start, builder.left + free)
        needs_prompt_logprobs = request.needs_prompt_logprobs and not request.decoding
        if needs_prompt_logprobs:
            n = min(n, builder.logits_left)
        if request.spans and not request.decoding:
            n = request.whole(start + n) - start
        n = self._fit(request, n, builder)
        builder.left -= n - free
        builder.logits_left -= n if needs_prompt_logprobs else 0
        self._schedule(request, n, builder)

    def _schedule_drafting(self, requests: list[Request], most: int, builder: StepBuilder) -> None:
        """Schedule decoding rows with drafts, `most` of them in all, each row with as many as the
        others as far as blocks allow."""
        n_each, n_more = divmod(min(most, builder.logits_left), len(requests))
        if n_each >= self.budget.max_drafts:
            n_each, n_more = self.budget.max_drafts, 0
        block_size = self.budget.block_size
        for request in requests:
            n = 1 + n_each
            if n_more:
                n_more -= 1
                n += 1
            start = request.n_planned
            if start + n > request.limit:
                n = request.limit - start
            table = request.table
            assert table is not None
            # Most rows lack no block, and this finds out without a call for each.
            if start + n >= len(table.blocks) * block_size:
                n = self._fit(request, n, builder)
            self._schedule(request, n, builder, n - 1)

    def _fit(self, request: Request, n: int, builder: StepBuilder) -> int:
        """Set blocks aside for a row's next `n` positions, and for one in the step after it.

        Return how many of the `n` there are blocks for, at least one.
        """
        start = request.n_planned
        reserved = self._short(request, start + 2)
        # Where spare is negative, closing tables owe it, and not all of the reserved blocks are
        # free yet.
        room = max(0, reserved + builder.spare)
        if self._short(request, start + n + 1) > room:
            assert request.table is not None
            granted = len(request.table.blocks) + room
            n = max(1, min(n, granted * self.budget.block_size - 1 - start))
        builder.spare -= self._short(request, start + n + 1) - reserved
        return n

    def _admit(self, builder: StepBuilder) -> Request | None:
        """Admit the head of the queue, if its row, its known tokens and its limit fit."""
        if not self._free_rows:
            return None
        request = self.waiting.head()
        accused = self._suspects.accused
        if accused is not None and not self.running and accused.status is Status.WAITING:
            request = accused
        if request is None or request.n_in_flight:
            return None
        if self.on_trial:
            return None
        if self._replays:
            self._trial, self._trial_length = request, len(request.tokens)
        self._admitting = request
        if request.waits_for is not None and request.waits_for.owner is not None:
            return None
        committed = self._committed_tokens + request.n_prompt + request.max_new_tokens
        if self.running and committed > self.budget.overcommit * self.blocks.n_tokens:
            return None
        lacking = request.lacking - self.blocks.n_shared
        if lacking > builder.spare:
            return None
        room = builder.spare - self._growth(builder.step)
        if lacking > room:
            return None
        known = len(request.tokens)
        needs_prompt_logprobs = request.needs_prompt_logprobs
        if needs_prompt_logprobs and builder.logits_left < request.least_chunk:
            return None
        block_size = self.budget.block_size
        keys = request.block_keys(block_size)
        # The last known token is always computed, for its logits.
        n_matched = 0 if needs_prompt_logprobs else request.outside(known - 1) // block_size
        match = self.blocks.match(keys[:n_matched])
        request.waits_for = match.computing
        if match.computing is not None:
            return None
        hits = match.hits[: request.hit_end(len(match.hits) * block_size, block_size) // block_size]
        taken = self.blocks.n_taken(hits)
        fresh = self._n_blocks(min(known + 1, request.limit)) - len(hits)
        needed = fresh
        if request.preempted:
            needed = self._n_blocks(request.limit) - len(hits)
        if taken + needed > room:
            # Matching a long prompt again costs more than a step, so wait until the result can have
            # changed. Hits within a span may all count at once.
            n_cut = len(match.hits) - len(hits)
            request.lacking = taken + needed - n_cut + self.blocks.n_shared
            return None

        self.waiting.remove(request)
        self._replays.discard(request)
        request.status = Status.RUNNING
        request.lacking = 0
        request.row = self._free_rows.pop()
        request.table = table = self.blocks.open(hits, [] if needs_prompt_logprobs else keys)
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
            self.waiting.charge(
                request.client, INPUT_COST * request.price * (request.n_prompt - n_cached)
            )
        builder.spare -= taken
        if request.spans:
            # None of them is to wait, half computed, for a block.
            self.blocks.grow(table, fresh)
            builder.spare -= fresh
        builder.spare -= self._short(request, n_cached + 2)
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
                tenant=request.tenant,
                images=list(request.images),
                spans=list(request.spans),
            )
        )
        return request

    def _growth(self, step: int) -> int:
        """Return how many blocks the running rows are left to grow into, beyond those that they
        have, and need for this step and the next."""
        n = 0
        for request in self.running:
            table = request.table
            assert table is not None
            # Rows with drafts come last.
            end = request.n_planned + (1 if table.last_step == step else 2)
            n += self._n_blocks(request.limit) > max(len(table.blocks), self._n_blocks(end))
        return n

    def _schedule(self, request: Request, n: int, builder: StepBuilder, n_drafts: int = 0) -> None:
        """Put `n` positions of a running request into the step, the last of them for drafts, and
        grant the blocks they need."""
        table = request.table
        assert table is not None
        end = request.n_planned + n
        if end > len(table.blocks) * self.budget.block_size:
            short = self._n_blocks(end) - len(table.blocks)
            builder.grow.append(Grow(request.row, self.blocks.grow(table, short)))
        samples = end >= request.prefill_end
        request.n_planned = end
        request.n_in_flight += samples
        request.decoding = request.decoding or samples
        table.last_step = builder.step
        builder.run.append(Run(request.row, n))
        builder.scheduled_rows.append(
            ScheduledRow(request, table, request.row, n, n_drafts, samples)
        )

    def _preempt(self, request: Request) -> None:
        """Free a request's blocks; it will be computed again from its known tokens."""
        self.n_preemptions += 1
        self._leave(request)
        request.status = Status.WAITING
        request.preempted = True
        request.row = -1
        request.n_planned = 0
        self.waiting.put_back(request)
