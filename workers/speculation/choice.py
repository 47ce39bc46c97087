"""How many drafts are worth their cost."""

from __future__ import annotations

from collections.abc import Sequence

from tgi_async.wire.step_costs import StepCosts

MARGIN = 1.5
"""How many times what it was measured to cost a draft is taken to cost: those that are chosen are
rather the ones that are thought too well of."""


def least_chance(costs: StepCosts, n_positions: int, n_sampled: int, most: int) -> float:
    """Return the chance below which no draft pays, of up to `most` in a step; see
    `worth_verifying`."""
    now = costs.seconds(n_positions)
    if now <= 0:
        return 0.0
    return MARGIN * n_sampled / now * costs.least_slope(n_positions, n_positions + most)


def worth_verifying(
    chances: Sequence[Sequence[float]], costs: StepCosts, n_positions: int, n_sampled: int
) -> list[int]:
    """Return how many of its drafts each row verifies, for the most tokens a second.

    `chances` are each row's, falling: that a draft and all before it are accepted. Without drafts
    the step computes `n_positions` and samples `n_sampled` tokens.
    """
    counts = [0] * len(chances)
    most = sum(map(len, chances))
    now = costs.seconds(n_positions)
    if not most or now <= 0:
        return counts
    # One that does not pay where a position is cheapest never does. Most are dropped here, before
    # they cost anything.
    least = least_chance(costs, n_positions, n_sampled, most)
    order = sorted(
        ((chance, row) for row, own in enumerate(chances) for chance in own if chance >= least),
        reverse=True,
    )
    tokens = float(n_sampled)
    best, n_best = tokens / now, 0
    for n, (chance, _) in enumerate(order, 1):
        tokens += chance
        rate = tokens / (now + MARGIN * (costs.seconds(n_positions + n) - now))
        if rate > best:
            best, n_best = rate, n
    for _, row in order[:n_best]:
        counts[row] += 1
    return counts
