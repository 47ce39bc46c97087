"""A small attention backend, and a worker process that has it."""

from __future__ import annotations

import torch

from workers.__main__ import main
from workers.attention.backend import AttentionBackend
from workers.attention.context import AttentionContext
from workers.attention.layer import AttentionLayer
from workers.attention.registry import register


@register
class ToyAttention(AttentionBackend[list[tuple[int, int, torch.Tensor]]]):
    """Causal attention, sequence by sequence. Of each it knows the first packed token, the number
    of new tokens, and the slots of all positions."""

    name = "toy"
    devices = frozenset({"cpu"})
    page_size = 8

    def build(self, batch: AttentionContext) -> list[tuple[int, int, torch.Tensor]]:
        size = batch.cache.block_size
        rows = zip(batch.decode_block_tables, batch.decode_lengths.tolist(), strict=True)
        sequences = [(row, 1, length, table) for row, (table, length) in enumerate(rows)]
        return [
            (start, n, (table.long()[:, None] * size + torch.arange(size)).flatten()[:length])
            for start, n, length, table in [*sequences, *(chunk[:4] for chunk in batch.prefills)]
        ]

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        pools = batch.cache.keys[layer.index], batch.cache.values[layer.index]
        if key is not None and value is not None:
            block, offset = divmod(batch.slot_mapping.numpy(), batch.cache.block_size)
            pools[0][block, :, offset] = key[0].transpose(0, 1)
            pools[1][block, :, offset] = value[0].transpose(0, 1)
        # [n_kv_heads, blocks * block_size, head_dim]
        keys, values = (pool.transpose(0, 1).flatten(1, 2) for pool in pools)
        out = torch.empty_like(query)
        for start, n, slots in self.metadata(batch):
            new = slice(start, start + n)
            k, v = (x[:, slots].repeat_interleave(self.shape.group, 0) for x in (keys, values))
            scores = query[0, :, new] @ k.transpose(1, 2) * layer.scale
            seen = torch.ones_like(scores, dtype=torch.bool).tril(len(slots) - n)
            out[0, :, new] = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        return out.transpose(1, 2)


if __name__ == "__main__":
    main()
