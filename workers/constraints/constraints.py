"""The rows that have a grammar, and the threads that compute the mask of each one's next token.

The engines release the GIL, so this goes on while the forward pass runs. A row whose mask is not
ready when its token is due samples nothing in that step, and no other row waits for it.
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
"""The nice value of the threads that build matchers and fill slow masks."""


class _Followed:
    """A row with a grammar, and whether its next mask is ready."""

    __slots__ = ("error", "make", "output", "ready", "row", "slow", "state", "was_not_ready")

    def __init__(self, row: int, make: Callable[[], Progress], output: list[int]) -> None:
        self.row = row
        self.make = make
        self.state = make()
        self.output = output
        """All that was generated, the tokens included that it is advanced by now."""
        self.ready = False
        self.error = ""
        self.slow = False
        self.was_not_ready = False


class Constraints:
    """Compute masks in threads: `_work` and `_advance` run there, all else on the worker's
    loop."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        """Hold the rows. `vocabulary` is called once, in a thread: by `prepare`, or for the first
        grammar."""
        self._make_vocabulary = vocabulary
        self._vocabulary: Future[Vocabulary] | None = None
        self._rows: dict[int, _Followed] = {}
        self._n_words = -(-vocab_size // 32)
        self._quick: ThreadPoolExecutor | None = None
        self._slow: ThreadPoolExecutor | None = None
        self._taken: list[tuple[_Followed, list[int]]] = []
        """What `go` will give to the threads."""
        self._done = threading.Event()
        self._making = threading.Lock()
        """Held to make the vocabulary again."""

    def __bool__(self) -> bool:
        """Return whether any row has a grammar."""
        return bool(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def prepare(self) -> None:
        """Start the threads and build the vocabulary for the first grammar."""
        if self._slow is None:
            self._quick = ThreadPoolExecutor(1, "masks")
            self._slow = ThreadPoolExecutor(2, "grammars", _be_nice)
            self._vocabulary = self._slow.submit(self._make_vocabulary)

    def admit(
        self, row: int, constraint: Constraint, output: list[int], jump_forward: bool
    ) -> None:
        """Add a row that has generated `output` already. See `Progress`."""
        self.prepare()
        assert self._slow is not None
        # Its own memory: a thread may still fill the mask of the request that had the row before.
        mask = np.zeros(self._n_words, np.int32)
        make = partial(Progress, constraint, jump_forward, mask)
        followed = self._rows[row] = _Followed(row, make, list(output))
        self._slow.submit(self._work, followed, partial(self._begin, followed))

    def release(self, row: int) -> None:
        """Remove a row."""
        self._rows.pop(row, None)

    def still_not_ready(self, row: int) -> bool:
        """Return whether the row's mask was not ready in an earlier step and still is not."""
        followed = self._rows.get(row)
        return followed is not None and followed.was_not_ready and not followed.ready

    def wait(self, rows: Iterable[int], seconds: float) -> None:
        """Wait until these rows' masks are ready, at most so many seconds."""
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

    def mask_not_ready(self, row: int) -> bool:
        """Return whether the row's mask is not ready yet, and remember it."""
        followed = self._rows.get(row)
        if followed is None:
            return False
        followed.was_not_ready = not followed.ready
        return followed.was_not_ready

    def ready(self, row: int) -> bool:
        """Return whether a row can go on, and its mask is ready; True without a grammar."""
        followed = self._rows.get(row)
        return followed is None or (followed.ready and not followed.error)

    def slow(self, row: int) -> bool:
        """Return whether a row's last mask took so long that others should not wait for the
        next."""
        followed = self._rows.get(row)
        return followed is not None and followed.slow

    def error(self, row: int) -> str:
        """Return why a row whose mask is ready cannot go on; empty if it can."""
        followed = self._rows.get(row)
        return "" if followed is None else followed.error

    def next(self, row: int) -> Progress | None:
        """Return the state of a row whose mask is ready; None if it has no grammar."""
        followed = self._rows.get(row)
        return None if followed is None else followed.state

    def ends(self, row: int, token: int) -> bool:
        """Return whether a token ends the text of a row whose mask is ready, as its grammar has
        it; False for a row without one."""
        followed = self._rows.get(row)
        return followed is not None and followed.state.ends(token)

    def advance(self, taken: dict[int, list[int]]) -> None:
        """Note the tokens that rows were given; `go` then has their next masks computed."""
        for row, tokens in taken.items():
            followed = self._rows.get(row)
            if followed is not None and not followed.error:
                followed.ready = False
                self._taken.append((followed, tokens))

    def go(self) -> None:
        """Start the threads on it. Best called just before this thread computes in C: earlier, they
        would only contend for the GIL."""
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

    def _begin(self, followed: _Followed) -> None:
        followed.state.begin(self._known_vocabulary(), followed.output)

    def _known_vocabulary(self) -> Vocabulary:
        with self._making:
            made = self._vocabulary
            assert made is not None
            if made.done() and made.exception() is not None:
                # Memory may have been short then.
                made = self._vocabulary = Future()
                made.set_result(self._make_vocabulary())
        return made.result()

    def _advance(self, taken: list[tuple[_Followed, list[int]]]) -> None:
        for followed, tokens in taken:
            began = time.thread_time()  # work of other threads on the same core does not count
            followed.output += tokens
            self._work(followed, partial(followed.state.advance, tokens))
            followed.slow = time.thread_time() - began > SLOW_SECONDS

    def _work(self, followed: _Followed, work: Callable[[], None]) -> None:
        if self._rows.get(followed.row) is not followed:
            return  # it was released
        try:
            try:
                work()
            except GrammarError:
                raise
            except BaseException:  # an engine's panic is no Exception
                log.exception("a grammar engine failed; it is tried once more, from the beginning")
                followed.state = followed.make()
                self._begin(followed)
        except GrammarError as error:
            followed.error = f"the grammar cannot be followed: {error}"
        except BaseException as error:
            log.exception("a grammar engine failed again: the text of its row fails")
            followed.error = f"the grammar engine failed: {error}"
        followed.ready = True
        self._done.set()


def _be_nice() -> None:
    thread = threading.get_native_id()
    # A server that was started nicer stays so: only root may be less nice than before.
    already = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, already))
