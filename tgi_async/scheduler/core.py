"""The scheduler core: takes events, and decides with its planner which rows run in the next step.

Deterministic, and alone: no I/O, no clock, no randomness, no asyncio. The engine around it calls
`reserve`, `submit`, `plan`, `complete`, `finish` and `died`, sends the steps it plans to the
workers in order, and hands back their results in the same order.

**Drafts.** Until a result is back, a row is planned for as if all its drafts were accepted. Then it
goes on from those that were, and only blocks below these enter the prefix cache. What was accepted
behind the end of a text is dropped: never shown, charged or cached.

**Mask not ready.** A row whose grammar mask is not computed in time gets no token, and computes the
last of its known tokens again.
"""

from __future__ import annotations

from collections.abc import Iterable

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.scheduler.fairness import OUTPUT_COST
from tgi_async.scheduler.plan import Budget, ScheduledRow
from tgi_async.scheduler.planner import Planner
from tgi_async.scheduler.request import (
    Event,
    FailedEvent,
    FinishReason,
    PromptEvent,
    Request,
    Status,
    TokenEvent,
)
from tgi_async.scheduler.reservations import EVICTED, Reservation
from tgi_async.scheduler.results import UnexpectedResult, check_result
from tgi_async.wire.messages import PromptLogprobs, Sampled, StepDone


class Core(Planner):
    """Takes events: requests that come and end, results, and the workers' death."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._arrivals = 0
        self._began = 0
        """The step by which all that was live at the last death may run again."""

    # -- events ---------------------------------------------------------------------------------

    def reserve(
        self, client: str, n_rows: int, n_bytes: int
    ) -> tuple[Reservation, list[Reservation], list[Request]]:
        """Reserve rows for later requests. Return the reservation, the evicted ones, and their
        requests, which are ended.

        Raises ValidationError for more than there are, Overloaded where there is no room now.
        """
        reservation, evicted = self.reservations.reserve(client, n_rows, n_bytes)
        return reservation, evicted, self._end_evicted(evicted)

    def weigh(
        self, reservation: Reservation, n_tokens: int
    ) -> tuple[list[Reservation], list[Request]]:
        """Add the tokens of a prompt that is to be submitted. Return the reservations that were
        evicted for it, and their requests, which are ended.

        Raises Overloaded where there is no room for so many tokens.
        """
        evicted = self.reservations.weigh(reservation, n_tokens)
        return evicted, self._end_evicted(evicted)

    def _end_evicted(self, evicted: list[Reservation]) -> list[Request]:
        # None of their requests has run.
        ended = [one for one in self.waiting if one.reservation in evicted] if evicted else []
        for request in ended:
            self.finish(request)
        return ended

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
        longest = max((span.end - span.start for span in request.spans), default=0)
        if request.prompt_logprobs and longest > budget.max_logits:
            raise ValidationError(
                f"the prompt has {longest} tokens that are computed at once, as they attend to "
                f"each other, and the log-probabilities of {budget.max_logits} can be computed at "
                "once. Leave out the log-probabilities of the prompt (`decoder_input_details`, "
                "`echo` with `logprobs`), or send a smaller image"
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
        self._replays.discard(request)
        self.waiting.ended(request)
        if request.reservation is not None:
            if request.charged:
                request.reservation.n_tokens += len(request.tokens)
            self.reservations.end(request.reservation, ran=request.charged)

    @property
    def lost(self) -> str:
        """The shapes of the steps whose results have not come back, for the operator."""
        return ", ".join(map(str, self._in_flight)) or "nothing"

    def died(self, live: Iterable[Request]) -> Request | None:
        """Start over after the workers' death. Return who caused it, if that is known, for the
        caller to `finish`.

        `live` are the requests that the caller still serves.
        """
        live = list(live)
        lost = {row.request for step in self._in_flight for row in step.scheduled_rows}
        ran = [one for one in live if one in lost]
        first = self.suspect if self.suspect in live else None
        culprit = self._suspects.died(first, ran, self._acknowledged - self._began)
        self.reset(live, one_by_one=True)
        waiting = set(self.waiting)
        for request in self._suspects.held:
            if request in waiting:
                self.waiting.hold(request)
                self._replays.discard(request)
        return culprit

    def reset(self, live: Iterable[Request] | None = None, *, one_by_one: bool = False) -> None:
        """Start over with new workers: every live request waits, and none runs.

        `live` are the requests that the caller still serves, for the lists here are in doubt once
        a method has raised. None: what the lists say. With `one_by_one` those that ran are admitted
        when the one before has got a token, so that there is a `suspect` if it happens again.
        """
        if live is None:
            live = [*self.running, *self.waiting]
        running: list[Request] = []
        waiting: list[Request] = []
        held = set(self.waiting.held)
        for request in sorted(live, key=lambda one: one.arrival):
            queued = request.status is Status.WAITING and request not in held
            (waiting if queued else running).append(request)
            request.requeue()
        self._clear()
        self.waiting.reset(waiting, running)
        replayed = self._replays.intersection(waiting)
        self._replays = replayed.union(running) if one_by_one else set()
        self._began = self._last_step + len(self._replays)
        self._trial = self._admitting = None

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
        if self._suspects.trying:
            self._suspects.stepped(settled=not self._replays)
        return events

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
            stop = -1  # place of the token with which a stop sequence ends the text
            if several or scheduled.n_drafts:
                # Also for a request that has ended: the worker runs what it was sent.
                self._take_back(scheduled, scheduled.n_drafts - found.n_computed)
                if several:
                    self._settle(request, len(found.tokens) - found.n_computed)
                    if request.text_end is not None:
                        stop = (request.text_end(found.tokens) or 0) - 1
            if request.status is not Status.ENDED:
                logprobs, tops = found.logprobs, found.top
                index = -1  # counted by hand, as this runs for every token and calls are expensive
                for token in found.tokens:
                    index += 1
                    request.tokens.append(token)
                    self.waiting.charge(request.client, OUTPUT_COST * request.price)
                    spent = len(request.tokens) > request.limit  # the last token is never computed
                    if token in request.stop_ids and (not spent or request.grammar):
                        reason = "eos_token"  # a text that a grammar ended in time is complete
                    elif spent:
                        reason = "length"
                    elif index == stop:
                        reason = "stop_sequence"
                    logprob = logprobs[index] if logprobs else None
                    top = tops[index] if tops and index < len(tops) else []
                    events.append(TokenEvent(request, token, logprob, top, reason))
                    if reason is not None:
                        break
                if several and len(several) > found.n_computed:
                    request.prefill_end = len(request.tokens)
                if found.n_drafts:
                    request.n_drafts += found.n_drafts
                    if found.n_computed:
                        # Those behind the end are not among its tokens.
                        request.n_accepted += min(found.n_computed, index + 1)
        end = table.n_computed = table.n_computed + scheduled.n
        if end // self.budget.block_size > table.n_committed and not table.failed:
            # Accepted drafts are known by now; what comes behind the end of a text never is.
            self.blocks.commit(table, request.block_keys(self.budget.block_size))
        if reason is not None:
            self.finish(request)

    def _settle(self, request: Request, known: int) -> None:
        """Let the steps in flight begin with the `known` tokens that are not computed yet."""
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
