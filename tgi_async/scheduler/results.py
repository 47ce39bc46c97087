"""Check that a worker's results match the steps in flight."""

from __future__ import annotations

from typing import NamedTuple

from tgi_async.scheduler.plan import ScheduledRow
from tgi_async.wire.messages import Sampled, StepDone


class InFlight(NamedTuple):
    step: int
    scheduled_rows: list[ScheduledRow]

    def __str__(self) -> str:
        """Return the shapes of the step, without what is in it."""
        rows = self.scheduled_rows
        several = sorted((row.n for row in rows if row.n > 1), reverse=True)
        shown = ", ".join(map(str, several[:8])) + (", ..." if several[8:] else "")
        longest = max(row.table.n_computed + row.n for row in rows)
        return (
            f"step {self.step} ({len(rows)} rows up to position {longest}"
            f"{f', {len(several)} of them with {shown} tokens' if several else ''})"
        )


class UnexpectedResult(Exception):
    """A worker's reply does not fit the step that was sent."""


def check_result(
    done: StepDone,
    scheduled_rows: list[ScheduledRow],
    sampled: dict[int, Sampled],
    failed: dict[int, str],
) -> None:
    """Check that the rows of a result are those that the step was to sample.

    Each has a token, an error, or a mask that is not ready; no other row has anything. No more
    drafts were verified than were asked for, and no more accepted than verified. Only a row with a
    grammar has jump-forward tokens behind it, or a mask that is not ready. Log-probabilities of
    prompt tokens are of tokens that the prompt has.

    Raises UnexpectedResult.
    """
    rows = {one.row: one for one in scheduled_rows}
    sampling = {one.row for one in scheduled_rows if one.samples}
    if done.masks_not_ready:
        postponed = set(done.masks_not_ready)
        free = {one.row for one in scheduled_rows if not one.request.grammar}
        if strange := (postponed - sampling) | (
            postponed & (free | sampled.keys() | failed.keys())
        ):
            raise UnexpectedResult(f"rows {sorted(strange)} need no mask in step {done.step}")
        sampling -= postponed
    for one in done.sampled:
        if one.n_drafts:
            scheduled = rows.get(one.row)
            if scheduled is not None and one.n_drafts > scheduled.n_drafts:
                raise UnexpectedResult(f"row {one.row} verified drafts beyond step {done.step}")
        if not (one.tokens[1:] or one.n_computed or one.logprobs[1:] or one.top[1:]):
            continue  # a single token, the common case
        n = len(one.tokens)
        scheduled = rows.get(one.row)
        if scheduled is None:
            continue  # which is found below
        if one.n_computed > min(one.n_drafts, n - 1):
            raise UnexpectedResult(f"row {one.row} computed tokens that were no drafts")
        if n > one.n_computed + 1 and not scheduled.request.grammar:
            raise UnexpectedResult(f"row {one.row} has {n} tokens and no grammar that forces them")
        if len(one.logprobs) not in (0, n) or len(one.top) > n:
            raise UnexpectedResult(f"row {one.row} has {n} tokens, and log-probabilities of others")
    if len(sampled) != len(done.sampled):
        raise UnexpectedResult(f"a row has two results in step {done.step}")
    if lacking := sampling - sampled.keys() - failed.keys():
        raise UnexpectedResult(f"rows {sorted(lacking)} have no token in step {done.step}")
    if extra := sampled.keys() - sampling - failed.keys():
        raise UnexpectedResult(f"rows {sorted(extra)} do not sample in step {done.step}")
    if strange := (failed.keys() | {one.row for one in done.prompt_logprobs}) - rows.keys():
        raise UnexpectedResult(f"rows {sorted(strange)} are not in step {done.step}")
    for scores in done.prompt_logprobs:
        n_prompt = rows[scores.row].request.n_prompt
        if scores.start < 1 or scores.start + len(scores.logprobs) > n_prompt:
            raise UnexpectedResult(f"row {scores.row} has scores beyond its prompt of {n_prompt}")
