"""The persistent batch: the state of each row between steps.

The router sends differences (rows admitted and released, blocks granted); everything else, such as
the token a row just sampled, never leaves the worker's device before the next step needs it.
"""

from __future__ import annotations

import numpy as np
import torch

from tgi_async.wire.messages import Admit, Grow


class Row:
    """A row of the persistent batch, made from an `Admit`.

    Its first tokens are known on the host, the sampled ones are not.
    """

    __slots__ = (
        "failed",
        "length",
        "n_blocks",
        "n_computed",
        "n_prompt",
        "prompt_logprobs",
        "prompt_top_n",
        "tokens",
    )

    def __init__(self, admit: Admit) -> None:
        self.tokens = np.zeros(len(admit.tokens), np.int64)
        """The tokens that are known on the host. Those of a prefix hit are never read, and left at
        0."""
        self.tokens[admit.n_cached :] = admit.tokens[admit.n_cached :]
        self.n_prompt = admit.n_prompt
        self.n_computed = admit.n_cached
        self.length = len(admit.tokens)
        """Tokens so far, sampled ones included."""
        self.n_blocks = 0
        self.prompt_logprobs = admit.prompt_logprobs
        self.prompt_top_n = admit.prompt_top_n_tokens
        self.failed = False

    @property
    def prefilling(self) -> bool:
        """Whether tokens known on the host are still to be computed."""
        return self.n_computed < len(self.tokens)

    def extend(self, tokens: list[int]) -> None:
        """Store the last token, and the jump-forward tokens after it, on the host.

        `tokens` has at least two; earlier ones are not needed any more.
        """
        start = self.length - 1
        self.length = start + len(tokens)
        self.tokens = np.zeros(self.length, np.int64)
        self.tokens[start:] = tokens


class RowTable:
    """Rows by number, their block tables, and the last sampled token of each."""

    def __init__(
        self, max_rows: int, max_total_tokens: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        max_blocks = -(-max_total_tokens // block_size)
        self.block_tables = np.zeros((max_rows, max_blocks), np.int32)
        self.last_tokens = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        """int64 [max_rows + 1]"""
        self.padding_row = max_rows
        """The line of `last_tokens` for rows that pad a batch."""
        self._rows: list[Row | None] = [None] * max_rows

    def __getitem__(self, row: int) -> Row:
        """Return a row. Raises KeyError if it is not in the batch."""
        found = self.get(row)
        if found is None:
            raise KeyError(f"row {row} is not in the batch")
        return found

    def get(self, row: int) -> Row | None:
        """Return the row of this number, if there is one."""
        return self._rows[row] if row < len(self._rows) else None

    def admit(self, admit: Admit) -> None:
        self._rows[admit.row] = Row(admit)
        self._append(admit.row, admit.blocks)

    def grow(self, grow: Grow) -> None:
        self._append(grow.row, grow.blocks)

    def release(self, row: int) -> None:
        self._rows[row] = None

    def _append(self, row: int, blocks: list[int]) -> None:
        state = self[row]
        end = state.n_blocks + len(blocks)
        if end > self.block_tables.shape[1]:
            raise ValueError(
                f"row {row} was given {end} blocks and can have {self.block_tables.shape[1]}"
            )
        self.block_tables[row, state.n_blocks : end] = blocks
        state.n_blocks = end
