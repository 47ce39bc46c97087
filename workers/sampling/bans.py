"""Tokens that a row must not sample: ends before `min_tokens`, and last ones of banned sequences.

Which sequences have come up to their last token depends on tokens that only the device knows yet:
a row with sequences of several tokens keeps its latest ones there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgi_async.wire.messages import MAX_BAN_LENGTH, Sampling
from workers.transfer import send

_LATEST = MAX_BAN_LENGTH - 1
"""Tokens of its output that are kept for a row."""
_ANY = -1
"""Padding of sequences that are shorter than the longest, and of what comes before a row's first
token."""

Index = NDArray[np.int64]


class _Row:
    """The bans of one row."""

    __slots__ = ("end_ids", "heads", "lasts", "least", "single", "width")

    def __init__(
        self, sampling: Sampling, n_prompt: int, vocab_size: int, device: torch.device
    ) -> None:
        def known(ids: list[int]) -> Index:
            found = np.asarray(sorted(set(ids)), np.int64)
            return found[found < vocab_size]

        self.least = n_prompt + sampling.min_tokens
        """The length, prompt included, before which it does not end."""
        self.end_ids = known(sampling.end_ids)
        self.single = known([ban[0] for ban in sampling.banned if len(ban) == 1])
        longer = [ban for ban in sampling.banned if len(ban) > 1 and ban[-1] < vocab_size]
        self.width = max((len(ban) - 1 for ban in longer), default=0)
        heads = np.full((len(longer), self.width), _ANY, np.int32)
        for line, ban in zip(heads, longer, strict=True):
            line[self.width + 1 - len(ban) :] = ban[:-1]
        self.heads = send(heads, device)
        """int32 [n, width]: what comes before the last token of each longer sequence."""
        self.lasts = send(np.asarray([ban[-1] for ban in longer], np.int64), device)

    def now(self, place: int) -> Index:
        """Return the tokens that are banned at this position, whatever came before."""
        if place < self.least:
            return np.concatenate([self.single, self.end_ids])
        return self.single


class Bans:
    """The bans of every row of the persistent batch."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rows: list[_Row | None] = [None] * max_rows
        self._latest: Tensor | None = None
        """int32 [max_rows, _LATEST]: the end of each row's output; made for the first row that
        needs it."""

    def admit(self, row: int, sampling: Sampling, tokens: Sequence[int], n_prompt: int) -> None:
        """Add a row with `tokens`, of which the first `n_prompt` are its prompt."""
        made = self._rows[row] = _Row(sampling, n_prompt, self._vocab_size, self._device)
        if not made.width:
            return
        if self._latest is None:
            self._latest = torch.full(
                (len(self._rows), _LATEST), _ANY, dtype=torch.int32, device=self._device
            )
        latest = np.full(_LATEST, _ANY, np.int32)
        output = tokens[max(n_prompt, len(tokens) - _LATEST) :]
        latest[_LATEST - len(output) :] = output
        self._latest[row] = send(latest, self._device)

    def apply(self, scores: Tensor, index: Index, rows: Index, places: Index) -> None:
        """Set the scores of banned tokens to -inf in lines `index` of float32 scores [B, V].

        They are those of `rows`, whose next tokens are at these `places`. A line in which nothing
        else is left, by its grammar, is left as it is.
        """
        on_lines = self._send(index)
        before = scores[on_lines]
        flat = scores.view(-1)
        now = [
            line * self._vocab_size + self._row(row).now(place)
            for line, row, place in zip(index, rows, places, strict=True)
        ]
        flat.index_fill_(0, self._send(np.concatenate(now)), -math.inf)
        for width in {self._row(row).width for row in rows} - {0}:
            self._apply_longer(flat, width, index, rows)
        after = scores[on_lines]
        nothing_left = after.amax(1, keepdim=True) == -math.inf
        scores[on_lines] = torch.where(nothing_left, before, after)

    def _apply_longer(self, flat: Tensor, width: int, index: Index, rows: Index) -> None:
        """Apply the sequences of the rows whose longest one has `width` tokens before its last."""
        assert self._latest is not None
        some = [(line, row) for line, row in zip(index, rows, strict=True) if self._is(row, width)]
        states = [self._row(row) for _, row in some]
        counts = [len(state.lasts) for state in states]
        owners = self._send(np.repeat(np.asarray([row for _, row in some], np.int64), counts))
        starts = np.repeat(np.asarray([line for line, _ in some], np.int64), counts)
        heads = torch.cat([state.heads for state in states])
        latest = self._latest[:, _LATEST - width :][owners]
        come = ((heads == latest) | (heads == _ANY)).all(1)
        places = self._send(starts * self._vocab_size) + torch.cat([one.lasts for one in states])
        # Two sequences may end in the same token: sums come out the same in any order.
        lowered = flat.new_zeros(len(places)).masked_fill_(come, -math.inf)
        flat.index_add_(0, places, lowered)

    def record(self, rows: Index, tokens: Tensor) -> None:
        """Append to each row its sampled token, int64 [n] on the device."""
        kept = np.flatnonzero([self._row(row).width > 0 for row in rows])
        if not kept.size:
            return
        assert self._latest is not None
        at = self._send(rows[kept])
        added = tokens[self._send(kept)].int()[:, None]
        self._latest[at] = torch.cat([self._latest[at][:, 1:], added], 1)

    def over(self, rows: Index, places: Index) -> Index:
        """Return the rows without bans once their next tokens are at `places`."""
        ended = [
            not len(self._row(row).now(place)) and not self._row(row).width
            for row, place in zip(rows, places, strict=True)
        ]
        return rows[ended]

    def _is(self, row: int, width: int) -> bool:
        return self._row(row).width == width

    def _row(self, row: int) -> _Row:
        state = self._rows[row]
        assert state is not None
        return state

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self._device)
