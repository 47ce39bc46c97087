"""The rows that follow grammars, and the threads that work out what each may say next.

The engines let go of the interpreter's lock, so this goes on while the forward pass runs. A row
whose mask is not there when its token is due is late: it sits out, and nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from tgi_async.wire.messages import Constraint
from workers.constraints.progress import Progress
from workers.constraints.vocabulary import Vocabulary
from workers.grammar.engine import GrammarError

log = logging.getLogger(__name__)

SLOW_SECONDS = 0.002
"""A row whose last mask took longer does not go before others."""
NICENESS = 5
"""Of the threads that build matchers and fill slow masks."""


class _Followed:
    """A row, and whether what may come next is known."""

    __slots__ = ("error", "ready", "row", "slow", "state", "was_late")

    def __init__(self, row: int, state: Progress) -> None:
        self.row = row
        self.state = state
        self.ready = False
        self.error = ""
        self.slow = False
        self.was_late = False


class Constraints:
    """`_begin` and `_advance` run in the threads, and all else on the worker's loop."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        """`vocabulary` is called once, in a thread: by `prepare`, or for the first grammar."""
        self._make_vocabulary = vocabulary
        self._vocabulary: Future[Vocabulary] | None = None
        self._rows: dict[int, _Followed] = {}
        self._n_words = -(-vocab_size // 32)
        self._quick: ThreadPoolExecutor | None = None
        self._slow: ThreadPoolExecutor | None = None
        self._taken: list[tuple[_Followed, list[int]]] = []
        """What `go` will hand to the threads."""
        self._done = threading.Event()

    def __bool__(self) -> bool:
        """Whether any row follows a grammar."""
        return bool(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def prepare(self) -> None:
        """Begin to get ready for the first grammar."""
        if self._slow is None:
            self._quick = ThreadPoolExecutor(1, "masks")
            self._slow = ThreadPoolExecutor(2, "grammars", _be_nice)
            self._vocabulary = self._slow.submit(self._make_vocabulary)

    def admit(self, row: int, constraint: Constraint, output: list[int], jumps: bool) -> None:
        """`row` enters, having said `output` already. See `Progress`."""
        self.prepare()
        assert self._slow is not None
        # Its own memory: a thread may still be filling the mask of who had the row before.
        mask = np.zeros(self._n_words, np.int32)
        followed = self._rows[row] = _Followed(row, Progress(constraint, jumps, mask))
        self._slow.submit(self._begin, followed, output)

    def release(self, row: int) -> None:
        """`row` leaves the batch."""
        self._rows.pop(row, None)

    def sits_out(self, row: int) -> bool:
        """Whether it is no use to compute this row now: it was late, and still is."""
        followed = self._rows.get(row)
        return followed is not None and followed.was_late and not followed.ready

    def wait(self, rows: Iterable[int], seconds: float) -> None:
        """Give these rows at most so long, until all are ready."""
        self.go()
        followed = [self._rows[row] for row in rows if row in self._rows]
        deadline = time.monotonic() + seconds
        while not all(one.ready for one in followed):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._done.clear()
            if not all(one.ready for one in followed):
                self._done.wait(left)

    def late(self, row: int) -> bool:
        """Whether it cannot be said yet what may come next in `row`."""
        followed = self._rows.get(row)
        if followed is None:
            return False
        followed.was_late = not followed.ready
        return followed.was_late

    def slow(self, row: int) -> bool:
        """Whether a row's last mask took so long that others should not wait for the next."""
        followed = self._rows.get(row)
        return followed is not None and followed.slow

    def error(self, row: int) -> str:
        """Why a row that is not late cannot go on; empty if it can."""
        followed = self._rows.get(row)
        return "" if followed is None else followed.error

    def next(self, row: int) -> Progress | None:
        """What may come next in a row that is not late; None if anything may."""
        followed = self._rows.get(row)
        return None if followed is None else followed.state

    def advance(self, taken: dict[int, list[int]]) -> None:
        """Rows took these tokens: what may come next in each is to be worked out, once told to
        `go`."""
        for row, tokens in taken.items():
            followed = self._rows.get(row)
            if followed is not None and not followed.error:
                followed.ready = False
                self._taken.append((followed, tokens))

    def go(self) -> None:
        """Let the threads begin. The best time is when this one is about to compute in C: before,
        they would only take the interpreter's lock from each other."""
        if not self._taken:
            return
        assert self._quick is not None
        assert self._slow is not None
        taken, self._taken = self._taken, []
        quick: list[tuple[_Followed, list[int]]] = []
        for followed, tokens in taken:
            if followed.slow or followed.state.checks_after(len(tokens)):
                self._slow.submit(self._advance, [(followed, tokens)])
            else:
                quick.append((followed, tokens))
        if quick:
            self._quick.submit(self._advance, quick)

    def _begin(self, followed: _Followed, output: list[int]) -> None:
        assert self._vocabulary is not None
        vocabulary = self._vocabulary
        self._work(followed, lambda: followed.state.begin(vocabulary.result(), output))

    def _advance(self, taken: list[tuple[_Followed, list[int]]]) -> None:
        for followed, tokens in taken:
            began = time.thread_time()  # others' work on the same core does not count
            self._work(followed, partial(followed.state.advance, tokens))
            followed.slow = time.thread_time() - began > SLOW_SECONDS

    def _work(self, followed: _Followed, work: Callable[[], None]) -> None:
        if self._rows.get(followed.row) is not followed:
            return  # it left
        try:
            work()
        except GrammarError as error:
            followed.error = f"the grammar cannot be followed: {error}"
        except BaseException as error:  # a panic of an engine is no Exception
            log.exception("an engine of grammars failed")
            followed.error = f"the grammar's engine failed: {error}"
        followed.ready = True
        self._done.set()


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
