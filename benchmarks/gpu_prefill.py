"""Prompts through a worker, without HTTP, against the device's rate of multiplication.

Prompts follow each other without a pause, in the chunks of a step that the worker asks for. Counted
are the operations that a forward pass cannot do without: the products of all tokens with the
layers, attention to what each token sees, and one position through the head.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_rates import Rates
from benchmarks.gpu_report import Report
from benchmarks.gpu_worker import Driver, Mark, Pool, Steps, start_of
from benchmarks.roofline import Sizes, need
from tgi_async.wire.messages import Ready, Run, Step
from workers.models.description import read_config, sizes_of

WARM = 2
COLUMNS = {
    "prompts": "d",
    "tokens": "d",
    "ms": ".2f",
    "TFLOP/s": ".3f",
    "share": ".1%",
    "tok/s": ".0f",
}


class Prompts(NamedTuple):
    """Prompts that are prefilled together, in as few steps as possible."""

    rows: int
    tokens: int


class Prefills:
    def __init__(
        self,
        folder: Path,
        cases: list[Prompts],
        passes: int,
        rates: Rates,
        report: Report,
        attention: str = "auto",
    ) -> None:
        self._cases, self._passes = cases, passes
        self._rates, self._report = rates, report
        self._sizes = Sizes.of(folder)
        self._config = sizes_of(read_config(folder, trust_remote_code=False))
        longest = max(case.tokens for case in cases) + 1
        most = max(case.rows for case in cases)
        self._driver = Driver(start_of(folder, attention, most, longest))

    def run(self) -> None:
        """Run the part. Raises RuntimeError where the worker refuses the model, or a row fails."""
        self._driver.run(self._plan)

    def _plan(self, driver: Driver, ready: Ready) -> Steps:
        pool = Pool(ready)
        table = self._report.table("prefill", COLUMNS)
        for case in self._cases:
            if pool.needed(*case) > pool.n_blocks:
                self._report.note(f"{case.rows} prompts of {case.tokens} do not fit in the cache")
                continue
            table.add((yield from self._timed(case, pool, ready.max_batch_prefill_tokens)))

    def _timed(
        self, case: Prompts, pool: Pool, budget: int
    ) -> Generator[Step | None, None, dict[str, Any]]:
        clock = self._driver.clock
        marks: list[Mark] = []
        for number in range(WARM + self._passes):
            if number >= WARM:
                marks.append(clock.mark())
            yield from self._prefill(case, pool, budget)
        marks.append(clock.mark())
        yield None

        took = statistics.median(clock.seconds(marks))
        operations = need(self._config, self._sizes, *case, case.tokens).operations
        return {
            "prompts": case.rows,
            "tokens": case.tokens,
            "ms": took * 1e3,
            "TFLOP/s": operations / took / 1e12,
            "share": operations / took / self._rates.product,
            "tok/s": case.rows * case.tokens / took,
        }

    def _prefill(self, case: Prompts, pool: Pool, budget: int) -> Steps:
        """Prefill all prompts of a case once."""
        left = dict.fromkeys(range(case.rows), case.tokens)
        blocks = pool.rows(*case)
        admit = [pool.admit(row, case.tokens, 0, blocks[row]) for row in left]
        while left:
            room = budget
            run: list[Run] = []
            while left and room:
                row = next(iter(left))
                n = min(left[row], room)
                run.append(Run(row, n))
                room -= n
                left[row] -= n
                if not left[row]:
                    del left[row]
            yield self._driver.step(run, admit)
            admit = []
        self._driver.leave(case.rows)
