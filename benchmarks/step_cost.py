"""The cost of the scheduler's core alone: microseconds a step, for texts of any length.

    python -m benchmarks.step_cost --requests 256 --lengths 64 8192 --json

`plan` makes a step of one decode for every running request, one step ahead; `complete` accounts its
result. `long prompt` is one plan that admits a prompt whose prefix is all in the cache, and one
plan while such a prompt waits because it does not fit; `lookup` is such an admission among more and
more cached prompts, and of longer and longer ones. No worker, no sockets: tokens are made up.

Calls of functions and memory blocks held afterwards are counted too, for each row of a step: these
do not depend on the machine, and a test holds them.
"""

from __future__ import annotations

import argparse
import gc
from statistics import median, quantiles
from time import perf_counter

import msgspec

from benchmarks.calls import Calls, allocated_blocks
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request
from tgi_async.wire.messages import CachePool, Sampled, Step, StepDone

BLOCK_SIZE = 16


class Cost(msgspec.Struct):
    """Costs in microseconds."""

    median: float
    p99: float

    def __str__(self) -> str:
        return f"{self.median:.0f} ({self.p99:.0f})"

    @classmethod
    def of(cls, seconds: list[float]) -> Cost:
        return cls(round(median(seconds) * 1e6, 1), round(quantiles(seconds, n=100)[98] * 1e6, 1))


class Decodes(msgspec.Struct):
    requests: int
    length: int
    drafts: int
    """Most of a row, none of which is accepted."""
    plan: Cost
    complete: Cost
    step: Cost


class Counts(msgspec.Struct):
    """Counts for each decode of a step."""

    requests: int
    drafts: int
    plan_calls: float
    complete_calls: float
    blocks: float


class LongPrompt(msgspec.Struct):
    tokens: int
    admits: Cost
    """A plan that admits it, all but its last block a hit."""
    waits: Cost
    """A plan while it waits for blocks. Only the first of them walks the cache: that is the p99."""


class Lookup(msgspec.Struct):
    prompts: int
    """In the cache."""
    tokens: int
    """Of each."""
    admits: Cost
    """A plan that admits one of them."""


class MadeUpWorker:
    """Knows which rows sample, and gives them any token. It refuses all drafts."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        """Known tokens of each row that are not computed yet."""

    def execute(self, step: Step) -> StepDone:
        for admit in step.admit:
            self.left[admit.row] = len(admit.tokens) - admit.n_cached
        sampled = []
        for run in step.run:
            known = min(run.n, self.left[run.row])
            self.left[run.row] -= known
            if self.left[run.row] == 0:
                self.left[run.row] = 1
                token = (step.step * 7919 + run.row) % 32000
                sampled.append(Sampled(run.row, [token], n_drafts=run.n - known))
        return StepDone(step.step, sampled, [], [], 0.0, 0.0)


def prompt(number: int, length: int) -> list[int]:
    return [(number * 104729 + position * 31) % 32000 for position in range(length)]


def run(core: Core, worker: MadeUpWorker) -> None:
    """Plan a step and complete it with a result."""
    plan = core.plan()
    assert plan is not None
    core.complete(worker.execute(plan.step))


def decoding(
    n_requests: int, length: int, n_steps: int, max_drafts: int = 0
) -> tuple[Core, MadeUpWorker]:
    """Return a core whose requests all have prompts of `length` tokens and decode for `n_steps`
    more."""
    n_prefill = max(8192, length)
    # The first admitted decode while the last are prefilled, half of the budget a step.
    n_new = n_steps + 8 + 2 * n_requests * length // n_prefill + 2 * max_drafts
    most = length + n_new
    core = Core(
        Budget(
            pools=[CachePool(n_requests * (most // BLOCK_SIZE + 2))],
            block_size=BLOCK_SIZE,
            max_rows=n_requests,
            max_batch_prefill_tokens=n_prefill,
            max_total_tokens=most,
            max_drafts=max_drafts,
            max_logits=n_requests * max(1, max_drafts),
        )
    )
    worker = MadeUpWorker()
    for number in range(n_requests):
        core.submit(Request(number, prompt(number, length), n_new, client=str(number % 16)))
    while core.waiting:
        run(core, worker)
    return core, worker


def measure_decodes(n_requests: int, length: int, n_steps: int, max_drafts: int = 0) -> Decodes:
    core, worker = decoding(n_requests, length, n_steps, max_drafts)
    plans: list[float] = []
    completes: list[float] = []
    gc.collect()
    gc.freeze()
    ahead = core.plan()
    for _ in range(n_steps):
        start = perf_counter()
        plan = core.plan()
        plans.append(perf_counter() - start)
        assert ahead is not None
        assert plan is not None
        assert len(plan.step.run) == n_requests
        done = worker.execute(ahead.step)
        start = perf_counter()
        core.complete(done)
        completes.append(perf_counter() - start)
        ahead = plan
    steps = [one + other for one, other in zip(plans, completes, strict=True)]
    costs = Cost.of(plans), Cost.of(completes), Cost.of(steps)
    return Decodes(n_requests, length, max_drafts, *costs)


def count_decodes(n_requests: int, length: int, n_steps: int, max_drafts: int = 0) -> Counts:
    """Count the work of decodes. `n_steps` is a multiple of the block size, to fill whole blocks
    only."""
    core, worker = decoding(n_requests, length, 2 * n_steps, max_drafts)
    plans, completes = Calls(), Calls()
    ahead = core.plan()
    for _ in range(n_steps):
        with plans:
            plan = core.plan()
        assert ahead is not None
        done = worker.execute(ahead.step)
        with completes:
            core.complete(done)
        ahead = plan
    n_blocks = allocated_blocks()
    for _ in range(n_steps):
        plan = core.plan()
        assert ahead is not None
        core.complete(worker.execute(ahead.step))
        ahead = plan
    n_blocks = allocated_blocks() - n_blocks
    n = n_requests * n_steps
    calls = round(plans.n / n, 2), round(completes.n / n, 2)
    return Counts(n_requests, max_drafts, *calls, round(n_blocks / n, 2))


def measure_long_prompt(length: int, n_plans: int = 20) -> LongPrompt:
    core = Core(
        Budget(
            pools=[CachePool(length // BLOCK_SIZE + 4)],
            block_size=BLOCK_SIZE,
            max_rows=4,
            max_batch_prefill_tokens=length,
            max_total_tokens=length + 64,
        )
    )
    worker = MadeUpWorker()
    admissions = []
    core.submit(Request(0, prompt(0, length), 1))
    run(core, worker)
    for number in range(1, 1 + n_plans):
        core.submit(Request(number, prompt(0, length), 1))
        start = perf_counter()
        plan = core.plan()
        admissions.append(perf_counter() - start)
        assert plan is not None
        assert plan.n_prefill_tokens <= BLOCK_SIZE
        core.complete(worker.execute(plan.step))
    core.submit(Request(-1, prompt(1, 100), n_plans + 1))
    run(core, worker)
    core.submit(Request(-2, prompt(0, length), 1))
    waits = []
    for _ in range(n_plans):
        start = perf_counter()
        plan = core.plan()
        waits.append(perf_counter() - start)
        assert plan is not None
        assert not plan.admitted
        core.complete(worker.execute(plan.step))
    return LongPrompt(length, Cost.of(admissions), Cost.of(waits))


def measure_lookup(n_prompts: int, length: int, n_plans: int = 200) -> Lookup:
    core = Core(
        Budget(
            pools=[CachePool(n_prompts * (length // BLOCK_SIZE + 1))],
            block_size=BLOCK_SIZE,
            max_rows=1,
            max_batch_prefill_tokens=length,
            max_total_tokens=length + 1,
        )
    )
    worker = MadeUpWorker()
    for number in range(n_prompts):
        core.submit(Request(number, prompt(number, length), 1))
        run(core, worker)
    gc.collect()
    gc.freeze()
    admissions = []
    for number in range(n_plans):
        core.submit(Request(n_prompts + number, prompt(number * 7919 % n_prompts, length), 1))
        start = perf_counter()
        plan = core.plan()
        admissions.append(perf_counter() - start)
        assert plan is not None
        assert plan.n_prefill_tokens <= BLOCK_SIZE
        core.complete(worker.execute(plan.step))
    return Lookup(n_prompts, length, Cost.of(admissions))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the scheduler's core costs, alone.")
    parser.add_argument("--requests", type=int, default=256, help="running decodes")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 8192], help="tokens of each")
    parser.add_argument("--drafts", type=int, default=8, help="of each, in one of two measurements")
    parser.add_argument("--steps", type=int, default=500, help="steps measured for each length")
    parser.add_argument(
        "--long-prompt", type=int, default=100_000, help="tokens of the long prompt"
    )
    parser.add_argument(
        "--cached", type=int, nargs="+", default=[10, 1000, 10_000], help="prompts in the cache"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    drafts = (0, given.drafts)
    decodes = [
        measure_decodes(given.requests, length, given.steps, n)
        for length in given.lengths
        for n in drafts
    ]
    counts = [count_decodes(given.requests, 64, 8 * BLOCK_SIZE, n) for n in drafts]
    long_prompt = measure_long_prompt(given.long_prompt)
    lookups = [measure_lookup(n, 256) for n in given.cached]
    lookups += [measure_lookup(10, length) for length in (1024, 4096, 16_384)]
    if given.json:
        report = {
            "unit": "microseconds",
            "decodes": decodes,
            "counts": counts,
            "long_prompt": long_prompt,
            "lookups": lookups,
        }
        print(msgspec.json.encode(report).decode())
        return
    print("microseconds, median (99th percentile)")
    for one in decodes:
        print(
            f"{one.requests} decodes of {one.length} tokens, {one.drafts} drafts: "
            f"plan {one.plan}, complete {one.complete}, step {one.step}"
        )
    for counted in counts:
        print(
            f"a row of {counted.requests} decodes, {counted.drafts} drafts: "
            f"{counted.plan_calls} calls to plan, {counted.complete_calls} to complete, "
            f"{counted.blocks} memory blocks held"
        )
    print(
        f"prompt of {long_prompt.tokens} tokens in the cache: "
        f"plan that admits it {long_prompt.admits}, plan while it waits {long_prompt.waits}"
    )
    for lookup in lookups:
        print(
            f"one of {lookup.prompts} cached prompts of {lookup.tokens} tokens: "
            f"plan that admits it {lookup.admits}"
        )


if __name__ == "__main__":
    main()
