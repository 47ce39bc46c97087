"""The persistent batch: the state of each row between steps.

The router sends differences (rows admitted and released, blocks granted); everything else, such as
the token a row just sampled, never leaves the worker's device before the next step needs it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Admit, Grow
from workers.transfer import send


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
        "spans",
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
        self.spans = [(span.start, span.end) for span in admit.spans]
        self.failed = False

    @property
    def prefilling(self) -> bool:
        """Whether tokens known on the host are still to be computed."""
        return self.n_computed < len(self.tokens)

    def n_known(self, n: int) -> int:
        """Return how many of its next `n` positions hold tokens that are not drafts, at least one.

        Of a row that is not `prefilling` the next token is the one it sampled last.
        """
        return min(n, max(1, len(self.tokens) - self.n_computed))

    def samples(self, n: int) -> bool:
        """Return whether it samples when it computes its next `n` positions."""
        return self.n_computed + n >= len(self.tokens)

    def spans_within(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return the spans of these positions, which cut none."""
        return tuple(span for span in self.spans if start <= span[0] and span[1] <= end)

    def extend(self, tokens: list[int]) -> None:
        """Store the last token, and the jump-forward tokens after it, on the host.

        `tokens` has at least two; earlier ones are not needed any more.
        """
        start = self.length - 1
        self.length = start + len(tokens)
        self.tokens = np.zeros(self.length, np.int64)
        self.tokens[start:] = tokens

    def accept(self, n_computed: int) -> None:
        """Go on behind so many positions, of which the last ones held accepted drafts."""
        self.n_computed = n_computed
        if self.length - n_computed == 1:
            # What is left is the last token, as in any decode.
            self.tokens = self.tokens[:n_computed]


class RowTable:
    """Rows by number, their block tables, and the last sampled token of each."""

    def __init__(
        self,
        max_rows: int,
        max_total_tokens: int,
        block_size: int,
        device: torch.device,
        max_drafts: int = 0,
    ) -> None:
        """Hold up to `max_rows` rows. Each may have `max_drafts` drafts in a step."""
        self.block_size = block_size
        max_blocks = -(-max_total_tokens // block_size)
        self.block_tables = np.zeros((max_rows, max_blocks), np.int32)
        n_lines = max_rows + 1 + max_rows * max_drafts
        self.last_tokens = torch.zeros(n_lines, dtype=torch.int64, device=device)
        """int64 [max_rows + 1 + max_rows * max_drafts]: of each row, of rows that pad a batch, and
        the drafts of the step that is computed."""
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

    def put_drafts(self, drafts: list[int]) -> NDArray[np.int64]:
        """Write the drafts of a step to `last_tokens`; return the line of each."""
        start = self.padding_row + 1
        end = start + len(drafts)
        if drafts:
            there = send(np.asarray(drafts, np.int64), self.last_tokens.device)
            self.last_tokens[start:end] = there
        return np.arange(start, end)

    def slots(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the keys and values of these positions go, as block * block_size +
        offset."""
        size = self.block_size
        blocks = self.block_tables[rows, positions // size].astype(np.int64)
        return blocks * size + positions % size

    def _append(self, row: int, blocks: list[int]) -> None:
        state = self[row]
        end = state.n_blocks + len(blocks)
        if end > self.block_tables.shape[1]:
            raise ValueError(
                f"row {row} was given {end} blocks and can have {self.block_tables.shape[1]}"
            )
        self.block_tables[row, state.n_blocks : end] = blocks
        state.n_blocks = end
