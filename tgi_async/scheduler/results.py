"""Steps in flight, and whether what comes back is their result."""

from __future__ import annotations

from typing import NamedTuple

from tgi_async.scheduler.plan import Part
from tgi_async.wire.messages import Sampled, StepDone


class InFlight(NamedTuple):
    step: int
    parts: list[Part]


class UnexpectedResult(Exception):
    """A worker's reply does not fit the step that was sent."""


def check_result(
    done: StepDone, parts: list[Part], sampled: dict[int, Sampled], failed: dict[int, str]
) -> None:
    """Every row that samples has a token or an error, and no other row has anything."""
    rows = {part.row for part in parts}
    sampling = {part.row for part in parts if part.samples}
    if len(sampled) != len(done.sampled):
        raise UnexpectedResult(f"a row has two tokens in step {done.step}")
    if lacking := sampling - sampled.keys() - failed.keys():
        raise UnexpectedResult(f"rows {sorted(lacking)} have no token in step {done.step}")
    if extra := sampled.keys() - sampling - failed.keys():
        raise UnexpectedResult(f"rows {sorted(extra)} do not sample in step {done.step}")
    if strange := (failed.keys() | {one.row for one in done.prompt_logprobs}) - rows:
        raise UnexpectedResult(f"rows {sorted(strange)} are not in step {done.step}")
