"""Forward passes on several ranks: rank 0 drives the others.

Only rank 0 keeps the batch and samples. It broadcasts what each forward pass is about, the sampled
tokens included, and the others run it too. So nothing that a rank decides by itself (whether a
grammar's mask has come in time, which row of a failing batch is to blame) can part them.
"""

from __future__ import annotations

import torch

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.errors import FAILURES
from workers.forward import ForwardBatch, ForwardOutput, HeadedModel, Inserted
from workers.graphs.decode import DecodeGraphs
from workers.graphs.input_buffers import Int32Array
from workers.ranks import RankFailed, Ranks

N_NUMBERS = 8
"""Length of a header: packed tokens (0: the head of a model alone; negative: replay the graph of so
many rows), wanted logits (of a graph: its numbers; of a head: its rows), decodes (of a head: its
inputs, 0 being the end), block table width, how many numbers describe prefills, axes of positions,
and the shape of what is inserted."""


class DriverRank:
    """A model as rank 0 runs it. See `forward.HeadedModel`."""

    def __init__(self, model: HeadedModel, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """See `forward.Model`. Raises PeerLost, and RankFailed for a failure of this rank."""
        if batch.adapters is not None or batch.cross:
            batch.text("a model on several ranks")
        tokens, context, inserted = batch.tokens, batch.attention, batch.inserted
        prefills = [
            number
            for one in context.prefills
            for number in (one.start, one.n, one.length, len(one.block_table), len(one.spans))
        ]
        prefills += [block for one in context.prefills for block in one.block_table.tolist()]
        prefills += [end for one in context.prefills for span in one.spans for end in span]
        prefills = [len(context.prefills), *prefills]
        axes = len(batch.positions) if batch.positions.dim() > 1 else 1
        tables = context.decode_block_tables
        self._ranks.broadcast(
            torch.tensor(
                [
                    len(tokens),
                    len(batch.wanted),
                    context.n_decode,
                    tables.shape[-1],
                    len(prefills),
                    axes,
                    *((0, 0) if inserted is None else inserted.rows.shape),
                ]
            )
        )
        self._ranks.broadcast(
            torch.cat(
                [
                    context.slot_mapping,
                    context.decode_lengths.long(),
                    tables.long().flatten(),
                    torch.tensor(prefills),
                ]
            )
        )
        packed = [tokens, batch.positions.flatten(), batch.wanted]
        packed += [] if inserted is None else [inserted.at]
        self._ranks.broadcast(torch.cat(packed))
        if inserted is not None:
            # No rounding, and the others need not know the dtype.
            self._ranks.broadcast(inserted.rows.float().contiguous())
        try:
            return self._model.forward(batch)
        except torch.AcceleratorError:
            raise
        except FAILURES as error:
            raise RankFailed(f"a forward pass failed on rank 0: {error}") from error

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `forward.HeadedModel`. Raises PeerLost, and RankFailed for a failure of this rank."""
        self._ranks.broadcast(torch.tensor([0, *hidden.shape, *[0] * (N_NUMBERS - 3)]))
        # No rounding, and the others need not know the dtype.
        self._ranks.broadcast(hidden.float().contiguous())
        try:
            return self._model.head(hidden)
        except torch.AcceleratorError:
            raise
        except FAILURES as error:
            raise RankFailed(f"the language-model head failed on rank 0: {error}") from error

    def replay(self, n_rows: int, numbers: Int32Array) -> None:
        """Have the others replay a graph with these numbers; this rank does so itself. Raises
        PeerLost."""
        self._ranks.broadcast(torch.tensor([-n_rows, len(numbers), *[0] * (N_NUMBERS - 2)]))
        self._ranks.broadcast(torch.from_numpy(numbers))

    def end(self) -> None:
        """End the loops of the other ranks. Raises PeerLost."""
        self._ranks.broadcast(torch.zeros(N_NUMBERS, dtype=torch.int64))


class FollowerRank:
    """A model as the other ranks run it."""

    def __init__(
        self,
        model: HeadedModel,
        ranks: Ranks,
        cache: PagedCache,
        device: torch.device,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._ranks = ranks
        self._cache = cache
        self._device = device
        self._graphs = graphs

    def run(self) -> None:
        """Run all that rank 0 runs until it ends. Raises PeerLost."""
        while self._run_one():
            pass

    def close(self) -> None:
        """Free the graphs; to be called before the process group is destroyed."""
        if self._graphs is not None:
            self._graphs.close()

    @torch.inference_mode()
    def _run_one(self) -> bool:
        header = self._ranks.broadcast(torch.empty(N_NUMBERS, dtype=torch.int64))
        n_tokens, n_wanted, n_decode, width, n_prefills, axes, *shape = header.tolist()
        if not n_tokens:
            if n_decode:
                hidden = torch.empty(n_wanted, n_decode, device=self._device)
                self._model.head(self._ranks.broadcast(hidden))
            return bool(n_decode)
        if n_tokens < 0:
            assert self._graphs is not None
            numbers = self._ranks.broadcast(torch.empty(n_wanted, dtype=torch.int32))
            self._graphs.follow(-n_tokens, numbers.numpy())
            return True
        sizes = [n_tokens, n_decode, n_decode * width, n_prefills]
        context_numbers = self._ranks.broadcast(torch.empty(sum(sizes), dtype=torch.int64))
        slots, lengths, tables, prefills = context_numbers.split(sizes)
        parts = [n_tokens, axes * n_tokens, n_wanted, shape[0]]
        packed = torch.empty(sum(parts), dtype=torch.int64, device=self._device)
        ids, positions, wanted, at = self._ranks.broadcast(packed).split(parts)
        if axes > 1:
            positions = positions.reshape(axes, n_tokens)
        inserted = None
        if shape[0]:
            rows = self._ranks.broadcast(torch.empty(shape, device=self._device))
            inserted = Inserted(at, rows)
        context = AttentionContext(
            cache=self._cache,
            slot_mapping=slots.contiguous(),
            n_decode=n_decode,
            decode_block_tables=tables.int().reshape(n_decode, width),
            decode_lengths=lengths.int(),
            prefills=_prefills(prefills),
        )
        self._model.forward(ForwardBatch(ids, positions, wanted, context, inserted))
        return True


def _prefills(numbers: torch.Tensor) -> list[Prefill]:
    n = int(numbers[0])
    chunks = numbers[1 : 1 + 5 * n].reshape(n, 5).tolist()
    sizes = [n_blocks for *_, n_blocks, _ in chunks] + [2 * n_spans for *_, n_spans in chunks]
    lists = numbers[1 + 5 * n :].split(sizes)
    return [
        Prefill(
            start,
            n_tokens,
            length,
            table.int().contiguous(),
            tuple((begin, end) for begin, end in ends.reshape(-1, 2).tolist()),
        )
        for (start, n_tokens, length, *_), table, ends in zip(
            chunks, lists[:n], lists[n:], strict=True
        )
    ]
