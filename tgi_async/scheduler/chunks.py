"""How many prompt tokens a step computes beside decodes.

Every decoding row waits for the whole step, so the chunk decides between two texts' pace and a
prompt's: a larger one reads the weights once for more tokens, and holds up each decode for longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from tgi_async.wire.messages import StepCost
from tgi_async.wire.step_costs import StepCosts

LEAST_RATE = 0.85
"""Of the rate that prompts have in the largest chunks."""
LEAST_TOKENS = 16
"""Of a chunk, which is whole blocks."""
MOST_SIZES = 64
"""How many sizes are tried."""


def chunks_beside_decodes(
    costs: Sequence[StepCost], target: float, largest: int, block_size: int, max_rows: int
) -> list[int]:
    """Return the most prompt tokens of a step beside one decode, beside two, and so on up to
    `max_rows`; nothing where `costs`, of a chunk alone by its tokens, were not measured.

    Each is the largest chunk with which the step takes at most `target` seconds, or a larger one
    where prompts would lose too much: they keep `LEAST_RATE` of the tokens a second that chunks of
    `largest` tokens give. A decode counts as one more position.
    """
    if len(costs) < 2:
        return []
    curve = StepCosts(costs)
    least = max(LEAST_TOKENS, -(-largest // MOST_SIZES))
    unit = block_size * -(-least // block_size)
    sizes = [*range(unit, largest, unit), largest]
    return [_chunk(curve, target, sizes, n_decodes) for n_decodes in range(1, max_rows + 1)]


def _chunk(curve: StepCosts, target: float, sizes: Sequence[int], n_decodes: int) -> int:
    largest = sizes[-1]
    wanted = LEAST_RATE * largest / max(curve.seconds(largest + n_decodes), 1e-9)
    chosen = largest
    for size in reversed(sizes):
        seconds = curve.seconds(size + n_decodes)
        if size < wanted * seconds:
            break
        chosen = size
        if seconds <= target:
            break
    return chosen
