"""The properties catch what they are for: each bug planted here is found, by name of the invariant.

Every bug is a core with one small thing wrong, sent on the same random walks as the right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from unittest.mock import patch

import pytest

from property_tests.model import Violation
from property_tests.walk import walk
from tgi_async.errors import Overloaded
from tgi_async.generation import FinishReason
from tgi_async.scheduler.blocks import ROOT, BlockManager, BlockTable, Key, Match, Node
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.fairness import OUTPUT_COST, WaitingQueue
from tgi_async.scheduler.plan import Budget, Plan, ScheduledRow, StepBuilder
from tgi_async.scheduler.request import Event, PromptEvent, Request, Status, TokenEvent
from tgi_async.scheduler.reservations import Reservation, Reservations, Share
from tgi_async.scheduler.weights import UNIT
from tgi_async.wire.messages import PromptLogprobs, Sampled

N_WALKS = 200
N_EVENTS = 300


def with_blocks(blocks_type: type[BlockManager]) -> type[Core]:
    class WithBlocks(Core):
        def __init__(self, budget: Budget) -> None:
            super().__init__(budget)
            self.blocks = blocks_type(budget.pools, budget.block_size)

    return WithBlocks


def with_queue(queue_type: type[WaitingQueue]) -> type[Core]:
    class WithQueue(Core):
        def __init__(self, budget: Budget) -> None:
            super().__init__(budget)
            self.waiting = queue_type()

    return WithQueue


def with_reservations(reservations_type: type[Reservations]) -> type[Core]:
    class WithReservations(Core):
        def __init__(self, budget: Budget) -> None:
            super().__init__(budget)
            self.reservations = reservations_type(budget.capacity)

    return WithReservations


# -- blocks -------------------------------------------------------------------------------------


class FreesTwice(BlockManager):
    def close(self, table: BlockTable) -> None:
        n_free = self.n_free
        super().close(table)
        if self.n_free > n_free:
            self._free.append(self._free[-1])


class ForgetsToCount(BlockManager):
    """A hit on a block that somebody holds does not count as one more holder."""

    def _hold(self, blocks: list[int]) -> None:
        super()._hold([block for block in blocks if self._references[block] == 0])


class LeaksOnClose(BlockManager):
    """The last block of a table that holds several is forgotten."""

    def close(self, table: BlockTable) -> None:
        if len(table.blocks) > 1:
            table.blocks.pop()
        super().close(table)


class ProvesByHash(BlockManager):
    def match(self, keys: list[Key]) -> Match:
        hits: list[Node] = []
        parent = 0
        for tokens in keys:
            alike = (
                node
                for (above, of_node), node in self._tree.items()
                if above == parent
                and sum(of_node) % 3 == sum(tokens) % 3
                and node.block is not None
            )
            node = next(alike, None)
            if node is None:
                break
            hits.append(node)
            parent = node.id
        return Match(hits, None)


class EvictsWithoutForgetting(BlockManager):
    """An evicted block can still be hit."""

    def grow(self, table: BlockTable, n: int) -> list[int]:
        tree = dict(self._tree)
        granted = super().grow(table, n)
        self._tree = tree
        return granted


class AnnouncesBehindAnything(BlockManager):
    def open(self, hits: list[Node], keys: list[Key]) -> BlockTable:
        table = super().open(hits, keys)
        parent = hits[-1].id if hits else ROOT
        for tokens in keys[len(hits) :]:
            found = self._tree.get((parent, tokens))
            if found is None:
                found = self._add(parent, tokens, table)
                table.pending.append(found)
            parent = found.id
        return table


class NeverLooksAgain(BlockManager):
    """A prompt that did not fit is not matched again when more of it can be hit."""

    @property
    def n_shared(self) -> int:
        return 0

    @n_shared.setter
    def n_shared(self, value: int) -> None:
        pass


class CachesWhatIsPlanned(Core):
    """A block can be hit as soon as the step that will fill it is planned."""

    def _schedule(self, request: Request, n: int, builder: StepBuilder, n_drafts: int = 0) -> None:
        super()._schedule(request, n, builder, n_drafts)
        assert request.table is not None
        known = min(request.n_planned, len(request.tokens))
        request.table.n_computed = max(request.table.n_computed, known)
        self.blocks.commit(request.table, request.block_keys(self.budget.block_size))


class CachesWhatFailed(Core):
    def _fail(self, scheduled: ScheduledRow, message: str, events: list[Event]) -> None:
        super()._fail(scheduled, message, events)
        scheduled.table.failed = False


class Unsliced(list[Key]):
    """Hands out the whole where its head is asked for."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice) and index.start is None:
            return list(self)
        return super().__getitem__(index)


class HitsTheWholePrompt(Core):
    def submit(self, request: Request) -> None:
        request.keys = Unsliced()
        super().submit(request)


class FreesAtOnce(Core):
    """A table is closed though a step in flight still touches its blocks."""

    def _leave(self, request: Request) -> None:
        super()._leave(request)
        while self._closing:
            self.blocks.close(self._closing.pop())

    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        scheduled.table.failed = not scheduled.table.blocks  # there is nothing left to commit
        super()._acknowledge(scheduled, sampled, events)


class CountsTokensWithoutMask(Core):
    """What a row without a mask computed counts as computed."""

    def _postpone(self, scheduled: ScheduledRow) -> None:
        scheduled.samples = False
        scheduled.request.n_in_flight -= 1
        self._acknowledge(scheduled, {}, [])


class CachesRejectedDrafts(Core):
    """What was computed counts as accepted."""

    def _take_back(self, scheduled: ScheduledRow, n: int) -> None:
        if scheduled.samples:
            scheduled.request.n_planned -= n if scheduled.request.table is scheduled.table else 0
        else:
            super()._take_back(scheduled, n)


class GoesOnBehindRejectedDrafts(Core):
    """A row is planned for as if its drafts had been accepted."""

    def _take_back(self, scheduled: ScheduledRow, n: int) -> None:
        if scheduled.samples:
            scheduled.n -= n
        else:
            super()._take_back(scheduled, n)


class UsesARejectedDraft(Core):
    """The keys of the first draft that was refused count as those of a token."""

    def _take_back(self, scheduled: ScheduledRow, n: int) -> None:
        super()._take_back(scheduled, n - 1 if scheduled.samples and n > 1 else n)


class CommitsABlockTooFar(BlockManager):
    """A block enters the cache when its first position is computed."""

    def commit(self, table: BlockTable, keys: list[Key]) -> None:
        n_computed = table.n_computed
        table.n_computed = -(-n_computed // self.block_size) * self.block_size
        super().commit(table, keys)
        table.n_computed = n_computed


class DraftsBeyondTheLimit(Core):
    def _schedule_drafting(self, requests: list[Request], most: int, builder: StepBuilder) -> None:
        for request in requests:
            request.limit += self.budget.max_drafts
        super()._schedule_drafting(requests, most, builder)
        for request in requests:
            request.limit -= self.budget.max_drafts


class DraftsBeyondTheBudget(Core):
    """Each row has one more than there are."""

    def _schedule_drafting(self, requests: list[Request], most: int, builder: StepBuilder) -> None:
        super()._schedule_drafting(requests, most + len(requests), builder)


class DraftsBeyondTheLogits(Core):
    """Scored prompt tokens leave as much for drafts as others do."""

    def _schedule_drafting(self, requests: list[Request], most: int, builder: StepBuilder) -> None:
        builder.logits_left = self.budget.max_logits
        super()._schedule_drafting(requests, most, builder)


class DraftsForTheFirstRows(Core):
    """The first rows have all drafts that they can."""

    def _schedule_drafting(self, requests: list[Request], most: int, builder: StepBuilder) -> None:
        left = min(most, builder.logits_left)
        for request in requests:
            n = min(1 + left, 1 + self.budget.max_drafts, request.limit - request.n_planned)
            n = self._fit(request, n, builder)
            self._schedule(request, n, builder, n - 1)
            left -= n - 1


class DraftsForUnscoredPrompts(Core):
    """A row drafts though its prompt's log-probabilities have not come back."""

    def plan(self) -> Plan | None:
        asked = [one for one in self.running if one.prompt_logprobs and one.decoding]
        for request in asked:
            request.prompt_logprobs = False
        plan = super().plan()
        for request in asked:
            request.prompt_logprobs = True
        return plan


class ChargesRejectedDrafts(Core):
    def _take_back(self, scheduled: ScheduledRow, n: int) -> None:
        super()._take_back(scheduled, n)
        if scheduled.samples and scheduled.request.status is not Status.ENDED:
            self.waiting.charge(scheduled.request.client, OUTPUT_COST * n)


class ChargesBehindAStopSequence(Core):
    """A client pays for accepted drafts that it is not shown."""

    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        n_events = len(events)
        ended = scheduled.request.status is Status.ENDED
        found = sampled.get(scheduled.row)
        super()._acknowledge(scheduled, sampled, events)
        if found is not None and not ended:
            n_dropped = len(found.tokens) - len(events[n_events:])
            if self.waiting.counter(scheduled.request.client) is not None:
                self.waiting.charge(scheduled.request.client, OUTPUT_COST * n_dropped)


class GoesOnBehindAStopSequence(Core):
    """A stop sequence ends a text only where it is the last token of a step."""

    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        scheduled.request.text_end = None
        super()._acknowledge(scheduled, sampled, events)


class CountsDraftsBehindTheEnd(Core):
    """Accepted drafts are counted that are not among the tokens."""

    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        before = scheduled.request.n_accepted
        super()._acknowledge(scheduled, sampled, events)
        found = sampled.get(scheduled.row)
        if scheduled.request.n_accepted > before and found is not None:
            scheduled.request.n_accepted = before + found.n_computed


class LosesForcedTokens(Core):
    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        n_events = len(events)
        super()._acknowledge(scheduled, sampled, events)
        if len(events) > n_events + 1:
            del events[n_events + 1]


class ForgetsDeferredFrees(Core):
    def _close_tables(self) -> None:
        self._closing.clear()


class GrantsTooMuch(Core):
    def _schedule(self, request: Request, n: int, builder: StepBuilder, n_drafts: int = 0) -> None:
        super()._schedule(request, n, builder, n_drafts)
        assert request.table is not None
        if self.blocks.n_free and builder.grow and builder.grow[-1].row == request.row:
            builder.grow[-1].blocks.extend(self.blocks.grow(request.table, 1))


# -- batching -----------------------------------------------------------------------------------


class ExceedsThePrefillBudget(Core):
    def __init__(self, budget: Budget) -> None:
        one_more = budget.max_batch_prefill_tokens + 1
        super().__init__(budget._replace(max_batch_prefill_tokens=one_more))


class IgnoringDecodes(Budget):
    def prefill_tokens(self, n_decodes: int) -> int:
        return self.max_batch_prefill_tokens


class PrefillsAsMuchBesideDecodes(Core):
    def __init__(self, budget: Budget) -> None:
        super().__init__(IgnoringDecodes(*budget))


class CutsSpans(Core):
    def _schedule_until(
        self, request: Request, end: int, builder: StepBuilder, free: int = 0
    ) -> None:
        spans, request.spans = request.spans, ()
        super()._schedule_until(request, end, builder, free)
        request.spans = spans


class HitsAPartOfASpan(Core):
    def _admit(self, builder: StepBuilder) -> Request | None:
        with patch.object(Request, "outside", lambda self, end: end):
            return super()._admit(builder)


class StallsDecodes(Core):
    """A decode waits while others prefill."""

    def _schedule(self, request: Request, n: int, builder: StepBuilder, n_drafts: int = 0) -> None:
        prefills = any(one.n_planned < one.prefill_end for one in self.running)
        if prefills and request.n_planned >= request.prefill_end:
            return
        super()._schedule(request, n, builder, n_drafts)


class IdlesBesideWork(Core):
    """Admits only into an empty batch."""

    def _admit(self, builder: StepBuilder) -> Request | None:
        return None if self.running else super()._admit(builder)


class WaitsForTheDead(Core):
    """After a death, a request still waits for a prefix that nobody computes any more."""

    def reset(self, live: Iterable[Request] | None = None, *, one_by_one: bool = False) -> None:
        waits = {request: request.waits_for for request in self.waiting}
        super().reset(live, one_by_one=one_by_one)
        for request, node in waits.items():
            request.waits_for = node


class PreemptsTheOldest(Core):
    def _preempt(self, request: Request) -> None:
        super()._preempt(self.running[0])


class AdmitsWhatNeverFits(Core):
    def submit(self, request: Request) -> None:
        budget = self.budget
        self.budget = budget._replace(max_total_tokens=budget.max_total_tokens + 1)
        super().submit(request)
        self.budget = budget


class LosesATokenWhenPreempted(Core):
    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        if request.n_emitted:
            request.tokens.pop()


class LosesAbortsOfWaiting(Core):
    def finish(self, request: Request) -> None:
        if request.status is not Status.WAITING:
            super().finish(request)
        else:
            request.status = Status.ENDED


class TriesOneForEver(Core):
    """After a death, nobody follows the first one that is admitted again."""

    @property
    def on_trial(self) -> bool:
        return bool(self._replays) and self._trial is not None


class LosesRequestsOnDeath(Core):
    def reset(self, live: Iterable[Request] | None = None, *, one_by_one: bool = False) -> None:
        del self.running[1:]
        super().reset(None, one_by_one=one_by_one)


class EmitsDroppedTokens(Core):
    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        ended = scheduled.request.status is Status.ENDED
        super()._acknowledge(scheduled, sampled, events)
        if ended and scheduled.samples:
            events.append(
                TokenEvent(scheduled.request, sampled[scheduled.row].tokens[0], None, [], None)
            )


class CachesDroppedTokens(Core):
    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        if scheduled.request.status is Status.ENDED and scheduled.samples:
            scheduled.request.tokens.append(sampled[scheduled.row].tokens[0])
        super()._acknowledge(scheduled, sampled, events)


class EndsTwice(Core):
    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        super()._acknowledge(scheduled, sampled, events)
        reason: FinishReason = "length"
        if (
            scheduled.request.status is Status.ENDED
            and events
            and events[-1].request is scheduled.request
        ):
            events.append(
                TokenEvent(scheduled.request, sampled[scheduled.row].tokens[0], None, [], reason)
            )


class ScoresPromptsTwice(Core):
    def _add_prompt_logprobs(
        self, request: Request, found: PromptLogprobs, events: list[Event]
    ) -> None:
        if request.status is not Status.ENDED:
            start, logprobs = found.start, found.logprobs
            events.append(PromptEvent(request, start, logprobs, found.top, found.ranks))


# -- fairness -----------------------------------------------------------------------------------


class ForgetsTheLift(WaitingQueue):
    def _level(self) -> int:
        return 0


class ServesInOrderOfArrival(WaitingQueue):
    """First come, first served between clients, too."""

    def head(self) -> Request | None:
        firsts = (next(iter(queue.values())) for queue in self._queues.values())
        return min(firsts, key=lambda request: request.arrival, default=None)


class OvertakesInAClient(WaitingQueue):
    def head(self) -> Request | None:
        first = super().head()
        if first is None:
            return None
        return min(self._queues[first.client].values(), key=lambda one: (one.n_prompt, one.arrival))


class PutsBackBehind(WaitingQueue):
    """A preempted request loses its place."""

    def put_back(self, request: Request) -> None:
        super().put_back(request)
        self._queues[request.client].move_to_end(request.id)


class ChargesReplays(Core):
    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        request.charged = False


class ChargesDroppedTokens(Core):
    def _acknowledge(
        self, scheduled: ScheduledRow, sampled: dict[int, Sampled], events: list[Event]
    ) -> None:
        ended = scheduled.request.status is Status.ENDED
        super()._acknowledge(scheduled, sampled, events)
        if (
            ended
            and scheduled.samples
            and self.waiting.counter(scheduled.request.client) is not None
        ):
            self.waiting.charge(scheduled.request.client, 2)


# -- admission ----------------------------------------------------------------------------------


class HasNoBound(Reservations):
    def _make_room(self, client: str, n_rows: int, n_bytes: int) -> list[Reservation]:
        try:
            return super()._make_room(client, n_rows, n_bytes)
        except Overloaded as error:
            if "half" in str(error):
                raise
            return []


class TakesMoreThanHalf(Reservations):
    def _check_half(self, rows: int, size: int) -> None:
        pass


class EvictsNobody(Reservations):
    """First come, first served: a full queue is full for everybody."""

    def _make_room(self, client: str, n_rows: int, n_bytes: int) -> list[Reservation]:
        evicted = super()._make_room(client, n_rows, n_bytes)
        if evicted:
            raise Overloaded
        return evicted


class EvictsTheOldest(Reservations):
    def reserve(
        self, client: str, n_rows: int, n_bytes: int
    ) -> tuple[Reservation, list[Reservation]]:
        for share in self._shares.values():
            share.reservations = dict(reversed(share.reservations.items()))
        return super().reserve(client, n_rows, n_bytes)


class EvictsForWhoHasMore(Reservations):
    """A client gives way until it has nothing."""

    def _make_room(self, client: str, n_rows: int, n_bytes: int) -> list[Reservation]:
        own = self._shares.pop(client, None)
        try:
            return super()._make_room(client, n_rows, n_bytes)
        finally:
            if own is not None:
                self._shares[client] = own


class CountsTheBytesOfWhatRuns(Reservations):
    def _begin(self, reservation: Reservation, share: Share) -> None:
        n_bytes = self.n_queued_bytes
        super()._begin(reservation, share)
        if reservation.n_waiting < reservation.n_rows:
            self.n_queued_bytes = n_bytes


class KeepsRowsThatEnded(Reservations):
    def end(self, reservation: Reservation, *, ran: bool) -> None:
        pass


class RunsWhatWasEvicted(Core):
    def reserve(
        self, client: str, n_rows: int, n_bytes: int
    ) -> tuple[Reservation, list[Reservation], list[Request]]:
        reservation, evicted = self.reservations.reserve(client, n_rows, n_bytes)
        return reservation, evicted, []


class TakesInWhatWasEvicted(Core):
    def submit(self, request: Request) -> None:
        if request.reservation is not None:
            request.reservation.evicted = False
        super().submit(request)


class ForgetsWeights(Core):
    def submit(self, request: Request) -> None:
        request.price = UNIT
        super().submit(request)


class ReturnsAtOnce(Core):
    """A preempted request comes back for a few tokens."""

    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        request.preempted = False


class Planted(NamedTuple):
    bug: type[Core]
    found_by: str
    max_drafts: int = 0
    deaths: float | None = None
    """The rate of the worker's, for what is seen after one only."""


PLANTED = {
    "a block is freed twice": Planted(with_blocks(FreesTwice), "P1"),
    "a holder is not counted": Planted(with_blocks(ForgetsToCount), "P2"),
    "a block leaks when a table is closed": Planted(with_blocks(LeaksOnClose), "P2"),
    "a hit is proved by its hash alone": Planted(with_blocks(ProvesByHash), "P5"),
    "an evicted block is hit": Planted(with_blocks(EvictsWithoutForgetting), "P5"),
    "a block is hit before it is computed": Planted(CachesWhatIsPlanned, "P5"),
    "a block of a failed row is hit": Planted(CachesWhatFailed, "P5"),
    "a hit covers the whole prompt": Planted(HitsTheWholePrompt, "P3"),
    "a free is not deferred": Planted(FreesAtOnce, "P6"),
    "a deferred free is forgotten": Planted(ForgetsDeferredFrees, "P2"),
    "a block is granted too early": Planted(GrantsTooMuch, "P4"),
    "the prefill budget is off by one": Planted(ExceedsThePrefillBudget, "S1"),
    "decodes do not halve it": Planted(PrefillsAsMuchBesideDecodes, "S1"),
    "a chunk ends within a span": Planted(CutsSpans, "S10"),
    "a hit ends within a span": Planted(HitsAPartOfASpan, "S10"),
    "a prefill stalls decodes": Planted(StallsDecodes, "S2"),
    "the batch idles beside work": Planted(IdlesBesideWork, "S3"),
    "a block is announced behind one that goes": Planted(
        with_blocks(AnnouncesBehindAnything), "P5"
    ),
    "a prompt is not matched again": Planted(with_blocks(NeverLooksAgain), "S3"),
    "a request waits for a dead worker": Planted(WaitsForTheDead, "S3", deaths=0.05),
    "the oldest request is preempted": Planted(PreemptsTheOldest, "S4"),
    "a preempted request returns too early": Planted(ReturnsAtOnce, "S11"),
    "a request that never fits is admitted": Planted(AdmitsWhatNeverFits, "S5"),
    "a preemption loses a token": Planted(LosesATokenWhenPreempted, "S6"),
    "prompt log-probabilities come twice": Planted(ScoresPromptsTwice, "S6"),
    "an abort is lost": Planted(LosesAbortsOfWaiting, "S7"),
    "one request at a time is one for ever": Planted(TriesOneForEver, "S3"),
    "a death loses requests": Planted(LosesRequestsOnDeath, "S7"),
    "a dropped token is emitted": Planted(EmitsDroppedTokens, "S7"),
    "a request ends twice": Planted(EndsTwice, "S7"),
    "a dropped token is cached": Planted(CachesDroppedTokens, "S8"),
    "clients are served in order of arrival": Planted(with_queue(ServesInOrderOfArrival), "E1"),
    "a request overtakes within its client": Planted(with_queue(OvertakesInAClient), "S4"),
    "a preempted request loses its place": Planted(with_queue(PutsBackBehind), "S4"),
    "a lift is forgotten": Planted(with_queue(ForgetsTheLift), "E5"),
    "a row whose mask was not ready goes on": Planted(CountsTokensWithoutMask, "P4"),
    "a rejected draft is cached": Planted(CachesRejectedDrafts, "P5", 3),
    "a row goes on behind a rejected draft": Planted(GoesOnBehindRejectedDrafts, "P4", 3),
    "the keys of a rejected draft are used": Planted(UsesARejectedDraft, "P5", 3),
    "a block is committed too far": Planted(with_blocks(CommitsABlockTooFar), "P5", 3),
    "drafts go beyond the end": Planted(DraftsBeyondTheLimit, "S8", 3),
    "drafts go beyond the budget": Planted(DraftsBeyondTheBudget, "S1", 3),
    "drafts go beyond the logits": Planted(DraftsBeyondTheLogits, "S1", 3),
    "the first rows have all drafts": Planted(DraftsForTheFirstRows, "S9", 3),
    "a row drafts before its prompt is scored": Planted(DraftsForUnscoredPrompts, "S6", 3),
    "rejected drafts are charged": Planted(ChargesRejectedDrafts, "E5", 3),
    "drafts behind a stop sequence are charged": Planted(ChargesBehindAStopSequence, "E5", 3),
    "a stop sequence within drafts is missed": Planted(GoesOnBehindAStopSequence, "S7", 3),
    "drafts behind the end are counted": Planted(CountsDraftsBehindTheEnd, "S6", 3),
    "a forced token is lost": Planted(LosesForcedTokens, "S6"),
    "weights are forgotten": Planted(ForgetsWeights, "E5"),
    "a replay is charged": Planted(ChargesReplays, "E5"),
    "a dropped token is charged": Planted(ChargesDroppedTokens, "E5"),
    "the queue has no bound": Planted(with_reservations(HasNoBound), "A1"),
    "a client takes more than half": Planted(with_reservations(TakesMoreThanHalf), "A2"),
    "the oldest gives way": Planted(with_reservations(EvictsTheOldest), "A3"),
    "others give way to who has more": Planted(with_reservations(EvictsForWhoHasMore), "A2"),
    "what was evicted runs": Planted(RunsWhatWasEvicted, "A3"),
    "what was evicted is taken in": Planted(TakesInWhatWasEvicted, "A3"),
    "a full queue is full for all": Planted(with_reservations(EvictsNobody), "A4"),
    "bytes are not given back": Planted(with_reservations(CountsTheBytesOfWhatRuns), "A5"),
    "rows are not given back": Planted(with_reservations(KeepsRowsThatEnded), "A5"),
}


def first_violation(
    core_type: type[Core],
    max_drafts: int,
    n_walks: int = N_WALKS,
    deaths: float | None = None,
) -> Violation | None:
    for seed in range(n_walks):
        try:
            walk(seed, N_EVENTS, core_type, max_drafts, deaths=deaths)
        except Violation as violation:
            return violation
    return None


@pytest.mark.parametrize("name", PLANTED)
def test_the_properties_catch_it_when(name: str) -> None:
    bug, found_by, max_drafts, deaths = PLANTED[name]
    violation = first_violation(bug, max_drafts, deaths=deaths)
    assert violation is not None
    assert violation.invariant == found_by, str(violation)


@pytest.mark.parametrize("n_walks", [60, pytest.param(N_WALKS, marks=pytest.mark.full)])
@pytest.mark.parametrize("max_drafts", [0, 3])
def test_the_same_walks_find_nothing_in_the_core_itself(max_drafts: int, n_walks: int) -> None:
    assert first_violation(Core, max_drafts, n_walks) is None
