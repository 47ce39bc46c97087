"""The green-list watermark of Kirchenbauer et al. (arXiv 2301.10226), its soft form.

The token before seeds a split of the vocabulary; the logits of the green part are raised by DELTA.
The paper draws a permutation per step and takes its first gamma * V tokens. Here a token is green
when a hash of (HASH_KEY, previous token, token) falls under gamma: the same test statistic holds
(each token is green with probability gamma, independently), it needs no generator state and it is
the same on every device. A detector must use `green` below; it is not TGI's or the authors' list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.sampling.murmur import mix, spread
from workers.transfer import send

GAMMA = 0.5
DELTA = 2.0
HASH_KEY = 15485863


def green(previous: Tensor, vocab_size: int) -> Tensor:
    """Return which tokens are green after each of `previous` (int64 [n]): bool [n, vocab_size]."""
    seeds = mix((previous * HASH_KEY).int())
    tokens = spread(torch.arange(vocab_size, device=previous.device))
    return mix(tokens[None, :] + seeds[:, None]) < int(GAMMA * 2**32) - 2**31


class Watermark:
    """The last token of each watermarked row, kept on the device."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._last = torch.zeros(max_rows, dtype=torch.int64, device=device)

    def admit(self, row: int, tokens: Sequence[int]) -> None:
        """Start a row after the context `tokens`, which must not be empty."""
        self._last[row] = tokens[-1]

    def apply(self, scores: Tensor, index: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Raise the green tokens of lines `index` (rows `rows`) of float32 [B, V] in place."""
        raised = green(self._last[send(rows, self._device)], scores.shape[1])
        scores.index_add_(0, send(index, self._device), raised.to(scores.dtype), alpha=DELTA)

    def record(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """Record each row's sampled token (int64 [len(rows)], on the device)."""
        self._last[send(rows, self._device)] = tokens
