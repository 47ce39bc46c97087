"""A core, a model worker, and every invariant checked after every event.

The state machines, the random walks and the planted bugs all drive a core through this class, so
that they share the same checks. A `Violation` names the invariant that broke:

P1 to P6: paged blocks. S1 to S10: batching, of which two are ours: S9, drafts are shared out
evenly; S10, what attends in both directions is computed at once. E1, E2, E5: fairness. A1 to A5:
admission. They are described where they are checked, in `invariants`, `ledger`, `bookings`, `model`
and here.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from property_tests.bookings import Booking, Bookings
from property_tests.case import Case, Row, Sent
from property_tests.invariants import (
    check_batch,
    check_places,
    check_tables,
    check_tree,
    check_work_conserved,
)
from property_tests.ledger import Ledger
from property_tests.model import (
    EOS,
    History,
    ModelWorker,
    Outcome,
    Slot,
    has_stop_sequence,
    prompt_logprob,
    prompt_top,
    require,
)
from tgi_async.errors import Overloaded, ValidationError
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.fairness import OUTPUT_COST
from tgi_async.scheduler.plan import Budget, Plan
from tgi_async.scheduler.request import (
    FailedEvent,
    FinishReason,
    PromptEvent,
    Request,
    Status,
    TokenEvent,
)
from tgi_async.wire.messages import Admit, Span, Step

WEIGHTS = {"bob": 2, "eve": 5}
"""Of clients; 1 of others."""


def largest_difference(budget: Budget) -> float:
    """U, as `tgi_async.scheduler.fairness` derives it."""
    pool = budget.pools[0].n_blocks * budget.block_size
    admitted = max(budget.overcommit * pool, pool + 1)
    return OUTPUT_COST * (admitted + budget.max_rows * (1 + budget.max_drafts))


class CheckedCore:
    """Drives a core; each method is an event. Raises `Violation` where an invariant breaks."""

    def __init__(self, budget: Budget, core_type: type[Core] = Core) -> None:
        self.budget = budget
        self.core = core_type(budget)
        self.worker = ModelWorker(budget.block_size, budget.max_drafts)
        self.ledger = Ledger(largest_difference(budget))
        self.bookings = Bookings(budget.capacity)
        self.booked: list[Booking] = []
        """Those for which nothing was submitted yet."""
        self.live: dict[int, Case] = {}
        self.sent: deque[Sent] = deque()
        self.rows: dict[int, Row] = {}
        self.acknowledged: dict[Slot, History] = {}
        """The worker's memory as far as its replies prove it."""
        self.lawful: set[History] = set()
        """Every prefix that is made of prompt tokens and emitted tokens only."""
        self.reached: Counter[str] = Counter()
        self._n_submitted = 0

    # -- events ---------------------------------------------------------------------------------

    def book(self, client: str, n_rows: int, n_bytes: int) -> Booking | None:
        """Reserve rows, as a request does that is still to be tokenized. None: refused."""
        never = n_rows > self.budget.capacity.max_rows
        try:
            reservation, evicted, _ = self.core.reserve(client, n_rows, n_bytes)
        except ValidationError:
            require(never, "A4", f"{n_rows} rows could be had")
            self.reached["more rows than there are"] += 1
            return None
        except Overloaded:
            self.reached[self.bookings.refuse(client, n_rows, n_bytes)] += 1
            self.check()
            return None
        require(not never, "A1", f"there are no {n_rows} rows")
        booking = Booking(reservation, client, n_rows, n_bytes)
        self._end_evicted(self.bookings.add(booking, evicted))
        self.booked.append(booking)
        self.check()
        return booking

    def _end_evicted(self, evicted: list[Booking]) -> None:
        for gone in evicted:
            self.reached["evicted"] += bool(gone.requests)
            if gone in self.booked:
                self.reached["evicted before it was submitted"] += 1
                self.booked.remove(gone)
                # Its client does not know yet.
                require(not self._submit(gone, [EOS], 1), "A3", "what was evicted is taken in")
            for number in list(gone.requests):
                case = self.live[number]
                require(
                    case.request.status is Status.ENDED, "A3", f"{number} was evicted and lives"
                )
                self._end(case)
            # Its client gets the error, and leaves.
            self.core.reservations.release(gone.reservation)

    def give_up(self, booking: Booking) -> None:
        """The client leaves, or its request was found wrong, before anything was submitted."""
        self.booked.remove(booking)
        self.bookings.release(booking)
        self.core.reservations.release(booking.reservation)
        self.check()

    def submit(
        self, client: str, prompt: list[int], max_new_tokens: int, n_rows: int = 1, **options: Any
    ) -> None:
        """A request comes and is submitted at once."""
        booking = self.book(client, n_rows, len(prompt))
        if booking is not None:
            self.submit_booked(booking, prompt, max_new_tokens, **options)

    def submit_booked(
        self, booking: Booking, prompt: list[int], max_new_tokens: int, **options: Any
    ) -> None:
        """What was booked is submitted, a request for each row."""
        n_rows = booking.n_rows
        self.reached["several rows"] += n_rows > 1
        for _ in range(n_rows):
            if not self._submit(booking, prompt, max_new_tokens, **options):
                break
        if booking.requests:
            self.booked.remove(booking)
        else:
            self.give_up(booking)

    def _submit(
        self,
        booking: Booking,
        prompt: list[int],
        max_new_tokens: int,
        *,
        stop_ids: frozenset[int] = frozenset(),
        prompt_logprobs: bool = False,
        prompt_top_n_tokens: int = 0,
        grammar: str = "",
        stops: bool = False,
        spans: tuple[Span, ...] = (),
    ) -> bool:
        self._n_submitted += 1
        request = Request(
            self._n_submitted,
            prompt,
            max_new_tokens,
            client=booking.client,
            weight=WEIGHTS.get(booking.client, 1),
            stop_ids=stop_ids,
            prompt_logprobs=prompt_logprobs,
            prompt_top_n_tokens=prompt_top_n_tokens,
            grammar=grammar,
            spans=spans,
            reservation=booking.reservation,
        )
        limit = len(prompt) + max_new_tokens
        pool = self.core.blocks.n_tokens
        longest = max((span.end - span.start for span in spans), default=0)
        scored_at_once = prompt_logprobs and longest > self.budget.max_logits
        fits = (
            bool(prompt)
            and max_new_tokens >= 1
            and limit <= self.budget.max_total_tokens
            and limit - 1 <= pool
            and not scored_at_once
        )
        try:
            if not booking.reservation.evicted:
                reservations, _ = self.core.weigh(booking.reservation, len(prompt))
                self._end_evicted(self.bookings.weigh(booking, len(prompt), reservations))
                self.reached["evicted for tokens"] += len(reservations)
        except Overloaded:
            self.bookings.too_heavy(booking, len(prompt))
            self.reached["too many tokens"] += 1
            return False
        try:
            self.core.submit(request)
        except Overloaded:
            require(booking.reservation.evicted, "A4", "a request with a row is refused")
            return False
        except ValidationError as error:
            require(not fits, "S5", f"{limit} tokens fit, but: {error}")
            named = "one token" if not prompt or max_new_tokens < 1 else "max_new_tokens"
            named = "log-prob" if "log-prob" in str(error) and scored_at_once else named
            require(named in str(error), "S5", f"the limit is not named: {error}")
            self.reached["rejection"] += 1
            return False
        else:
            require(fits, "S5", f"{limit} tokens can never fit")
            case = self.live[request.id] = Case(request, booking, stops=stops)
            booking.requests.append(request.id)
            self.ledger.submit(request)
            for end in range(len(prompt) + 1):
                self.lawful.add(tuple(prompt[:end]))
            self.reached["prompt log-probabilities"] += prompt_logprobs
            self.reached["span"] += bool(spans)
            self.reached["submission"] += 1
            require(case.request.status is Status.WAITING, "S4", "not waiting")
        self.check()
        return True

    def plan(self) -> bool:
        """True if a step was planned."""
        before = list(self.core.running)
        cached = set(self.core.blocks._cached)
        may_plan = len(self.sent) <= self.budget.lookahead
        held = self.core.waiting.held
        plan = self.core.plan()
        released = [one for one in held if one not in self.core.waiting.held]
        for request in sorted(released, key=lambda one: -one.arrival):
            self.reached["released"] += 1
            self.ledger.release(request)
        preempted = [one for one in reversed(before) if one.status is Status.WAITING]
        for request in preempted:
            require(request is not before[0], "S4", "the oldest running request was preempted")
            self.ledger.put_back(request)
            self.live[request.id].preempted = True
        self.reached["preemption"] += len(preempted)
        left, logits_left = self.budget.prefill_tokens(0), self.budget.max_logits
        if plan is None:
            self._check_idle()
        else:
            left, logits_left = self._check_step(plan, cached)
            self._check_stays(plan)
        self._check_waiting(left if may_plan and not preempted else 0, logits_left)
        self.check()
        return plan is not None

    def complete(
        self, failing: frozenset[int] = frozenset(), not_ready: frozenset[int] = frozenset()
    ) -> bool:
        """The oldest step in flight comes back. These of its rows failed, the grammars of those
        had no masks yet. False without one."""
        if not self.sent:
            return False
        sent = self.sent.popleft()
        failing &= frozenset(sent.cases)
        outcome = self.worker.execute(sent.step, failing, not_ready)
        self.reached["mask not ready"] += len(outcome.done.masks_not_ready)
        for run in sent.step.run:
            row = self.rows.get(run.row)
            if row is not None and row.case is sent.cases[run.row]:
                before = row.n_planned
                row.n_planned -= run.n - outcome.n_computed[run.row]
                self.reached["wait at the limit"] += row.n_planned < row.limit <= before
        for case in sent.cases.values():
            case.n_in_flight -= 1
        for write in outcome.writes:
            if write.row in failing:
                self.acknowledged.pop(write.slot, None)
            else:
                self.acknowledged[write.slot] = write.history
        self._check_events(sent, outcome, failing)
        self.check()
        return True

    def finish(self, case: Case) -> None:
        """The client left, or a stop sequence appeared."""
        request = case.request
        self.reached["abort in flight"] += case.n_in_flight > 0
        self.reached["abort while waiting"] += request.status is Status.WAITING
        self.core.finish(request)
        self._end(case)
        self.core.finish(request)
        require(request.status is Status.ENDED, "S7", f"{request.id} goes on")
        self.check()

    def die(self) -> None:
        """The worker dies, with all its memory and all that was in flight."""
        held = self.core.waiting.held
        running = sorted((*self.core.running, *held), key=lambda one: one.arrival)
        self.reached["death"] += 1
        self.reached["replay"] += sum(bool(one.n_emitted) for one in running)
        self.reached["death with a step in flight"] += bool(self.sent)
        live = [case.request for case in self.live.values()]
        culprit = self.core.died(live)
        for request in held:
            self.ledger.held.remove(request)
        for request in reversed(running):
            self.ledger.put_back(request)
        for request in self.core.waiting.held:
            self.reached["held after a death"] += 1
            self.ledger.hold(request)
        self.worker = ModelWorker(self.budget.block_size, self.budget.max_drafts)
        self.sent.clear()
        self.rows.clear()
        self.acknowledged.clear()
        for case in self.live.values():
            case.n_in_flight = 0
            case.preempted = False
        if culprit is not None:
            self.reached["culprit of deaths"] += 1
            self.core.finish(culprit)
            self._end(self.live[culprit.id])
        self.check()

    def drain(self) -> None:
        """Without new requests, every live one ends in finitely many steps, and all comes back."""
        for booking in list(self.booked):
            self.give_up(booking)
        left = sum(one.request.limit + 2 for one in self.live.values())
        for _ in range(10 + left * (len(self.live) + 2)):
            while self.plan():
                pass
            if not self.complete():
                break
        require(not self.live, "S4", f"{len(self.live)} requests never end")
        require(not self.core.running and not self.core.waiting, "S4", "something is left")
        require(not self.bookings.held, "A5", "rows are still held")
        self.check()
        blocks = self.core.blocks
        require(blocks.n_used == 0, "P6", f"{blocks.n_used} blocks are still used")
        for block in range(blocks.n_blocks):
            require(blocks.references(block) == 0, "P6", f"block {block} is still referenced")

    # -- checks of one event --------------------------------------------------------------------

    def _check_idle(self) -> None:
        if not self.sent:
            require(not self.live, "S3", "nothing runs, though something waits or runs")
        if len(self.sent) <= self.budget.lookahead:
            for row in self.rows.values():
                going = row.case.request.status is Status.RUNNING
                require(not going or row.n_planned >= row.limit, "S2", "a row was stalled")

    def _check_stays(self, plan: Plan) -> None:
        """S11: what was preempted has returned to stay. Drafts may take of what was left for it."""
        if not plan.admitted or self.budget.max_drafts or len(self.core.running) < 2:
            return
        request = plan.admitted[-1]
        if self.live[request.id].preempted:
            assert request.table is not None
            lacking = -(-request.limit // self.budget.block_size) - len(request.table.blocks)
            available = self.core.blocks.n_available
            require(lacking <= available, "S11", f"{request.id} returned, and lacks {lacking}")

    def _check_waiting(self, n_prefill_left: int, n_logits_left: int) -> None:
        head = self.core.waiting.head()
        if head is not None and head.waits_for is not None and head.waits_for.owner is not None:
            self.reached["wait for a computing prefix"] += 1
        check_work_conserved(self.core, n_prefill_left, n_logits_left)

    def _check_step(self, plan: Plan, cached: set[int]) -> tuple[int, int]:
        """Returns how many prefill tokens and logits were left for drafts."""
        step = plan.step
        require(len(self.sent) <= self.budget.lookahead, "S1", "too many steps in flight")
        for number in step.release:
            require(number in self.rows, "S8", f"row {number} is released but not there")
            del self.rows[number]
        going_on = set(self.rows)
        granted: list[int] = []
        require(len(step.admit) == len(plan.admitted), "S4", "admissions and rows differ")
        for admit, request in zip(step.admit, plan.admitted, strict=True):
            granted += self._check_admission(admit, request)
        for grow in step.grow:
            require(grow.row in self.rows, "S8", f"row {grow.row} grows but is not there")
            self.rows[grow.row].blocks += grow.blocks
            granted += grow.blocks
        for block in granted:
            touched = any(block in sent.blocks for sent in self.sent)
            require(not touched, "P6", f"block {block} is granted, a step in flight touches it")
        self.reached["eviction"] += sum(block in cached for block in granted)
        n_prefill, n_decodes, n_scored = self._check_runs(step, going_on)
        require(plan.n_prefill_tokens == n_prefill, "S1", "prefill tokens are miscounted")
        require(plan.n_decodes == n_decodes, "S1", "decodes are miscounted")
        require(len(self.rows) <= self.budget.max_rows, "S1", f"{len(self.rows)} rows")
        self.reached["prefill beside decodes"] += bool(n_prefill and n_decodes)
        cases = {run.row: self.rows[run.row].case for run in step.run}
        for case in cases.values():
            case.n_in_flight += 1
        blocks = {block for run in step.run for block in self.rows[run.row].blocks}
        self.sent.append(Sent(step, cases, blocks))
        left = max(0, self.budget.prefill_tokens(n_decodes) - n_prefill)
        return left, self.budget.max_logits - n_scored

    def _check_admission(self, admit: Admit, request: Request) -> list[int]:
        """Returns the blocks that are not hits."""
        case = self.live.get(request.id)
        require(case is not None, "S8", f"{request.id} is admitted after its end")
        assert case is not None
        require(admit.row not in self.rows, "S1", f"row {admit.row} is taken")
        require(admit.tokens == case.known, "S6", f"admitted with {admit.tokens}")
        require(admit.n_prompt == len(case.prompt), "S6", "n_prompt")
        require(admit.n_cached < len(admit.tokens), "P3", "a hit covers the whole prompt")
        needed = case.request.prompt_logprobs and not case.emitted
        require(admit.prompt_logprobs == needed, "S6", "prompt log-probabilities")
        require(not (needed and admit.n_cached), "S6", "a hit hides prompt log-probabilities")
        for position in range(admit.n_cached):
            index, offset = divmod(position, self.budget.block_size)
            seen = self.acknowledged.get((admit.blocks[index], offset))
            due = tuple(admit.tokens[: position + 1])
            require(seen == due, "P5", f"the hit at {position} is {seen}, not {due}")
        first, case.admitted = not case.admitted, True
        if first:
            self.bookings.start(case.booking)
        accused = request is self.core._suspects.accused
        n_charged = len(case.prompt) - admit.n_cached if first else 0
        self.ledger.admit(request, n_charged, accused=accused)
        self.reached["accused"] += accused
        self.reached["prefix hit"] += admit.n_cached > 0
        self.reached["hit before a span"] += any(0 < admit.n_cached <= s.start for s in admit.spans)
        self.reached["hit behind a span"] += any(admit.n_cached >= s.end for s in admit.spans)
        self.reached["hit of generated tokens"] += admit.n_cached > admit.n_prompt
        self.reached["readmission"] += not first
        self.rows[admit.row] = Row(case, admit)
        return admit.blocks[admit.n_cached // self.budget.block_size :]

    def _check_runs(self, step: Step, going_on: set[int]) -> tuple[int, int, int]:
        """Returns how many prefill tokens and decodes there are, and for how many of the former the
        log-probabilities are computed."""
        n_prefill = n_decodes = n_scored = 0
        ran: set[int] = set()
        excess = 0
        drafts: dict[int, int] = {}
        for run in step.run:
            require(run.row in self.rows, "S8", f"row {run.row} runs but is not there")
            require(run.row not in ran, "S1", f"row {run.row} runs twice")
            ran.add(run.row)
            row = self.rows[run.row]
            require(not row.case.ended, "S8", f"{row.case.request.id} runs after its end")
            unscored = row.case.request.prompt_logprobs and not row.case.emitted
            if row.n_planned >= row.prefill_end:
                n_decodes += 1
                if not unscored:
                    drafts[run.row] = run.n - 1
                require(not unscored or run.n == 1, "S6", "drafts before the prompt is scored")
                most = 1 + self.budget.max_drafts
                require(run.n <= most, "S2", f"a decode of {run.n} tokens")
                behind = any(run.row in sent.cases for sent in self.sent)
                self.reached["drafts behind a step in flight"] += run.n > 1 and behind
            elif row.decoding:
                n_decodes += 1
                n_prefill += run.n - 1
                require(row.n_planned + run.n <= row.prefill_end, "S1", "a jump is too long")
                self.reached["jump"] += run.n > 1
            else:
                n_prefill += run.n
                n_scored += run.n if unscored else 0
                require(row.n_planned + run.n <= row.prefill_end, "S1", "a chunk is too long")
            row.n_planned += run.n
            excess = max(excess, row.excess(run.n))
            row.decoding = row.decoding or row.n_planned >= row.prefill_end
            require(row.n_planned <= row.limit, "S8", "a token beyond the request's end")
            row.most_planned = max(row.most_planned, row.n_planned)
            needed = -(-max(row.most_planned, row.granted) // self.budget.block_size)
            require(len(row.blocks) == needed, "P4", f"{len(row.blocks)} blocks, not {needed}")
        most = self.budget.prefill_tokens(n_decodes)
        require(
            n_prefill <= most + excess,
            "S1",
            f"{n_prefill} prefill tokens beside {n_decodes} decodes",
        )
        self.reached["a span beyond the budget"] += n_prefill > most
        for number in going_on - ran:
            row = self.rows[number]
            crowded_out = not row.decoding and n_prefill >= most
            require(row.n_planned >= row.limit or crowded_out, "S2", f"row {number} is stalled")
        self._check_drafts(drafts, n_prefill, most, n_scored)
        return n_prefill, n_decodes, n_scored

    def _check_drafts(
        self, drafts: dict[int, int], n_prefill: int, most: int, n_scored: int
    ) -> None:
        """`drafts` of the rows that may have some, which are planned already."""
        n, budget = sum(drafts.values()), self.budget
        most_drafts = max(0, most - n_prefill) if n_prefill else budget.max_batch_prefill_tokens
        require(n <= most_drafts, "S1", f"{n} drafts beside {n_prefill} prefill tokens")
        require(
            n + n_scored <= budget.max_logits, "S1", f"logits of {n} drafts and {n_scored} more"
        )
        self.reached["drafts beside a prefill"] += bool(n and n_prefill)
        self.reached["drafts beside a scored prompt"] += bool(n and n_scored)
        self.reached["drafts are short"] += 0 < n < budget.max_drafts * len(drafts)
        highest = max(drafts.values(), default=0)
        for number, own in drafts.items():
            row = self.rows[number]
            # One more would need a block for itself, or for the step behind it.
            blocked = row.n_planned + 2 > len(row.blocks) * budget.block_size
            # Where some are still owed by rows that ended, it gets no more than it must.
            blocked = blocked or not self.core.blocks.n_available
            fair = own + 1 >= highest or row.n_planned == row.limit or blocked
            require(fair, "S9", f"row {number} has {own} drafts, another one {highest}")

    def _check_events(self, sent: Sent, outcome: Outcome, failing: frozenset[int]) -> None:
        due = {one.row: one for one in outcome.done.sampled}
        sampled = {sent.cases[row].request.id: one for row, one in due.items()}
        awaited = {row for row in due if not sent.cases[row].ended}
        self.reached["dropped token"] += len(due) - len(awaited)
        doomed = {sent.cases[row].request.id for row in failing if not sent.cases[row].ended}
        n_emitted: Counter[int] = Counter()
        for event in self.core.complete(outcome.done):
            case = self.live.get(event.request.id)
            require(case is not None, "S7", f"{event.request.id} has an event after its end")
            assert case is not None
            if isinstance(event, TokenEvent):
                awaited -= {row for row, one in sent.cases.items() if one is case}
                n_emitted[case.request.id] += 1
                self._check_token(case, event, alone=len(sampled[case.request.id].tokens) == 1)
            elif isinstance(event, PromptEvent):
                require(
                    event.start == len(case.prompt_logprobs) + 1,
                    "S6",
                    f"prompt log-probabilities from {event.start}",
                )
                wanted = bool(case.request.prompt_top_n_tokens)
                due_top = [prompt_top(logprob) for logprob in event.logprobs if wanted]
                require(event.top == due_top, "S6", f"the likeliest of the prompt: {event.top}")
                case.prompt_logprobs += event.logprobs
            elif isinstance(event, FailedEvent):
                require(case.request.id in doomed, "S7", "failed, though its row did not")
                doomed.remove(case.request.id)
                self.reached["row error"] += 1
                self._end(case)
        for one in due.values():
            row, case = self.rows.get(one.row), sent.cases[one.row]
            if len(one.tokens) > one.n_computed + 1 and row is not None and row.case is case:
                row.prefill_end = len(row.case.known)
            emitted = n_emitted[case.request.id]
            self.reached["accepted draft"] += one.n_computed > 0
            self.reached["rejected draft"] += one.n_drafts > one.n_computed
            self.reached["jump behind a draft"] += len(one.tokens) > one.n_computed + 1 > 1
            self.reached["draft behind the end"] += 0 < emitted <= one.n_computed
            stopped = case.ended and has_stop_sequence(case.emitted)
            self.reached["draft behind a stop sequence"] += (
                stopped and 0 < emitted <= one.n_computed
            )
            if case.request.grammar:
                self.reached["accepted draft under a grammar"] += one.n_computed > 0
                self.reached["rejected draft under a grammar"] += one.n_drafts > one.n_computed
            if emitted:
                case.n_drafts += one.n_drafts
                case.n_accepted += min(one.n_computed, emitted)
            counted = (case.request.n_drafts, case.request.n_accepted)
            require(counted == (case.n_drafts, case.n_accepted), "S6", f"drafts {counted}")
        require(not awaited, "S6", f"the tokens of rows {awaited} are lost")
        require(not doomed, "S7", f"the failures of {doomed} are lost")

    def _check_token(self, case: Case, event: TokenEvent, *, alone: bool) -> None:
        """`alone`: no other token of its row came with it."""
        case.emitted.append(event.token)
        emitted, due = case.emitted, case.due
        require(emitted == due[: len(emitted)], "S6", f"emitted {emitted}, not {due}")
        self.lawful.add(tuple(case.known))
        self.ledger.emit(case.request)
        done = len(emitted) == len(due)
        spent = len(emitted) >= case.request.max_new_tokens
        cut = emitted[-1] in case.request.stop_ids and (not spent or bool(case.request.grammar))
        reason: FinishReason | None = None
        if done:
            reason = "eos_token" if cut else "length" if spent else "stop_sequence"
        if reason == "stop_sequence" and alone:
            # The engine finds it in the text.
            self.core.finish(case.request)
            reason = None
        require(event.finish_reason == reason, "S7", f"{event.finish_reason}, not {reason}")
        if not done:
            return
        self.reached["stop token"] += cut
        if case.request.prompt_logprobs:
            prompt = tuple(case.prompt)
            scores = [prompt_logprob(prompt[:end]) for end in range(2, len(prompt) + 1)]
            require(case.prompt_logprobs == scores, "S6", "prompt log-probabilities are wrong")
        self._end(case)

    def _end(self, case: Case) -> None:
        require(not case.ended, "S7", f"{case.request.id} ended twice")
        case.ended = True
        del self.live[case.request.id]
        self.ledger.end(case.request)
        booking = case.booking
        booking.requests.remove(case.request.id)
        if booking.reservation.evicted:
            return
        self.bookings.end(booking, ran=case.admitted)
        if not booking.requests:
            self.core.reservations.release(booking.reservation)
            self.bookings.release(booking)

    # -- checks of the whole state --------------------------------------------------------------

    def check(self) -> None:
        core = self.core
        check_places(core.blocks)
        tables = [one.table for one in core.running if one.table is not None]
        self.reached["shared block"] += check_tables(core.blocks, tables + core._closing)
        check_tree(core.blocks, self.acknowledged, self.lawful)
        check_batch(core, set(self.live))
        self.ledger.check(core.waiting)
        self.bookings.check(core.reservations)
