"""The results of a sampled step, on the device until they are sent."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from tgi_async.wire.messages import RowError, Sampled, TopToken
from workers.transfer import Fetched


class TopTokens(NamedTuple):
    """The likeliest tokens of each of B rows, best first."""

    ids: Tensor
    """int64 [B, N]"""
    logprobs: Tensor
    """float32 [B, N]"""
    counts: Tensor
    """int64 [B]: how many of the N belong to the row"""

    def spread(self, some: Tensor, n: int) -> TopTokens:
        """Return these as the lines `some` of n; the others report nothing."""
        if len(some) == n:
            return self
        return TopTokens(
            *(part.new_zeros((n, *part.shape[1:])).index_copy(0, some, part) for part in self)
        )

    def merged_into(self, others: TopTokens | None, some: Tensor, n: int) -> TopTokens:
        """Return `others`, which have n lines, with these as the lines `some`."""
        if others is None:
            return self.spread(some, n)
        width = max(self.ids.shape[1], others.ids.shape[1])

        def merged(part: Tensor, other: Tensor) -> Tensor:
            part, other = (pad(each, (0, width - each.shape[1])) for each in (part, other))
            return other.index_copy(0, some, part)

        return TopTokens(
            merged(self.ids, others.ids),
            merged(self.logprobs, others.logprobs),
            others.counts.index_copy(0, some, self.counts),
        )


class Picked(NamedTuple):
    """Tokens of n rows that were sampled on the device."""

    tokens: Tensor
    """int64 [n]"""
    max_logits: Tensor
    """float32 [n], the largest processed logit of each row"""
    logprobs: Tensor
    """float32 [n]"""


class SamplerOutput(NamedTuple):
    """The tokens of B rows, all on the device; nothing here has waited for it."""

    tokens: Tensor
    """int64 [B]. Where a row's logits are not finite, some valid token id."""
    max_logits: Tensor
    """[B], the largest processed logit of each row; not finite where the logits are broken."""
    logprobs: Tensor | None
    """float32 [B], or None if no row wants them."""
    wanted: NDArray[np.bool_]
    """[B], on the host: the rows whose entry of `logprobs` is valid."""
    top: TopTokens | None
    """None if no row wants any."""

    def fetch(self) -> FetchedOutput:
        """Start copying to the host."""
        return FetchedOutput(self)

    def to_wire(self, rows: list[int]) -> tuple[list[Sampled], list[RowError]]:
        """Return `FetchedOutput.to_wire` at once."""
        return self.fetch().to_wire(rows)


class FetchedOutput:
    """A SamplerOutput that is being copied to the host."""

    def __init__(self, output: SamplerOutput) -> None:
        self._wanted = output.wanted
        self._has_logprobs = output.logprobs is not None
        self._has_top = output.top is not None
        tensors = [output.tokens, output.max_logits]
        if output.logprobs is not None:
            tensors.append(output.logprobs)
        self._fetched = Fetched([*tensors, *(output.top or ())])

    @property
    def ready(self) -> bool:
        """Whether `to_wire` returns at once."""
        return self._fetched.ready

    def to_wire(self, rows: list[int]) -> tuple[list[Sampled], list[RowError]]:
        """Return the messages for the router, for the rows that were sampled; waits for the device.

        A row whose logits hold NaN or +inf, or nothing but -inf, gives an error instead of a token.
        """
        parts = self._fetched.tensors()
        tokens, max_logits = parts[0].tolist(), parts[1].tolist()
        logprobs = parts[2].tolist() if self._has_logprobs else []
        top = TopTokens(*parts[-3:]) if self._has_top else None
        tops: list[list[TopToken]] = [[]] * len(rows) if top is None else _lists(top)
        sampled, errors = [], []
        for i, row in enumerate(rows):
            if math.isfinite(max_logits[i]):
                logprob = [logprobs[i]] if logprobs and self._wanted[i] else []
                top_here = [tops[i]] if tops[i] else []
                sampled.append(Sampled(row, [tokens[i]], logprob, top_here))
            else:
                errors.append(RowError(row, _broken(max_logits[i])))
        return sampled, errors


def _lists(top: TopTokens) -> list[list[TopToken]]:
    lines = zip(top.ids.tolist(), top.logprobs.tolist(), top.counts.tolist(), strict=True)
    return [
        [TopToken(*pair) for pair in zip(ids[:count], logprobs[:count], strict=True)]
        for ids, logprobs, count in lines
    ]


def _broken(largest: float) -> str:
    return (
        f"the model's logits for the next token are not usable: the largest is {largest}, where a "
        "finite number is needed. The numbers overflowed or the weights are damaged; try "
        "--dtype float32, or other weights"
    )
