"""Rows whose drafts are verified: their count in a step is an upper bound."""

from __future__ import annotations

import pytest

from tgi_async.scheduler.core import Core
from tgi_async.scheduler.fairness import OUTPUT_COST
from tgi_async.scheduler.plan import Budget, Plan
from tgi_async.scheduler.request import Event, Request, TokenEvent
from tgi_async.scheduler.results import UnexpectedResult
from tgi_async.scheduler.weights import UNIT
from tgi_async.wire.messages import CachePool, Sampled, StepDone

BUDGET = Budget(
    pools=[CachePool(64)],
    block_size=4,
    max_rows=4,
    max_batch_prefill_tokens=32,
    max_total_tokens=100,
    lookahead=0,
    max_drafts=3,
)


def core_of(n: int, prompt: int = 4, lookahead: int = 0, **more: object) -> tuple[Core, Request]:
    """A core with one request, whose prompt has sampled the token 7."""
    core = Core(BUDGET._replace(lookahead=lookahead))
    request = Request(1, list(range(100, 100 + prompt)), n, **more)  # type: ignore[arg-type]
    core.submit(request)
    complete(core, planned(core), [7])
    return core, request


def planned(core: Core) -> Plan:
    plan = core.plan()
    assert plan is not None
    return plan


def complete(
    core: Core, plan: Plan, tokens: list[int], n_computed: int = 0, n_drafts: int | None = None
) -> list[Event]:
    """The result of row 0, where as many drafts were verified as accepted, or `n_drafts`."""
    verified = n_computed if n_drafts is None else n_drafts
    found = Sampled(0, tokens, n_computed=n_computed, n_drafts=verified)
    return core.complete(StepDone(plan.step.step, [found], [], [], 0.0, 0.0))


@pytest.mark.parametrize("n_accepted", range(4))
def test_a_row_goes_on_behind_the_drafts_that_were_accepted(n_accepted: int) -> None:
    core, request = core_of(20)
    plan = planned(core)
    assert [(run.n, plan.n_decodes, plan.n_prefill_tokens) for run in plan.step.run] == [(4, 1, 0)]
    tokens = list(range(1, n_accepted + 2))
    events = complete(core, plan, tokens, n_accepted)
    assert [one.token for one in events if isinstance(one, TokenEvent)] == tokens
    assert request.n_planned == 5 + n_accepted == len(request.tokens) - 1
    assert request.table is not None
    assert request.table.n_computed == 5 + n_accepted


def test_only_blocks_below_what_was_accepted_are_cached() -> None:
    core, request = core_of(20)
    complete(core, planned(core), [1, 2, 3], 2)
    assert request.table is not None
    assert request.table.n_committed == 1  # of 7 positions, 8 were computed
    complete(core, planned(core), [4], 0)
    assert request.table.n_committed == 2


def test_what_was_granted_for_rejected_drafts_is_kept_and_used() -> None:
    core, request = core_of(20)
    plan = planned(core)
    assert request.table is not None
    assert len(request.table.blocks) == 2
    complete(core, plan, [1], 0)
    plan = planned(core)  # positions 5 to 8
    assert [len(grow.blocks) for grow in plan.step.grow] == [1]
    complete(core, plan, [2], 0)
    assert planned(core).step.grow == []  # 6 to 9
    core.finish(request)
    assert core.complete(StepDone(4, [Sampled(0, [3])], [], [], 0.0, 0.0)) == []
    assert core.blocks.n_used == 0


def test_a_step_ahead_is_planned_as_if_all_drafts_were_accepted() -> None:
    core, request = core_of(20, lookahead=1)
    first, second = planned(core), planned(core)
    assert request.n_planned == 12
    complete(core, first, [1, 2], 1)
    assert request.n_planned == 10
    complete(core, second, [3, 4, 5, 6], 3)
    assert request.n_planned == 10
    assert request.tokens[4:] == [7, 1, 2, 3, 4, 5, 6]


def test_a_row_that_may_have_come_to_its_limit_waits_for_the_result() -> None:
    core, request = core_of(6, lookahead=1)
    plan = planned(core)
    assert core.plan() is not None  # the position that is left, if all are accepted
    assert request.n_planned == request.limit == 9
    complete(core, plan, [1], 0)
    assert [run.n for run in planned(core).step.run] == [3]


def test_accepted_drafts_behind_the_end_are_dropped() -> None:
    core, request = core_of(20, stop_ids=frozenset((2,)))
    events = complete(core, planned(core), [1, 2, 3, 4], 3)
    assert [one.token for one in events if isinstance(one, TokenEvent)] == [1, 2]
    assert request.tokens[-1] == 2
    assert core.blocks.n_used == 0
    assert core.blocks.n_cached == 1  # of 8 positions, the last two were never shown


def test_tokens_of_a_grammar_are_computed_first_in_the_step_ahead() -> None:
    core, request = core_of(40, lookahead=1, grammar="any")
    first, second = planned(core), planned(core)
    complete(core, first, [1, 2, 3, 4], 1)  # an accepted draft, the sampled token, two forced ones
    complete(core, second, [5, 6], 1)  # three known tokens, and one draft behind them
    assert request.n_planned == len(request.tokens) - 1 == 10
    complete(core, planned(core), [1, 2, 3, 4, 5, 6], 0)
    assert [run.n for run in planned(core).step.run] == [6]


def test_a_step_ahead_with_too_few_positions_for_the_tokens_of_a_grammar_samples_none() -> None:
    core, request = core_of(40, lookahead=1, grammar="any")
    first, second = planned(core), planned(core)
    complete(core, first, [1, 2, 3, 4, 5, 6], 0)
    assert core.complete(StepDone(second.step.step, [], [], [], 0.0, 0.0)) == []
    assert request.table is not None
    assert request.table.n_computed == 9
    assert [run.n for run in planned(core).step.run] == [2]


def test_drafts_get_what_prompts_leave() -> None:
    core, _ = core_of(20)
    core.submit(Request(2, list(range(200, 214)), 4))
    plan = planned(core)
    assert {run.row: run.n for run in plan.step.run} == {1: 14, 0: 3}
    assert (plan.n_prefill_tokens, plan.n_decodes) == (14, 1)


def crowd_of(n: int, **more: int) -> Core:
    """A core with `n` decoding rows."""
    core = Core(BUDGET._replace(**more))  # type: ignore[arg-type]
    for number in range(n):
        core.submit(Request(number, [100 + number] * 4, 20))
    while core.waiting or any(one.n_planned < one.n_prompt for one in core.running):
        plan = planned(core)
        done = [Sampled(one.row, [7]) for one in core.running if one.n_planned >= one.n_prompt]
        core.complete(StepDone(plan.step.step, done, [], [], 0.0, 0.0))
    return core


def counts(plan: Plan) -> list[int]:
    return sorted((run.n for run in plan.step.run), reverse=True)


@pytest.mark.parametrize(
    ("n_rows", "most", "expected"),
    [(3, 32, [4, 4, 4]), (4, 9, [4, 3, 3, 3]), (4, 5, [3, 2, 2, 2]), (4, 2, [2, 2, 1, 1])],
)
def test_drafts_that_are_short_are_shared_out_evenly(
    n_rows: int, most: int, expected: list[int]
) -> None:
    core = crowd_of(n_rows, max_batch_prefill_tokens=most)
    assert counts(planned(core)) == expected
    core = crowd_of(n_rows, max_logits=most)
    assert counts(planned(core)) == expected


def test_scored_prompts_and_drafts_have_no_more_logits_than_one_of_them_may() -> None:
    core = crowd_of(2, max_logits=7)
    core.submit(Request(9, list(range(200, 205)), 4, prompt_logprobs=True))
    plan = planned(core)
    assert {run.row: run.n for run in plan.step.run} == {0: 2, 1: 2, 2: 5}
    assert plan.n_prefill_tokens == 5


def test_a_row_drafts_when_its_prompt_is_scored() -> None:
    core = Core(BUDGET._replace(lookahead=1))
    core.submit(Request(1, list(range(100, 104)), 20, prompt_logprobs=True))
    first = planned(core)
    assert counts(planned(core)) == [1]
    complete(core, first, [7])
    assert counts(planned(core)) == [4]


def test_a_row_under_a_grammar_drafts() -> None:
    core, _ = core_of(20, grammar="any")
    assert counts(planned(core)) == [4]


def test_drafts_behind_a_stop_sequence_are_neither_shown_nor_charged_nor_cached() -> None:
    core, request = core_of(20, text_end=lambda tokens: 2 if tokens[:2] == [1, 2] else None)
    core.submit(Request(2, [5] * 9, 4))  # so that the counter lives on
    plan = planned(core)
    charged = core.waiting.counter("")
    assert charged is not None
    found = [Sampled(0, [1, 2, 3, 4], n_computed=3, n_drafts=3), Sampled(1, [6])]
    events = core.complete(StepDone(plan.step.step, found, [], [], 0.0, 0.0))
    tokens = [one for one in events if isinstance(one, TokenEvent)]
    assert [one.token for one in tokens] == [6, 1, 2]
    assert [one.finish_reason for one in tokens] == [None, None, "stop_sequence"]
    assert request.tokens[-2:] == [1, 2]
    assert core.blocks.n_cached == 1  # positions 4 to 7 were computed, and the last two not shown
    assert core.waiting.counter("") == charged + 3 * OUTPUT_COST * UNIT
    assert (request.n_drafts, request.n_accepted) == (3, 2)


def test_rejected_drafts_are_free() -> None:
    core, _ = core_of(20)
    charged = core.waiting.counter("")
    assert charged is not None
    complete(core, planned(core), [1, 2], 1, n_drafts=3)
    assert core.waiting.counter("") == charged + 2 * OUTPUT_COST * UNIT


def test_a_row_is_admitted_with_its_tenant() -> None:
    core = Core(BUDGET)
    core.submit(Request(1, [1, 2], 3, tenant="ann"))
    assert [one.tenant for one in planned(core).step.admit] == ["ann"]


def test_a_request_knows_what_it_gained() -> None:
    core, request = core_of(20)
    complete(core, planned(core), [1, 2], 1, n_drafts=3)
    complete(core, planned(core), [3], 0, n_drafts=2)
    complete(core, planned(core), [4], 0)
    assert (request.n_drafts, request.n_accepted) == (5, 1)


def test_no_more_is_accepted_than_was_asked_for() -> None:
    core, request = core_of(20)
    plan = planned(core)
    with pytest.raises(UnexpectedResult, match="beyond step"):
        complete(core, plan, [1, 2, 3, 4, 5], 4)
    with pytest.raises(UnexpectedResult, match="were no drafts"):
        complete(core, plan, [1, 2, 3], 2, n_drafts=1)
    with pytest.raises(UnexpectedResult, match="no grammar that forces them"):
        complete(core, plan, [1, 2, 3], 1)
    assert request.n_emitted == 1
