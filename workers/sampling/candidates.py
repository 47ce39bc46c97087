"""The likeliest tokens of each row, in an order that is the same on every device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_GROUPS = 16


class Candidates(NamedTuple):
    """The `width` likeliest tokens, by falling score and, where scores are equal, by rising id.

    Tokens that tie with the last one may be missing while others of that score are present, so a
    caller must not rely on the last score unless the whole vocabulary is there.
    """

    scores: Tensor
    """float32 [n, width]"""
    ids: Tensor
    """int64 [n, width]"""


def candidates(scores: Tensor, width: int) -> Candidates:
    """Return the first `width` tokens of each line of `scores` (float32 [n, V], contiguous)."""
    if width >= scores.shape[1]:
        ids = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    else:
        ids = _largest(scores, width)
    found = scores.gather(1, ids) + 0.0  # -0.0 equals 0.0, but not in its bits
    bits = found.view(torch.int32)
    # An integer that sorts as the float does: flip the magnitude of negative numbers.
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ids = _sorted((~rising).long() << 32 | ids) & 0xFFFFFFFF
    return Candidates(scores.gather(1, ids), ids)


def _largest(scores: Tensor, width: int) -> Tensor:
    """Return the ids of the `width` largest scores of each line, in no order.

    They all lie in the `width` groups with the largest maxima, and finding those costs one fast
    pass.
    """
    n, vocab_size = scores.shape
    n_groups = vocab_size // _GROUPS
    if n_groups <= width:
        return scores.topk(width, sorted=False).indices
    grouped = scores[:, : n_groups * _GROUPS].view(n, _GROUPS, n_groups)
    best = grouped.amax(1).topk(width, sorted=False).indices
    steps = torch.arange(_GROUPS, device=scores.device)[None, :, None] * n_groups
    ids = (best[:, None, :] + steps).view(n, -1)
    rest = torch.arange(n_groups * _GROUPS, vocab_size, device=scores.device)
    ids = torch.cat([ids, rest.expand(n, -1)], dim=1)
    return ids.gather(1, scores.gather(1, ids).topk(width, sorted=False).indices)


def _sorted(keys: Tensor) -> Tensor:
    """Sort each line in ascending order. On the CPU numpy's vectorized sort is some 15 times faster
    than torch's."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    return keys.sort(dim=-1).values
