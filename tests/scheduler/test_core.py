from __future__ import annotations

import msgspec
import pytest

from tgi_async.errors import ValidationError
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import MAX_LOGITS, Budget, Plan
from tgi_async.scheduler.request import (
    Event,
    FailedEvent,
    PromptEvent,
    Request,
    Status,
    TokenEvent,
)
from tgi_async.scheduler.results import UnexpectedResult
from tgi_async.wire.messages import (
    Admit,
    CachePool,
    PromptLogprobs,
    RowError,
    Run,
    Sampled,
    StepDone,
    TopToken,
)

ROOMY = Budget(
    pools=[CachePool(64)],
    block_size=4,
    max_rows=8,
    max_batch_prefill_tokens=64,
    max_total_tokens=100,
    lookahead=0,
)


def submitted(core: Core, id: int, n_prompt: int, n: int = 4, **more: object) -> Request:
    """A request whose prompt is shared with no other."""
    prompt = [100 * id + position for position in range(n_prompt)]
    request = Request(id, prompt, n, **more)  # type: ignore[arg-type]
    core.submit(request)
    return request


def planned(core: Core) -> Plan:
    plan = core.plan()
    assert plan is not None
    return plan


def result(core: Core, plan: Plan, token: int = 7) -> StepDone:
    """Every row that has no known tokens left samples `token`."""
    (scheduled,) = (one.scheduled_rows for one in core._in_flight if one.step == plan.step.step)
    rows = [one.row for one in scheduled if one.samples]
    return StepDone(plan.step.step, [Sampled(row, [token]) for row in rows], [], [], 0.0, 0.0)


def step(core: Core, token: int = 7) -> list[Event]:
    return core.complete(result(core, planned(core), token))


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(("n_prompt", "n"), [(0, 4), (4, 0), (4, -1)])
def test_a_request_has_a_prompt_and_something_to_generate(n_prompt: int, n: int) -> None:
    with pytest.raises(ValidationError, match="at least one prompt token and one token"):
        submitted(Core(ROOMY), 1, n_prompt, n)


def test_a_request_beyond_the_token_limit_is_refused_by_its_name() -> None:
    core = Core(ROOMY)
    submitted(core, 1, 96, 4)
    with pytest.raises(ValidationError, match=r"max_new_tokens.* must be <= 100. Given: 97"):
        submitted(core, 2, 97, 4)
    assert len(core.waiting) == 1


def test_a_request_that_no_pool_can_hold_is_refused_by_its_name() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(4)]))
    submitted(core, 1, 13, 4)
    with pytest.raises(ValidationError, match=r"16 tokens .*max_batch_total_tokens"):
        submitted(core, 2, 14, 4)


@pytest.mark.parametrize("lookahead", [-1, 2])
def test_the_core_plans_at_most_one_step_ahead(lookahead: int) -> None:
    with pytest.raises(ValueError, match="lookahead is 0 or 1"):
        Core(ROOMY._replace(lookahead=lookahead))


def test_a_step_has_room_for_a_row_and_a_prefill_token() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Core(ROOMY._replace(max_rows=0))
    with pytest.raises(ValueError, match="one prefill token"):
        Core(ROOMY._replace(max_batch_prefill_tokens=0))


# -- prefill and decode -------------------------------------------------------------------------


def test_nothing_is_planned_while_there_is_nothing_to_do() -> None:
    assert Core(ROOMY).plan() is None


def test_a_request_is_prefilled_then_decoded_token_by_token() -> None:
    core = Core(ROOMY)
    request = submitted(core, 1, 6, 3)
    plan = planned(core)
    assert plan.admitted == [request]
    assert plan.step.admit[0].tokens == request.tokens
    assert (plan.n_prefill_tokens, plan.n_decodes) == (6, 0)
    core.complete(result(core, plan))
    plan = planned(core)
    assert (plan.step.admit, plan.step.run) == ([], [Run(request.row, 1)])
    assert (plan.n_prefill_tokens, plan.n_decodes) == (0, 1)


def test_a_request_ends_after_its_most_tokens() -> None:
    core = Core(ROOMY)
    request = submitted(core, 1, 6, 3)
    events = [event for _ in range(3) for event in step(core)]
    reasons = [event.finish_reason for event in events if isinstance(event, TokenEvent)]
    assert reasons == [None, None, "length"]
    assert request.status is Status.ENDED
    assert core.plan() is None
    assert core.blocks.n_used == 0


def test_a_request_ends_at_its_stop_token() -> None:
    core = Core(ROOMY)
    submitted(core, 1, 6, 3, stop_ids=frozenset((9,)))
    (event,) = step(core, token=9)
    assert isinstance(event, TokenEvent)
    assert event.finish_reason == "eos_token"
    assert not core.running


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes() -> None:
    core = Core(ROOMY._replace(max_batch_prefill_tokens=8))
    submitted(core, 1, 4, 9)
    step(core)
    submitted(core, 2, 20)
    chunks = []
    for _ in range(5):
        plan = planned(core)
        assert plan.n_decodes == 1
        chunks.append(plan.n_prefill_tokens)
        core.complete(result(core, plan))
    assert chunks == [4] * 5


def test_prompts_have_all_of_the_prefill_budget_where_nobody_decodes() -> None:
    core = Core(ROOMY._replace(max_batch_prefill_tokens=7))
    submitted(core, 1, 15)
    chunks: list[tuple[int, int]] = []
    for _ in range(6):
        if len(chunks) == 3:
            submitted(core, 2, 9)
        plan = planned(core)
        chunks.append((plan.n_decodes, plan.n_prefill_tokens))
        core.complete(result(core, plan))
    assert chunks == [(0, 7), (0, 7), (0, 1), (1, 4), (1, 4), (1, 1)]


def test_what_is_left_of_the_prefill_budget_goes_to_the_next_request() -> None:
    core = Core(ROOMY._replace(max_batch_prefill_tokens=8))
    for id in (1, 2, 3):
        submitted(core, id, 5)
    plan = planned(core)
    assert [run.n for run in plan.step.run] == [5, 3]


def test_only_so_many_prompt_tokens_of_a_step_have_log_probabilities() -> None:
    core = Core(
        ROOMY._replace(
            pools=[CachePool(1000)], max_total_tokens=2000, max_batch_prefill_tokens=1500
        )
    )
    submitted(core, 1, 300, prompt_logprobs=True)
    submitted(core, 2, 300, prompt_logprobs=True)
    submitted(core, 3, 700)
    assert [run.n for run in planned(core).step.run] == [300, MAX_LOGITS - 300]
    core = Core(
        ROOMY._replace(
            pools=[CachePool(1000)], max_total_tokens=2000, max_batch_prefill_tokens=1500
        )
    )
    submitted(core, 1, MAX_LOGITS, prompt_logprobs=True)
    submitted(core, 2, 300, prompt_logprobs=True)
    first = planned(core)
    assert [run.n for run in first.step.run] == [MAX_LOGITS]
    core.complete(result(core, first))
    assert [run.n for run in planned(core).step.run] == [1, 300]


def test_there_are_never_more_rows_than_allowed() -> None:
    core = Core(ROOMY._replace(max_rows=2))
    for id in (1, 2, 3):
        submitted(core, id, 2)
    assert len(planned(core).admitted) == 2
    assert len(core.waiting) == 1


def test_admission_stops_where_the_running_could_outgrow_the_overcommit() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(8)], overcommit=1.5))
    for id in (1, 2, 3):
        submitted(core, id, 4, 16)
    assert len(planned(core).admitted) == 2


def test_a_smaller_request_does_not_pass_a_head_that_does_not_fit() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(8)]))
    submitted(core, 1, 16, 4, client="ann")
    submitted(core, 2, 16, 4, client="ann")
    submitted(core, 3, 2, 2, client="ann")
    assert [request.id for request in planned(core).admitted] == [1]


def test_a_head_that_did_not_fit_is_admitted_as_soon_as_it_does() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(8)]))
    first = submitted(core, 1, 16, 4)
    second = submitted(core, 2, 16, 4)
    step(core)
    step(core)
    assert second.status is Status.WAITING
    core.finish(first)
    assert planned(core).admitted == [second]


def test_a_head_that_did_not_fit_is_admitted_once_its_prefix_can_be_shared() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(8)]))
    core.submit(Request(1, [1, 2, 3, 4, 5], 12))
    step(core)
    long = Request(2, [1, 2, 3, 4, 5, *[7] * 12, 50], 4)
    core.submit(long)
    n_steps = 0
    while long.status is Status.WAITING:
        step(core)
        n_steps += 1
    assert 0 < n_steps < 11


def test_blocks_are_granted_as_the_text_grows() -> None:
    core = Core(ROOMY)
    request = submitted(core, 1, 3, 8)
    used = []
    for _ in range(8):
        plan = planned(core)
        assert request.table is not None
        used.append(len(request.table.blocks))
        core.complete(result(core, plan))
    assert used == [1, 1, 2, 2, 2, 2, 3, 3]


# -- one step ahead -----------------------------------------------------------------------------


def test_two_steps_are_in_flight_one_step_ahead_and_no_more() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    submitted(core, 1, 4)
    assert [core.plan() is not None for _ in range(3)] == [True, True, False]


def test_an_end_known_beforehand_costs_no_extra_step() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    submitted(core, 1, 4, 2)
    prefill, decode = planned(core), planned(core)
    core.complete(result(core, prefill))
    assert core.plan() is None
    (event,) = core.complete(result(core, decode))
    assert isinstance(event, TokenEvent)
    assert event.finish_reason == "length"


def test_the_token_in_flight_of_an_ended_request_is_dropped() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    request = submitted(core, 1, 4, stop_ids=frozenset((9,)))
    prefill, decode = planned(core), planned(core)
    core.complete(result(core, prefill, token=9))
    assert core.complete(result(core, decode)) == []
    assert request.n_emitted == 1


def test_blocks_come_back_once_the_step_that_touches_them_is_done() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    request = submitted(core, 1, 3)
    prefill, decode = planned(core), planned(core)
    core.finish(request)
    assert core.blocks.n_used == 1
    core.complete(result(core, prefill))
    assert core.blocks.n_used == 1
    core.complete(result(core, decode))
    assert core.blocks.n_used == 0


# -- ends ---------------------------------------------------------------------------------------


def test_an_aborted_row_is_released_with_the_next_step() -> None:
    core = Core(ROOMY)
    first, second = submitted(core, 1, 4), submitted(core, 2, 4)
    step(core)
    row = first.row
    core.finish(first)
    plan = planned(core)
    assert plan.step.release == [row]
    assert plan.step.run == [Run(second.row, 1)]


def test_an_aborted_request_leaves_the_queue() -> None:
    core = Core(ROOMY)
    core.finish(submitted(core, 1, 4))
    assert len(core.waiting) == 0
    assert core.plan() is None


def test_finishing_twice_is_finishing() -> None:
    core = Core(ROOMY)
    request = submitted(core, 1, 4)
    step(core)
    core.finish(request)
    core.finish(request)
    assert core.blocks.n_used == 0


def test_a_row_that_fails_fails_alone() -> None:
    core = Core(ROOMY)
    first, second = submitted(core, 1, 4), submitted(core, 2, 4)
    plan = planned(core)
    sampled = [Sampled(second.row, [7])]
    done = StepDone(plan.step.step, sampled, [], [RowError(first.row, "out of luck")], 0.0, 0.0)
    failed, token = core.complete(done)
    assert failed == FailedEvent(first, "out of luck")
    assert isinstance(token, TokenEvent)
    assert core.running == [second]


def test_what_a_row_computes_after_it_failed_is_not_cached() -> None:
    core = Core(ROOMY._replace(lookahead=1, max_batch_prefill_tokens=8))
    request = submitted(core, 1, 20)
    first, second = planned(core), planned(core)
    error = RowError(request.row, "out of luck")
    core.complete(StepDone(first.step.step, [], [], [error], 0.0, 0.0))
    core.complete(StepDone(second.step.step, [], [], [], 0.0, 0.0))
    assert core.blocks.n_cached == 0
    assert core.blocks.n_used == 0


# -- the prefix cache ---------------------------------------------------------------------------


def test_a_cached_prompt_computes_only_what_follows_its_last_full_block() -> None:
    core = Core(ROOMY)
    prompt = list(range(10))
    core.submit(Request(1, prompt, 1))
    step(core)
    again = Request(2, prompt, 1)
    core.submit(again)
    plan = planned(core)
    assert plan.step.admit[0].n_cached == again.n_cached == 8
    assert plan.n_prefill_tokens == 2
    assert core.n_hit_tokens == 8


def test_what_a_request_finds_of_itself_after_a_preemption_was_not_cached_for_it() -> None:
    core = Core(ROOMY)
    request = Request(1, list(range(10)), 8)
    core.submit(request)
    step(core)
    core._preempt(request)
    assert planned(core).step.admit[0].n_cached == 8
    assert request.n_cached == 0


def test_a_prompt_that_is_cached_whole_computes_its_last_block_again() -> None:
    core = Core(ROOMY)
    core.submit(Request(1, list(range(8)), 1))
    step(core)
    core.submit(Request(2, list(range(8)), 1))
    assert planned(core).step.admit[0].n_cached == 4


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    core = Core(ROOMY)
    core.submit(Request(1, [1, 2, 3], 6))
    for _ in range(6):
        step(core)
    core.submit(Request(2, [1, 2, 3, 7, 7, 7, 7, 7, 7, 50], 1))
    assert planned(core).step.admit[0].n_cached == 8


def test_a_request_waits_for_the_prefix_that_a_running_one_computes() -> None:
    core = Core(ROOMY)
    prompt = list(range(8))
    core.submit(Request(1, [*prompt, 50], 4))
    core.submit(Request(2, [*prompt, 60], 4))
    plan = planned(core)
    assert len(plan.admitted) == 1
    core.complete(result(core, plan))
    assert planned(core).step.admit[0].n_cached == 8


def test_prompt_logprobs_take_no_hit() -> None:
    core = Core(ROOMY)
    core.submit(Request(1, list(range(10)), 1))
    step(core)
    core.submit(Request(2, list(range(10)), 1, prompt_logprobs=True, prompt_top_n_tokens=3))
    (admit,) = planned(core).step.admit
    assert admit.n_cached == 0
    assert admit.prompt_logprobs
    assert admit.prompt_top_n_tokens == 3


def test_prompt_logprobs_are_reported_once_though_a_prefill_is_computed_twice() -> None:
    core = Core(ROOMY._replace(max_batch_prefill_tokens=4))
    request = submitted(core, 1, 8, prompt_logprobs=True, prompt_top_n_tokens=1)

    def top_of(logprobs: list[float]) -> list[list[TopToken]]:
        return [[TopToken(int(-logprob), 0.0)] for logprob in logprobs]

    def reported(start: int, *logprobs: float) -> PromptEvent:
        ranks = [int(-logprob) for logprob in logprobs]
        return PromptEvent(request, start, list(logprobs), top_of(list(logprobs)), ranks)

    def score(start: int, n: int) -> list[Event]:
        plan = planned(core)
        logprobs = [-float(position) for position in range(start, start + n)]
        ranks = list(range(start, start + n))
        found = [PromptLogprobs(request.row, start, logprobs, top_of(logprobs), ranks)]
        return core.complete(msgspec.structs.replace(result(core, plan), prompt_logprobs=found))

    assert score(1, 2) == [reported(1, -1.0, -2.0)]
    core.reset()
    assert score(1, 4) == [reported(3, -3.0, -4.0)]
    found, token = score(5, 3)
    assert found == reported(5, -5.0, -6.0, -7.0)
    assert isinstance(token, TokenEvent)


# -- memory pressure and death ------------------------------------------------------------------


def test_under_pressure_the_latest_arrival_is_preempted_and_its_tokens_stay() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(5)]))
    first, second = submitted(core, 1, 4, 9), submitted(core, 2, 4, 9)
    while not core.n_preemptions:
        step(core)
    assert core.running == [first]
    assert list(core.waiting) == [second]
    emitted = second.n_emitted
    assert emitted > 0
    while first.status is not Status.ENDED:
        step(core)
    assert second.n_emitted == emitted
    while second.status is not Status.ENDED:
        step(core)
    assert second.n_emitted == 9


def test_a_preempted_request_is_readmitted_with_what_it_emitted() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(5)]))
    submitted(core, 1, 4, 9)
    second = submitted(core, 2, 4, 9)
    while second.status is not Status.WAITING or core.n_preemptions == 0:
        step(core)
    known = list(second.tokens)
    admitted: list[Admit] = []
    while not admitted:
        plan = planned(core)
        admitted = plan.step.admit
        core.complete(result(core, plan))
    assert admitted[0].tokens == known
    assert admitted[0].n_prompt == 4


def test_a_preempted_request_does_not_return_before_it_can_stay() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(8)], overcommit=100.0))
    requests = [submitted(core, 1, 4, 20), submitted(core, 2, 4, 20), submitted(core, 3, 4, 6)]
    admitted: list[Request] = []
    while any(request.status is not Status.ENDED for request in requests):
        plan = planned(core)
        admitted += plan.admitted
        core.complete(result(core, plan))
    assert core.n_preemptions == 2
    assert max(map(admitted.count, requests)) == 2


def test_admitting_leaves_each_running_row_a_block_to_grow_into() -> None:
    core = Core(ROOMY._replace(pools=[CachePool(4)]))
    first, second = submitted(core, 1, 4, 9), submitted(core, 2, 4, 2)
    step(core)
    # Two blocks are hers and one more will be, so that one is left, and the other needs two.
    assert core.running == [first]
    while first in core.running:
        assert list(core.waiting) == [second]
        step(core)
    while second.status is not Status.ENDED:
        step(core)
    assert core.n_preemptions == 0


def test_a_prefill_takes_no_block_that_a_closing_table_has_yet_to_give_back() -> None:
    core = Core(
        ROOMY._replace(pools=[CachePool(11)], block_size=2, max_batch_prefill_tokens=4, lookahead=1)
    )
    # The second is the older, but is admitted after the third: it prefills as that is preempted.
    requests = [
        submitted(core, 1, 3, 4, client="bob"),
        submitted(core, 2, 11, 2, client="bob"),
        submitted(core, 3, 4, 8, client="ann"),
    ]
    in_flight: list[Plan] = []
    while any(request.status is not Status.ENDED for request in requests):
        while (plan := core.plan()) is not None:
            in_flight.append(plan)
        core.complete(result(core, in_flight.pop(0)))
    assert core.n_preemptions == 1
    assert [request.n_emitted for request in requests] == [4, 2, 8]


def test_after_a_death_every_running_request_is_admitted_again_in_its_order() -> None:
    core = Core(ROOMY)
    requests = [submitted(core, id, 4, 8) for id in (1, 2, 3)]
    step(core)
    step(core)
    core.reset()
    plan = planned(core)
    assert plan.admitted == requests
    assert [len(admit.tokens) for admit in plan.step.admit] == [6, 6, 6]
    assert all(admit.n_cached == 0 for admit in plan.step.admit)


def test_what_was_in_flight_at_a_death_is_not_awaited() -> None:
    core = Core(ROOMY)
    submitted(core, 1, 4)
    lost = result(core, planned(core))
    core.reset()
    with pytest.raises(UnexpectedResult, match="not the one awaited"):
        core.complete(lost)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_one_by_one_each_is_admitted_when_the_one_before_has_a_token(lookahead: int) -> None:
    core = Core(ROOMY._replace(lookahead=lookahead, max_batch_prefill_tokens=8))
    requests = [submitted(core, id, 12, 20) for id in (1, 2, 3)]
    for _ in range(5):
        step(core)
    assert core.running == requests
    core.reset(one_by_one=True)
    in_flight: list[Plan] = []
    for n, request in enumerate(requests):
        known = len(request.tokens)
        while len(request.tokens) == known:
            while (plan := core.plan()) is not None:
                in_flight.append(plan)
            assert core.running == requests[: n + 1]
            assert core.suspect is request
            core.complete(result(core, in_flight.pop(0)))
        assert core.suspect is None
    # Now as ever: two at once.
    further = [submitted(core, id, 2) for id in (4, 5)]
    assert planned(core).admitted == further


def test_a_suspect_that_leaves_makes_room_for_the_next_one() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    first, second = (submitted(core, id, 4, 9) for id in (1, 2))
    step(core)
    core.reset(one_by_one=True)
    planned(core)
    assert core.suspect is first
    core.finish(first)
    planned(core)
    assert core.suspect is second


def test_those_that_never_ran_are_not_replayed_one_by_one() -> None:
    core = Core(ROOMY)
    ran = [submitted(core, id, 4, 9) for id in (1, 2)]
    step(core)
    queued = [submitted(core, id, 4, 9) for id in (3, 4)]
    core.reset(one_by_one=True)
    assert planned(core).admitted == ran[:1]
    # Workers died before the second ran again.
    core.reset(one_by_one=True)
    for admitted in (ran[:1], ran[1:], queued):
        plan = planned(core)
        assert plan.admitted == admitted
        core.complete(result(core, plan))


def test_nobody_waits_for_the_grammar_of_a_suspect() -> None:
    core = Core(ROOMY)
    waiting, other = submitted(core, 1, 4, 9, grammar="g"), submitted(core, 2, 4, 9)
    step(core)
    core.reset(one_by_one=True)
    plan = planned(core)
    assert (plan.admitted, core.suspect) == ([waiting], waiting)
    core.complete(StepDone(plan.step.step, [], [], [], 0.0, 0.0, masks_not_ready=[waiting.row]))
    assert core.suspect is None
    assert planned(core).admitted == [other]


def test_a_core_begins_again_with_what_lives_whatever_its_lists_say() -> None:
    core = Core(ROOMY)
    clients = ("ann", "bob", "ann", "eve")
    requests = [submitted(core, n, 4, 6, client=client) for n, client in enumerate(clients, 1)]
    step(core)
    core.finish(requests[1])
    # As if it had raised on its way.
    requests[0].status = Status.ENDED
    core.running.clear()
    core.waiting._queues.clear()
    core.waiting._live.clear()
    core.waiting._counters.clear()
    core._free_rows.clear()
    core.reset([requests[3], requests[0], requests[2]])
    assert planned(core).admitted == [requests[n] for n in (0, 2, 3)]
    core.reset([requests[n] for n in (0, 2, 3)])
    while core.running or core.waiting:
        step(core)
    assert [request.n_emitted for request in requests] == [6, 1, 6, 6]
    assert core.blocks.n_used == 0


def test_a_request_is_rewound_to_what_its_client_knows() -> None:
    core = Core(ROOMY)
    request = submitted(core, 1, 7, 20)
    for token in (1, 2, 3, 4, 5, 6):
        step(core, token)
    request.n_prompt_logprobs = 7
    request.rewind(2, 5)
    assert request.tokens[7:] == [1, 2]
    assert request.n_prompt_logprobs == 5
    core.reset([request])
    (admit,) = planned(core).step.admit
    assert admit.tokens == request.tokens
    assert core.blocks.n_used == 3


# -- results that do not fit --------------------------------------------------------------------


def test_results_come_in_the_order_of_their_steps() -> None:
    core = Core(ROOMY._replace(lookahead=1))
    submitted(core, 1, 4)
    planned(core)
    second = planned(core)
    with pytest.raises(UnexpectedResult, match="not the one awaited"):
        core.complete(result(core, second))


@pytest.mark.parametrize(
    ("sampled", "errors", "prompt_logprobs", "message"),
    [
        ([], [], [], r"rows \[0\] have no token"),
        ([Sampled(0, [7]), Sampled(0, [8])], [], [], "two results"),
        ([Sampled(0, [7]), Sampled(1, [7])], [], [], r"rows \[1\] do not sample"),
        ([Sampled(0, [7]), Sampled(5, [7])], [], [], r"rows \[5\] do not sample"),
        ([Sampled(0, [7, 8])], [], [], "no grammar that forces them"),
        ([Sampled(0, [7], n_computed=1)], [], [], "computed tokens that were no drafts"),
        ([Sampled(0, [7], n_drafts=1)], [], [], "beyond step"),
        ([Sampled(0, [7], [-1.0, -2.0])], [], [], "log-probabilities of others"),
        ([Sampled(0, [7])], [RowError(5, "bad")], [], r"rows \[5\] are not in step"),
        ([Sampled(0, [7])], [], [PromptLogprobs(5, 1, [0.0])], r"rows \[5\] are not in step"),
    ],
)
def test_a_result_that_does_not_fit_its_step_changes_nothing(
    sampled: list[Sampled],
    errors: list[RowError],
    prompt_logprobs: list[PromptLogprobs],
    message: str,
) -> None:
    core = Core(ROOMY._replace(max_batch_prefill_tokens=8))
    request, chunked = submitted(core, 1, 4), submitted(core, 2, 20)
    plan = planned(core)
    assert (request.row, chunked.row) == (0, 1)
    with pytest.raises(UnexpectedResult, match=message):
        core.complete(StepDone(plan.step.step, sampled, prompt_logprobs, errors, 0.0, 0.0))
    assert request.n_emitted == 0
    assert len(core.complete(result(core, plan))) == 1
