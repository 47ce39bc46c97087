"""Sequences that a loaded model computes in chunks, decodes and mixed batches."""

from __future__ import annotations

import torch

from workers.attention.context import AttentionContext, Prefill
from workers.forward import ForwardBatch, Model
from workers.models.loading import Loaded

BLOCK_SIZE = 4
BLOCKS_PER_ROW = 12
LENGTHS = (40, 23, 31)
"""Positions of each row; the last DECODES of them are decoded, the others come in chunks."""
DECODES = 6
CHUNK = 17


class PagedSequences:
    """The same random tokens for the same vocabulary, on any rank."""

    def __init__(self, model: Loaded, by: Model | None = None) -> None:
        """`by` runs the model, if it is not to do so itself."""
        draw = torch.Generator().manual_seed(1)
        self.tokens = [torch.randint(model.spec.vocab_size, (n,), generator=draw) for n in LENGTHS]
        n_blocks = len(LENGTHS) * BLOCKS_PER_ROW
        order = torch.randperm(n_blocks, generator=draw).to(torch.int32)
        self._model = by or model
        self._tables = order.reshape(len(LENGTHS), BLOCKS_PER_ROW)
        self.cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
        self._computed = [0] * len(LENGTHS)
        self.hidden: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
        """Of each row, [n, hidden] of each step."""

    @torch.inference_mode()
    def run(self) -> list[torch.Tensor]:
        """Logits [length, vocabulary] of each row, where the model gives them."""
        ends = [n - DECODES for n in LENGTHS]
        logits: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
        rows = range(len(LENGTHS))
        while any(self._computed[r] < LENGTHS[r] for r in rows):
            decodes = [r for r in rows if ends[r] <= self._computed[r] < LENGTHS[r]]
            chunks = [
                (r, min(CHUNK + r, ends[r] - self._computed[r]))
                for r in rows
                if self._computed[r] < ends[r]
            ]
            for r, part in self._step(decodes, chunks):
                logits[r].append(part)
        return [torch.cat(parts) for parts in logits]

    def _step(
        self, decodes: list[int], chunks: list[tuple[int, int]]
    ) -> list[tuple[int, torch.Tensor]]:
        order = [(r, 1) for r in decodes] + chunks
        positions = [torch.arange(self._computed[r], self._computed[r] + n) for r, n in order]
        slots = [
            self._tables[r].long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
            for (r, _), at in zip(order, positions, strict=True)
        ]
        prefills, start = [], len(decodes)
        for r, n in chunks:
            prefills.append(Prefill(start, n, self._computed[r] + n, self._tables[r]))
            start += n
        context = AttentionContext(
            self.cache,
            torch.cat(slots),
            len(decodes),
            self._tables[decodes].contiguous(),
            torch.tensor([self._computed[r] + 1 for r in decodes], dtype=torch.int32),
            prefills,
        )
        ids = torch.cat([self.tokens[r][self._computed[r] :][:n] for r, n in order])
        every = torch.arange(len(ids))
        batch = ForwardBatch(ids, torch.cat(positions), every, context, hidden=True)
        logits, hidden = self._model.forward(batch)
        assert hidden is not None
        sizes = [n for _, n in order]
        for r, n in order:
            self._computed[r] += n
        for (r, _), states in zip(order, hidden.split(sizes), strict=True):
            self.hidden[r].append(states)
        parts = logits.split(sizes)
        return [(r, part.clone()) for (r, _), part in zip(order, parts, strict=True)]
