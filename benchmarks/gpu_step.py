"""Decode steps of a worker, without HTTP, against the bytes that they read.

The floor is the time that a copy takes for as many bytes as the weights and the keys and values
have. `step` is the time from one step to the next, by the device's clock, steps handed over one
ahead. `idle` is the share of it in which the device waits for the host: what a step takes less when
it was launched while the device was kept busy. `between` is the share in which no kernel ran, the
moments between two kernels of a CUDA graph included; the kernels' own time comes from the profiler,
in steps after all others, because it slows down what it watches.
"""

from __future__ import annotations

import statistics
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_profile import Profile, profiled
from benchmarks.gpu_rates import Rates
from benchmarks.gpu_report import Report
from benchmarks.gpu_worker import Driver, Mark, Pool, Steps, start_of
from benchmarks.roofline import Sizes, need
from tgi_async.wire.messages import Ready, Run, Step
from workers.models.description import read_config, sizes_of

WARM, HELD, PROFILED = 6, 5, 6
"""Steps that are not timed, that are launched ahead of the device, and that are profiled."""
KERNELS_KEPT = 12
COLUMNS = {
    "rows": "d",
    "context": ".0f",
    "floor ms": ".3f",
    "step ms": ".3f",
    "share": ".1%",
    "host's ms": ".3f",
    "idle": ".1%",
    "tok/s": ".0f",
}
PROFILE_COLUMNS = {
    "rows": "d",
    "context": ".0f",
    "kernels": ".0f",
    "busy ms": ".3f",
    "between": ".1%",
}


class Case(NamedTuple):
    rows: int
    context: int


class Decodes:
    """Times of full batches of decodes."""

    def __init__(
        self,
        folder: Path,
        cases: list[Case],
        passes: int,
        rates: Rates,
        report: Report,
        attention: str = "auto",
    ) -> None:
        self._cases, self._passes = cases, passes
        self._rates, self._report = rates, report
        self._sizes = Sizes.of(folder)
        self._config = sizes_of(read_config(folder, trust_remote_code=False))
        self._steps = WARM + passes + HELD + 1
        longest = max(map(self._end, cases))
        most = max(case.rows for case in cases)
        self._driver = Driver(start_of(folder, attention, most, longest))
        self._periods: dict[Case, float] = {}

    def run(self) -> None:
        """Run the part. Raises RuntimeError where the worker refuses the model, or a row fails."""
        self._driver.run(self._plan)

    def _plan(self, driver: Driver, ready: Ready) -> Steps:
        phases = (f"{phase} {seconds:.1f} s" for phase, seconds in driver.phases.items())
        self._report.note(", ".join(phases))
        for note in ready.notes:
            self._report.note(note)
        pool = Pool(ready)
        longest = max(map(self._end, self._cases))
        if longest > ready.max_total_tokens:
            raise RuntimeError(
                f"{longest} tokens are needed, the model has {ready.max_total_tokens}"
            )
        fitting = [
            case for case in self._cases if pool.needed(case.rows, self._end(case)) <= pool.n_blocks
        ]
        for case in self._cases:
            if case not in fitting:
                self._report.note(f"{case.rows} rows of {case.context} do not fit in the cache")
        yield from self._fill(pool, ready, fitting)
        table = self._report.table("decode", COLUMNS)
        for case in fitting:
            yield from self._admit(pool, case)
            table.add((yield from self._timed(case)))
        table = self._report.table("kernels", PROFILE_COLUMNS)
        for case in fitting:
            yield from self._admit(pool, case)
            found = yield from self._profiled(case)
            table.add(
                {
                    "rows": case.rows,
                    "context": case.context,
                    "kernels": found.kernels,
                    "busy ms": found.busy * 1e3,
                    "between": 1 - min(1.0, found.busy / self._periods[case]),
                    "longest": found.longest(KERNELS_KEPT),
                }
            )

    def _end(self, case: Case) -> int:
        return case.context + self._steps

    def _fill(self, pool: Pool, ready: Ready, cases: list[Case]) -> Steps:
        """Write to every block that a case reads, as the content of unwritten ones is arbitrary."""
        n_blocks = max(pool.needed(case.rows, self._end(case)) for case in cases)
        each = max(1, min(ready.max_total_tokens // pool.block_size, n_blocks))
        for begin in range(0, n_blocks, each):
            blocks = list(range(begin, min(begin + each, n_blocks)))
            left = len(blocks) * pool.block_size
            admit = [pool.admit(0, left, 0, blocks)]
            while left:
                n = min(left, ready.max_batch_prefill_tokens)
                yield self._driver.step([Run(0, n)], admit)
                admit, left = [], left - n
            self._driver.leave(1)

    def _admit(self, pool: Pool, case: Case) -> Steps:
        """Return full rows, all of whose prompt but the last token was found in the prefix
        cache."""
        blocks = pool.rows(case.rows, self._end(case))
        rows = range(case.rows)
        admit = [pool.admit(row, case.context, case.context - 1, blocks[row]) for row in rows]
        yield self._driver.step([Run(row, 1) for row in rows], admit)
        for _ in range(WARM - 1):
            yield self._decode(case)

    def _decode(self, case: Case) -> Step:
        return self._driver.step([Run(row, 1) for row in range(case.rows)])

    def _timed(self, case: Case) -> Generator[Step | None, None, dict[str, Any]]:
        """Return the row of the table, and further figures."""
        clock = self._driver.clock
        marks: list[Mark] = []
        steps: list[int] = []
        for _ in range(self._passes):
            marks.append(clock.mark())
            step = self._decode(case)
            steps.append(step.step)
            yield step
        marks.append(clock.mark())
        held: list[tuple[Mark, Mark]] = []
        for _ in range(HELD if clock.on_gpu else 0):
            clock.hold()
            began = clock.mark()
            yield self._decode(case)
            held.append((began, clock.mark()))
        self._driver.leave(case.rows)
        yield None

        periods = clock.seconds(marks)
        step_time = self._periods[case] = statistics.median(periods)
        alone = [clock.seconds(pair)[0] for pair in held]
        context = case.context + WARM + self._passes / 2
        floor = need(self._config, self._sizes, case.rows, 1, context).bytes / self._rates.copy
        done = [self._driver.done[number] for number in steps]
        return {
            "rows": case.rows,
            "context": context,
            "floor ms": floor * 1e3,
            "step ms": step_time * 1e3,
            "share": floor / step_time,
            "host's ms": 1e3
            * statistics.median(one.forward_seconds + one.sample_seconds for one in done),
            "idle": max(0.0, 1 - statistics.median(alone) / step_time) if alone else None,
            "tok/s": case.rows / step_time,
            "best ms": min(periods) * 1e3,
            "worst ms": max(periods) * 1e3,
            "mean by the host's clock ms": (marks[-1].host - marks[0].host) / self._passes * 1e3,
        }

    def _profiled(self, case: Case) -> Generator[Step | None, None, Profile]:
        with profiled(self._driver.clock.on_gpu, PROFILED) as profile:
            for _ in range(PROFILED):
                yield self._decode(case)
            yield None
        self._driver.leave(case.rows)
        return profile
