"""A step on its way through the runner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import PromptLogprobs, RowError
from workers.sampling import SamplerOutput
from workers.table import Row


class Forwarded(NamedTuple):
    """Rows whose next token is to be sampled."""

    rows: list[int]
    logits: torch.Tensor
    """[len(rows), V]"""
    masks: list[NDArray[np.int32] | None]
    """What their grammars allow, of those that have one."""


@dataclass(slots=True)
class Launched:
    """A step whose results may still be on their way on the device."""

    step: int
    rows: dict[int, Row]
    """What the step is about. Its row numbers may be others' by the time it is collected."""
    forwarded: list[Forwarded] = field(default_factory=list)
    """What is left to be sampled; more than one entry only where rows had to run alone."""
    outputs: list[tuple[list[int], SamplerOutput]] = field(default_factory=list)
    """Rows that sampled, and what."""
    forced: dict[int, list[int]] = field(default_factory=dict)
    """All that a grammar forced at once, for rows where that is more than what is sampled."""
    late: list[int] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
