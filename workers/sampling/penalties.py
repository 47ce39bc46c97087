"""Penalties for tokens that occurred: TGI's over prompt and output, OpenAI's over the output alone.

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

from tgi_async.wire.messages import Sampling
from workers.transfer import send

_LEAST_CAPACITY = 256


class Penalties:
    """The penalty state of every row of the persistent batch.

    An entry takes 12 bytes, and each row has room for the longest list so far, rounded up to a
    power of two. Nothing is allocated before the first penalized row.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._device = device
        self._lengths = np.zeros(max_rows, np.int64)
        self._repetition = np.ones(max_rows, np.float32)
        self._frequency = np.zeros(max_rows, np.float32)
        self._output_frequency = np.zeros(max_rows, np.float32)
        self._output_presence = np.zeros(max_rows, np.float32)
        # A row's unused entries repeat its first token with count 0: they change nothing, so rows
        # of different lengths need no mask.
        self._tokens = torch.empty((max_rows, 0), dtype=torch.int32, device=device)
        self._counts = torch.empty((max_rows, 0), dtype=torch.int32, device=device)
        """Counts over prompt and output."""
        self._output_counts = torch.empty((max_rows, 0), dtype=torch.int32, device=device)

    def admit(self, row: int, sampling: Sampling, tokens: Sequence[int], n_prompt: int) -> None:
        """Start a row with the context `tokens`, which must not be empty.

        The first `n_prompt` of them are its prompt, the others its output so far.
        """
        context = np.asarray(tokens, np.int32)
        distinct, places, counts = np.unique(context, return_inverse=True, return_counts=True)
        output_counts = np.bincount(places[n_prompt:], minlength=len(distinct))
        self._reserve(len(distinct) + 1)
        self._tokens[row] = int(distinct[0])
        self._tokens[row, : len(distinct)] = torch.from_numpy(distinct).to(self._device)
        for held, found in (self._counts, counts), (self._output_counts, output_counts):
            held[row] = 0
            held[row, : len(distinct)] = torch.from_numpy(found.astype(np.int32)).to(self._device)
        self._lengths[row] = len(distinct)
        self._repetition[row] = sampling.repetition_penalty
        self._frequency[row] = sampling.frequency_penalty
        self._output_frequency[row] = sampling.output_frequency_penalty
        self._output_presence[row] = sampling.output_presence_penalty

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
        OpenAI's: frequency penalty * count in the output, and the presence penalty where that is
        not 0, are subtracted.
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
            counts = _totals(self._counts[on_rows, :longest], tokens, vocab_size)
            share = counts / self._send(lengths.astype(np.float32))[:, None]
            found -= share * self._send(frequency)[:, None]
        frequency, presence = self._output_frequency[rows], self._output_presence[rows]
        if frequency.any() or presence.any():
            counts = _totals(self._output_counts[on_rows, :longest], tokens, vocab_size)
            found -= counts * self._send(frequency)[:, None]
            found -= (counts > 0) * self._send(presence)[:, None]
        # Entries of one token all carry the same value, so their order does not matter.
        flat.scatter_(0, places, found.view(-1))

    def record(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """Append to each row its sampled token (int64 [len(rows)], on the device)."""
        self._reserve(int(self._lengths[rows].max()) + 1)
        at = self._send(rows), self._send(self._lengths[rows])
        self._tokens[at] = tokens.int()
        self._counts[at] = 1
        self._output_counts[at] = 1
        self._lengths[rows] += 1

    # Lists grow in `record`, under inference mode, and rows are admitted outside of it, where its
    # tensors cannot be written to.
    @torch.inference_mode(False)
    def _reserve(self, entries: int) -> None:
        held = self._tokens.shape[1]
        if entries <= held:
            return
        more = max(_LEAST_CAPACITY, 1 << (entries - 1).bit_length()) - held
        filler = self._tokens[:, :1] if held else self._tokens.new_zeros((len(self._lengths), 1))
        self._tokens = torch.cat([self._tokens, filler.expand(-1, more)], dim=1)
        unused = self._counts.new_zeros((len(self._lengths), more))
        self._counts = torch.cat([self._counts, unused], dim=1)
        self._output_counts = torch.cat([self._output_counts, unused], dim=1)

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self._device)


def _totals(counts: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """Return the sum of the counts of all entries of each entry's token, int32 [n, entries].

    A token may have several entries. Integers add up exactly in any order.
    """
    totals = counts.new_zeros((len(counts), vocab_size))
    return totals.scatter_add_(1, tokens, counts).gather(1, tokens)
