"""The model that draft models of tests are for, as far as they know it."""

from __future__ import annotations

import torch

from tests.helpers.tiny_drafts import HIDDEN
from tests.helpers.tiny_llama import VOCABULARY
from workers.draft_models.checkpoint import TargetModel

HEAD = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(9))
TARGET = TargetModel(
    lambda hidden: hidden.to(HEAD.dtype) @ HEAD.t(),
    HIDDEN,
    VOCABULARY,
    torch.float32,
    torch.device("cpu"),
)


def hidden_states(n: int) -> torch.Tensor:
    """[n, hidden]"""
    return torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(1))
