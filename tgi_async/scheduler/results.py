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
    """Every row that samples has a token or an error or is late, and no other row has anything.

    Only a row with a grammar is late, or has tokens that are forced.
    """
    rows = {part.row for part in parts}
    sampling = {part.row for part in parts if part.samples}
    if done.late:
        late = set(done.late)
        free = {part.row for part in parts if not part.request.grammar}
        if strange := (late - sampling) | (late & (free | sampled.keys() | failed.keys())):
            raise UnexpectedResult(f"rows {sorted(strange)} cannot be late in step {done.step}")
        sampling -= late
    for one in done.sampled:
        if one.forced and any(part.row == one.row and not part.request.grammar for part in parts):
            raise UnexpectedResult(f"row {one.row} has no grammar that forces tokens")
    if len(sampled) != len(done.sampled):
        raise UnexpectedResult(f"a row has two tokens in step {done.step}")
    if lacking := sampling - sampled.keys() - failed.keys():
        raise UnexpectedResult(f"rows {sorted(lacking)} have no token in step {done.step}")
    if extra := sampled.keys() - sampling - failed.keys():
        raise UnexpectedResult(f"rows {sorted(extra)} do not sample in step {done.step}")
    if strange := (failed.keys() | {one.row for one in done.prompt_logprobs}) - rows:
        raise UnexpectedResult(f"rows {sorted(strange)} are not in step {done.step}")


def spread(first: Sampled) -> list[Sampled]:
    """A sampled token and those that its grammar forced after it, each by itself.

    A token that could not have been another has the log-probability 0.
    """
    logprob = None if first.logprob is None else 0.0
    return [first, *(Sampled(first.row, token, logprob) for token in first.forced)]
