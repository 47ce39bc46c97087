"""Token ids that the model does not have, in a batch with a row of somebody else."""

from __future__ import annotations

import pytest
import torch

from tgi_async.wire.messages import Sampled, Sampling
from workers.sampling import Sampler

V = 300
BEYOND = [V, V + 1, 2 * V - 1, 2**31 - 1]
"""V + i is where the next row's logits begin, in memory."""
PROMPT = [5, 9, 9]
ATTACKS = {
    "biases": Sampling(biased_ids=[V - 1, *BEYOND], biases=[100.0] * 5),
    "negative biases": Sampling(biased_ids=BEYOND, biases=[-100.0] * 4),
    "bans": Sampling(banned=[[one] for one in BEYOND]),
    "longer bans": Sampling(banned=[*([9, one] for one in BEYOND), *([one, 9] for one in BEYOND)]),
    "ends": Sampling(min_tokens=9, end_ids=BEYOND),
}


def sampled(asked: Sampling, place: int) -> Sampled:
    """What the witness gets beside a row that asks for this, before or behind it."""
    made = Sampler(2, V, torch.device("cpu"))
    rows = [0, 1]
    for row in rows:
        mine = Sampling(logprobs=True, top_n_tokens=5) if row == place else asked
        made.admit(row, mine, PROMPT, len(PROMPT))
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(3)) * 4
    logits[place] = torch.randn(V, generator=torch.Generator().manual_seed(4)) * 4
    found, errors = made.to_wire(rows, made.sample(rows, [3, 3], logits))
    assert not errors
    assert all(0 <= one.tokens[0] < V for one in found)
    return found[place]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ATTACKS)
def test_ids_beyond_the_vocabulary_touch_no_other_row(name: str, place: int) -> None:
    """PYSEC-2026-4000, CVE-2026-93840, CVE-2026-116181."""
    alone, beside = sampled(Sampling(), place), sampled(ATTACKS[name], place)
    assert (beside.tokens, beside.logprobs, beside.top) == (
        alone.tokens,
        alone.logprobs,
        alone.top,
    )


def test_the_last_of_the_vocabulary_can_be_favoured() -> None:
    made = Sampler(1, V, torch.device("cpu"))
    made.admit(0, ATTACKS["biases"], PROMPT, len(PROMPT))
    found, _ = made.to_wire([0], made.sample([0], [3], torch.zeros(1, V)))
    assert found[0].tokens == [V - 1]
