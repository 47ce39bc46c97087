from __future__ import annotations

import pytest
import torch

from workers.draft_models import heads
from workers.draft_models.heads import best, proposals
from workers.speculation.source import Proposal


def test_a_head_is_applied_to_a_part_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "AT_ONCE", 3)
    sizes: list[int] = []

    def head(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return torch.cat((x, -x), 1)

    states = torch.tensor([[1.0], [-1.0], [2.0], [-3.0]])
    assert best(head, states).tolist() == [0, 1, 0, 1]
    assert sizes == [3, 1]


def test_no_row_has_more_drafts_than_its_limit() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert proposals(tokens, [2, 9]) == [Proposal([1, 2]), Proposal([4, 5, 6])]
