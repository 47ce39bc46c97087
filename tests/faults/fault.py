"""The kinds of faults, and how each is brought about in a running server."""

from __future__ import annotations

import random
import signal
from typing import Literal, NamedTuple

from tests.doubles.faulty_worker import How, Plan, Where

Needs = Literal["", "ranks", "drafts"]
MOST_PASSES: dict[Where, int] = {
    "receive": 24,
    "admit": 24,
    "forward": 24,
    "attention": 90,
    "collective": 150,
    "mask": 90,
    "drafts": 6,
    "sampling": 24,
    "sampled": 24,
    "reply": 24,
    "load": 1,
}
"""How often a worker surely comes there while it serves `asked(32)`."""


class Fault(NamedTuple):
    """One kind: a signal to a rank, a failure at a place of a worker, or both, the signal first."""

    name: str
    signal: int = 0
    where: Where | None = None
    how: How = "RuntimeError"
    times: int = 1
    rank: int = 0
    needs: Needs = ""
    survived: bool = False
    """Whether the worker goes on without a restart, where it is alone."""

    def plan(self, draw: random.Random) -> Plan | None:
        """Return a plan for a random moment; None if a signal is all."""
        if self.where is None:
            return None
        # Behind a signal it is the next worker that fails, at its first steps.
        most = 3 if self.signal else MOST_PASSES[self.where]
        after = draw.randint(1, min(most, MOST_PASSES[self.where]))
        return Plan(where=self.where, how=self.how, after=after, times=self.times, rank=self.rank)


FAULTS = (
    Fault("SIGKILL", signal.SIGKILL),
    Fault("SIGSTOP", signal.SIGSTOP),
    Fault("segmentation fault", where="forward", how="segfault"),
    Fault("exit in order, unasked", where="forward", how="exit"),
    # -- errors in each phase
    Fault("error while receiving", where="receive"),
    Fault("error while admitting", where="admit", how="KeyError"),
    Fault("error in the forward pass", where="forward", survived=True),
    Fault("another error in the forward pass", where="forward", how="KeyError"),
    Fault("error in attention", where="attention", survived=True),
    Fault("error before sampling", where="sampling", survived=True),
    Fault("error after sampling", where="sampled"),
    Fault("error in a grammar's mask", where="mask", survived=True),
    Fault("error while drafting", where="drafts", needs="drafts"),
    Fault("error while replying", where="reply"),
    Fault("error while loading again", signal.SIGKILL, where="load"),
    Fault("broken file while loading again", signal.SIGKILL, where="load", how="OSError"),
    # -- allocation failures
    Fault("allocation failure in the forward pass", where="forward", how="OutOfMemoryError",
          survived=True),
    Fault("allocation failure of the host", where="forward", how="MemoryError", survived=True),
    Fault("allocation failure in sampling", where="sampling", how="OutOfMemoryError",
          survived=True),
    Fault("allocation failure again and again", where="forward", how="OutOfMemoryError",
          times=1000),
    # -- sockets and frames
    Fault("cut sockets", where="reply", how="cut"),
    Fault("cut sockets before a step", where="receive", how="cut"),
    Fault("corrupt frame to the worker", where="receive", how="garbage"),
    Fault("corrupt frame", where="reply", how="garbage"),
    Fault("truncated frame", where="reply", how="truncated"),
    Fault("frame of another version", where="reply", how="other version"),
    Fault("frame of another step", where="reply", how="other step"),
    Fault("doubled frame", where="reply", how="twice"),
    Fault("lost frame", where="reply", how="lost"),
    # -- hangs
    Fault("hang in the forward pass", where="forward", how="hang"),
    Fault("hang while replying", where="reply", how="hang"),
    # -- several at once
    Fault("death in the replay", signal.SIGKILL, where="receive", how="kill"),
    Fault("death while loading again", signal.SIGKILL, where="load", how="kill"),
    # -- a rank of several
    Fault("SIGKILL to rank 1", signal.SIGKILL, rank=1, needs="ranks"),
    Fault("SIGSTOP to rank 1", signal.SIGSTOP, rank=1, needs="ranks"),
    Fault("error on rank 1", where="forward", rank=1, needs="ranks"),
    Fault("allocation failure on rank 1", where="forward", how="OutOfMemoryError", rank=1,
          needs="ranks"),
    Fault("stuck collective", where="collective", how="hang", needs="ranks"),
    Fault("stuck collective of rank 1", where="collective", how="hang", rank=1, needs="ranks"),
)  # fmt: skip


def named(name: str) -> Fault:
    """Return the fault of this name."""
    (found,) = (one for one in FAULTS if one.name == name)
    return found


def drawn(n: int, draw: random.Random, has: set[Needs]) -> list[Fault]:
    """Return `n` faults that a server which `has` these can have: each kind as often as the
    others, in random order."""
    possible = [one for one in FAULTS if one.needs in has | {""}]
    made: list[Fault] = []
    while len(made) < n:
        made += draw.sample(possible, len(possible))
    return made[:n]
