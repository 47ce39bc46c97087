"""Repetition and frequency penalty, over the tokens of prompt and output.

Each penalized row keeps its context on the device as a list of (token, count) entries: the prompt's
distinct tokens, then one entry per sampled token. A step so touches as many logits as the context
has entries, not the whole vocabulary, and recording a token needs no look at the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.sampling.transfer import send

_LEAST_CAPACITY = 256


class Penalties:
    """The penalty state of every row of the persistent batch.

    An entry takes 8 bytes, and each row has room for the longest list so far, rounded up to a power
    of two. Nothing is allocated before the first penalized row.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._lengths = np.zeros(max_rows, np.int64)
        self._repetition = np.ones(max_rows, np.float32)
        self._frequency = np.zeros(max_rows, np.float32)
        # A row's unused entries repeat its first token with count 0: they change nothing, so rows
        # of different lengths need no mask.
        self._tokens = torch.empty((max_rows, 0), dtype=torch.int32, device=device)
        self._counts = torch.empty((max_rows, 0), dtype=torch.int32, device=device)

    def admit(self, row: int, repetition: float, frequency: float, tokens: Sequence[int]) -> None:
        """`row` starts over with the context `tokens`, which must not be empty."""
        distinct, counts = np.unique(np.asarray(tokens, np.int32), return_counts=True)
        self._reserve(len(distinct) + 1)
        self._tokens[row] = int(distinct[0])
        self._tokens[row, : len(distinct)] = torch.from_numpy(distinct).to(self._device)
        self._counts[row] = 0
        self._counts[row, : len(distinct)] = torch.from_numpy(counts.astype(np.int32)).to(
            self._device
        )
        self._lengths[row] = len(distinct)
        self._repetition[row] = repetition
        self._frequency[row] = frequency

    def apply(
        self,
        scores: Tensor,
        index: NDArray[np.int64],
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        """Penalize lines `index` of `scores` (float32 [B, V], contiguous) in place.

        `rows` are those lines' rows and `lengths` their numbers of context tokens.
        Repetition (arXiv 1909.05858): a score below 0 is multiplied, another divided, once however
        often the token occurs. Frequency, TGI's: penalty * count / context length is subtracted.
        """
        vocab_size = scores.shape[1]
        on_rows = self._send(rows)
        longest = int(self._lengths[rows].max())
        tokens = self._tokens[on_rows, :longest].long()
        places = (tokens + self._send(index)[:, None] * vocab_size).view(-1)
        flat = scores.view(-1)
        found = flat[places].view_as(tokens)
        penalty = self._send(self._repetition[rows])[:, None]
        found = torch.where(found < 0, found * penalty, found / penalty)
        frequency = self._frequency[rows]
        if frequency.any():
            # A token may have several entries. Integers add up exactly in any order.
            counts = torch.zeros((len(rows), vocab_size), dtype=torch.int32, device=self._device)
            counts.scatter_add_(1, tokens, self._counts[on_rows, :longest])
            share = counts.gather(1, tokens) / self._send(lengths.astype(np.float32))[:, None]
            found -= share * self._send(frequency)[:, None]
        # Entries of one token all carry the same value, so their order does not matter.
        flat.scatter_(0, places, found.view(-1))

    def record(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """Append to each row its sampled token (int64 [len(rows)], on the device)."""
        self._reserve(int(self._lengths[rows].max()) + 1)
        at = self._send(rows), self._send(self._lengths[rows])
        self._tokens[at] = tokens.int()
        self._counts[at] = 1
        self._lengths[rows] += 1

    def _reserve(self, entries: int) -> None:
        held = self._tokens.shape[1]
        if entries <= held:
            return
        more = max(_LEAST_CAPACITY, 1 << (entries - 1).bit_length()) - held
        filler = self._tokens[:, :1] if held else self._tokens.new_zeros((len(self._lengths), 1))
        self._tokens = torch.cat([self._tokens, filler.expand(-1, more)], dim=1)
        self._counts = torch.cat(
            [self._counts, self._counts.new_zeros((len(self._lengths), more))], dim=1
        )

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self._device)
