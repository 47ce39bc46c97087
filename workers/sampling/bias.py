"""Logit bias: what a request adds to the logits of chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.transfer import send


class Bias:
    """The biases of every row of the persistent batch, on the host: they are few and constant."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._ids = [np.empty(0, np.int64)] * max_rows
        self._values = [np.empty(0, np.float32)] * max_rows

    def admit(self, row: int, ids: Sequence[int], values: Sequence[float]) -> None:
        """Set the biases of `row`. Tokens that the model does not have are ignored."""
        given = np.asarray(ids, np.int64)
        known = given < self._vocab_size
        self._ids[row] = given[known]
        self._values[row] = np.asarray(values, np.float32)[known]

    def apply(self, scores: Tensor, index: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Add the biases to lines `index` (rows `rows`) of float32 scores [B, V] in place."""
        lines = zip(index, rows, strict=True)
        places = [line * self._vocab_size + self._ids[row] for line, row in lines]
        values = np.concatenate([self._values[row] for row in rows])
        # A token occurs once in a row, so every place does, and the order does not matter.
        scores.view(-1).index_add_(
            0, send(np.concatenate(places), self._device), send(values, self._device)
        )
