"""Doubles, in plain torch on the host, of what runs on a GPU. They read what the kernels read: the
numbers of a DeviceBatch and those of DeviceSampling, never the host's copy of them."""

from __future__ import annotations

import numpy as np
import torch

from workers.attention.context import AttentionContext
from workers.attention.gather import attend_gathered
from workers.attention.paged import PagedAttention
from workers.graphs.decode import DecodeGraphs
from workers.sampling.device import NUMBERS, DeviceSampling
from workers.sampling.output import Picked
from workers.sampling.race import raced


class DeviceAttention(PagedAttention):
    """A double of CudaAttention: each decode row by itself."""

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(_attend)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    context: AttentionContext,
    *rule: object,
) -> torch.Tensor:
    if context._captured is None:
        return attend_gathered(query, key, value, layer, context, *rule)  # type: ignore[arg-type]
    batch, cache = context._captured, context.cache
    out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for row, length in enumerate(batch.lengths.tolist()):
        if not length:
            continue
        start = int(batch.starts[row])
        blocks = batch.tables[start : start - (-length // cache.block_size)]
        one = AttentionContext(
            cache,
            batch.slots[row : row + 1].long(),
            1,
            blocks[None].contiguous(),
            torch.tensor([length], dtype=torch.int32),
        )
        at = slice(row, row + 1)
        parts = [x[:, :, at] for x in (query, key, value)]
        out[:, at] = attend_gathered(*parts, layer, one, *rule)  # type: ignore[arg-type]
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
        drawn = raced(scores, torch.arange(logits.shape[1])[None], keys).argmax(1)
        tokens = torch.where(draws, drawn, best)
        logprobs = scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return Picked(tokens, peaks, logprobs)


class Replaying:
    """A double of CudaRecorder: what a graph would have the device do again, the host does."""

    def prepare(self, work):  # type: ignore[no-untyped-def]
        work()

    def record(self, work):  # type: ignore[no-untyped-def]
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
