"""Servers that faults happen to, and what their clients read meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from tests.doubles import faulty_server
from tests.doubles.fake_engine_run import ROOT
from tests.doubles.faulty_worker import VARIABLE, Plan
from tests.faults.asked import Answer, Asked, Timed, read_timed
from tests.faults.fault import Fault, Needs
from tests.integration.server import Server

WITHIN = (40, 300)
"""Events after which a signal is sent, of some thousand."""
MISSED_SECONDS = 60.0


class Configuration(NamedTuple):
    """What is served, and how."""

    n_ranks: int = 1
    transformers: bool = False
    quantized: bool = False
    drafts: bool = False
    images: bool = False
    pressure: bool = False
    """Whether the cache is so small that requests are preempted."""

    @property
    def name(self) -> str:
        parts = ["2 ranks" if self.n_ranks == 2 else "1 rank"]
        parts += [name for name in self._fields[1:] if getattr(self, name)]
        return ", ".join(parts)

    @property
    def has(self) -> set[Needs]:
        found: set[Needs] = {"ranks"} if self.n_ranks > 1 else set()
        return found | ({"drafts"} if self.drafts else set())

    def flags(self) -> list[str]:
        flags = ["--dtype", "float32", "--max-concurrent-requests", "64"]
        flags += ["--num-shard", str(self.n_ranks)]
        flags += ["--model-impl", "transformers"] if self.transformers else []
        flags += ["--quantize", "int8"] if self.quantized else []
        flags += ["--speculate", "4"] if self.drafts else []
        flags += ["--max-batch-total-tokens", "1024"] if self.pressure else []
        return flags


CONFIGURATIONS = (
    Configuration(1),
    Configuration(2, transformers=True, quantized=True),
    Configuration(2, transformers=True, drafts=True, pressure=True),
    Configuration(2, quantized=True, images=True, pressure=True),
    Configuration(1, transformers=True, drafts=True, images=True),
    Configuration(1, quantized=True, drafts=True, images=True, pressure=True),
)
"""Any two choices come together in one of them."""


class FaultyServer(Server):
    """A server over workers that fail as planned."""

    plan_file: Path

    @classmethod
    @contextmanager
    def serving(cls, folder: Path | None, path: Path, *flags: str) -> Iterator[FaultyServer]:
        """Serve the model of `folder`, or the embedded one; files go to `path`."""
        plan_file = path / "plan"
        model = () if folder is None else ("--model-id", str(folder))
        with cls.running(
            path / "log",
            *model,
            *flags,
            command=faulty_server.COMMAND,
            variables={VARIABLE: str(plan_file), "TGI_ASYNC_LOG": None},
            cwd=ROOT,
        ) as server:
            assert isinstance(server, FaultyServer)
            server.plan_file = plan_file
            yield server

    def arm(self, plan: Plan) -> None:
        """Have the next worker that comes there carry out this plan."""
        self.happened_file.unlink(missing_ok=True)
        new = self.plan_file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(plan))
        new.rename(self.plan_file)

    def disarm(self) -> None:
        self.plan_file.unlink(missing_ok=True)

    @property
    def happened_file(self) -> Path:
        return Path(f"{self.plan_file}.done")

    def restarts(self) -> float:
        return self.gauges()["tgi_async_worker_restarts"]

    def wait_for_others(self, n_restarts: float) -> None:
        """Wait until workers were started again since there were so many restarts."""
        until = time.monotonic() + MISSED_SECONDS
        while self.restarts() == n_restarts or httpx.get(f"{self.url}/health").is_error:
            assert time.monotonic() < until, "the workers do not come back"
            time.sleep(0.1)


class Outcome(NamedTuple):
    """What came of a fault."""

    fault: Fault
    n_streams: int
    wrong: list[str]
    """How streams ended that did not end with their undisturbed answer."""
    pauses: list[float]
    """Of the streams that were going on, in seconds."""
    n_restarts: int

    @property
    def n_equal(self) -> int:
        return self.n_streams - len(self.wrong)


async def read_all(server: Server, requests: Sequence[Asked]) -> list[Answer]:
    """What all of them get, together and undisturbed."""
    async with server.client() as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_timed(client, one)) for one in requests]
    return [task.result().answer for task in tasks]


async def under(
    fault: Fault,
    server: FaultyServer,
    requests: Sequence[Asked],
    undisturbed: Sequence[Answer],
    draw: random.Random,
) -> Outcome:
    """Read all while the fault happens. Raises AssertionError where it does not."""
    plan = fault.plan(draw)
    while True:
        before = server.restarts()
        found, struck = await _strike(fault, plan, server, requests, draw.randint(*WITHIN))
        if plan is None:
            break
        if server.happened_file.exists():
            struck = struck or float(server.happened_file.read_text())
            break
        # All was over before.
        if struck:
            # The signal met workers without work.
            await asyncio.to_thread(server.wait_for_others, before)
        elif plan.after == 1:
            break
        else:
            plan = msgspec.structs.replace(plan, after=plan.after // 2)
    assert struck, f"{fault.name} did not happen"
    wrong: list[str] = []
    pauses: list[float] = []
    for one, request, due in zip(found, requests, undisturbed, strict=True):
        if isinstance(one, BaseException):
            wrong.append(f"{fault.name}: {request.kind}: {one!r}")
            continue
        if difference := one.answer.differs(due):
            wrong.append(f"{fault.name}: {request.kind}: {difference}")
        pause = one.pause(struck)
        if pause is not None:
            pauses.append(pause)
    n_restarts = round(server.restarts() - before)
    return Outcome(fault, len(requests), wrong, pauses, n_restarts)


async def _strike(
    fault: Fault, plan: Plan | None, server: FaultyServer, requests: Sequence[Asked], at: int
) -> tuple[list[Timed | BaseException], float]:
    """Read all, with the plan, and with the signal at this event. Return also when the signal was
    sent, 0 if none was."""
    if plan is not None:
        server.arm(plan)
    struck = 0.0
    left = at

    def on_event() -> None:
        nonlocal left, struck
        left -= 1
        if fault.signal and left == 0:
            os.kill(server.worker_pids()[fault.rank], fault.signal)
            struck = time.monotonic()

    async with server.client() as client:
        found: list[Timed | BaseException] = await asyncio.gather(
            *(read_timed(client, one, on_event) for one in requests), return_exceptions=True
        )
    return found, struck


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of a table in Markdown: a line a kind of fault."""
    lines = [
        "| fault | n | streams equal | restarts | pause p50 | p99 | longest |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys(one.fault.name for one in outcomes)
    for name in [*kinds, ""]:
        some = [one for one in outcomes if name in ("", one.fault.name)]
        pauses = sorted(pause for one in some for pause in one.pauses)
        n_equal = f"{sum(one.n_equal for one in some)} of {sum(one.n_streams for one in some)}"
        cells: list[Any] = [name or "all", len(some), n_equal]
        cells.append(sum(one.n_restarts for one in some))
        cells += [f"{_share(pauses, share):.2f} s" if pauses else "" for share in (0.5, 0.99, 1.0)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _share(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them, in order, does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))]
