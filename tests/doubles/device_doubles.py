"""Doubles, in plain torch on the host, of what runs on a GPU. They read what the kernels read: the
numbers of a DeviceBatch and those of DeviceSampling, never the host's copy of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.device_batch import DecodeCapture, DeviceBatch
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionLayer
from workers.graphs.decode import DecodeGraphs
from workers.sampling.device import NUMBERS, DeviceSampling
from workers.sampling.exponential_race import add_gumbel_noise
from workers.sampling.output import Picked


class DeviceAttention(TorchAttention):
    """A double of TritonAttention, which can be captured: each decode row by itself."""

    name = "double"

    def capture(self, cache: PagedCache, n_rows: int, most_positions: int) -> DecodeCapture:
        return DecodeCapture(cache, n_rows, most_positions)

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        numbers, cache = batch.metadata.get(self), batch.cache
        if not isinstance(numbers, DeviceBatch):
            return super().forward(layer, query, key, value, batch)
        out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        for row, length in enumerate(numbers.lengths.tolist()):
            if not length:
                continue
            start = int(numbers.starts[row])
            blocks = numbers.tables[start : start - (-length // cache.block_size)]
            one = AttentionContext(
                cache,
                numbers.slots[row : row + 1].long(),
                1,
                blocks[None].contiguous(),
                torch.tensor([length], dtype=torch.int32),
            )
            at = slice(row, row + 1)
            k, v = (None if x is None else x[:, :, at] for x in (key, value))
            out[:, at] = super().forward(layer, query[:, :, at], k, v, one)
        return out


class HostSampling(DeviceSampling):
    """A double of DeviceSampling, without truncation."""

    def __init__(self) -> None:
        pass

    def sample(self, logits: torch.Tensor, numbers: torch.Tensor) -> Picked:
        asked = numbers.contiguous().numpy().view(NUMBERS)[:, 0]
        assert not (asked["mode"] & 2).any()
        draws = torch.from_numpy(asked["mode"] != 0)
        heat = torch.from_numpy(np.where(asked["mode"], asked["temperature"], np.float32(1)))
        peaks, best = logits.float().max(-1)
        scores = (logits.float() - peaks[:, None]) / heat[:, None]
        keys = torch.from_numpy(np.ascontiguousarray(asked["keys"]))
        drawn = add_gumbel_noise(scores, torch.arange(logits.shape[1])[None], keys).argmax(1)
        tokens = torch.where(draws, drawn, best)
        logprobs = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return Picked(tokens, peaks, logprobs)


class Replaying:
    """A double of CudaGraphCapture: what a graph would have the device do again, the host does."""

    def prepare(self, work: Callable[[], Any]) -> None:
        work()

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        # Some may be views that repeat a number.
        outputs = tuple(x.contiguous() for x in work())

        def replay() -> None:
            for kept, new in zip(outputs, work(), strict=True):
                kept.copy_(new)

        return replay, outputs


class Counted(DecodeGraphs):
    """Knows which graphs ran."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.ran: list[int] = []

    def _run(self, graph, size):  # type: ignore[no-untyped-def]
        self.ran.append(graph.n_rows)
        return super()._run(graph, size)
