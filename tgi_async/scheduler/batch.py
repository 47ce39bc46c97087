"""What runs: requests, their rows, and the tables of blocks that they hold.

Frees wait: the table of a request that ended or was preempted is closed once the last step that may
touch its blocks is acknowledged.
"""

from __future__ import annotations

from collections import deque

from tgi_async.scheduler.blocks import BlockManager, BlockTable
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request
from tgi_async.scheduler.results import InFlight


class RunningBatch:
    """The requests that run, and the steps in flight that compute them."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.blocks = BlockManager(budget.pools, budget.block_size)
        self.running: list[Request] = []
        """In order of arrival."""
        self._free_rows = list(range(budget.max_rows - 1, -1, -1))
        self._release: list[int] = []
        """Rows that the next step releases."""
        self._in_flight: deque[InFlight] = deque()
        self._closing: list[BlockTable] = []
        """Tables of ended requests, waiting for the steps in flight that may touch them."""
        self._last_step = 0
        self._acknowledged = 0
        self._committed_tokens = 0
        """Prompt tokens and maximum output tokens of all running requests."""

    @property
    def in_flight(self) -> list[InFlight]:
        """The steps that were sent and not completed, the oldest first."""
        return list(self._in_flight)

    def _clear(self) -> None:
        """Forget all that runs, with its blocks, and what is in flight."""
        self._in_flight.clear()
        self._acknowledged = self._last_step
        self._closing.clear()
        self._release.clear()
        self.blocks.reset()
        self.running.clear()
        self._committed_tokens = 0
        self._free_rows = list(range(self.budget.max_rows - 1, -1, -1))

    def _leave(self, request: Request) -> None:
        """Take a request out of the running batch."""
        table = request.table
        assert table is not None
        self.running.remove(request)
        self._release.append(request.row)
        self._free_rows.append(request.row)
        self._committed_tokens -= request.n_prompt + request.max_new_tokens
        request.table = None
        if table.last_step > self._acknowledged:
            self._closing.append(table)
        else:
            self.blocks.close(table)

    def _close_tables(self) -> None:
        """Close the tables whose last steps have been acknowledged."""
        still = []
        for table in self._closing:
            if table.last_step > self._acknowledged:
                still.append(table)
            else:
                self.blocks.close(table)
        self._closing = still

    def _n_blocks(self, n_tokens: int) -> int:
        return -(-n_tokens // self.budget.block_size)

    def _short(self, request: Request, end: int) -> int:
        """Return how many blocks a row lacks to compute its positions before `end`, or all it ever
        will."""
        assert request.table is not None
        needed = self._n_blocks(min(end, request.limit))
        return max(0, needed - len(request.table.blocks))
