"""A real worker that fails where and how a test says.

The environment variable FAULT_PLAN is the path of a file. What a test puts there is a `Plan`; the
first worker that comes to its place takes the file away, so that one plan is carried out once,
whichever epoch's worker it is. Beside it, `PATH.done` then has the time (of the monotonic clock).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from tgi_async.wire import codec
from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import Step, StepDone

VARIABLE = "FAULT_PLAN"
COMMAND = (sys.executable, "-m", "tests.doubles.faulty_worker")

Where = Literal[
    "receive", "admit", "forward", "attention", "collective", "mask", "drafts", "sampling",
    "sampled", "reply", "load",
]  # fmt: skip
"""Where a worker is: "sampling" is before tokens are sampled, "sampled" after it."""
How = Literal[
    "RuntimeError", "KeyError", "OSError", "OutOfMemoryError", "MemoryError", "hang", "kill",
    "stop", "segfault", "exit", "garbage", "truncated", "other version", "other step", "twice",
    "lost", "cut",
]  # fmt: skip
"""How it fails. Those from "garbage" to "lost" are of replies, "garbage" also of what is received.
"cut" closes its sockets."""


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """A failure to come."""

    where: Where
    how: How
    after: int = 1
    """At which time that one worker comes there, once the plan is known."""
    times: int = 1
    """How often in a row, counted from then."""
    rank: int = 0


class Faults:
    """The plan of a worker, if there is one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._plan: Plan | None = None
        self._n = 0
        self._taken = False
        self.rank = 0
        self.channel: WorkerChannel | None = None

    def due(self, where: Where) -> How | None:
        """Return how to fail here and now, if that is planned."""
        self._look()
        plan = self._plan
        if plan is None or plan.where != where or plan.rank != self.rank:
            return None
        self._n += 1
        if self._n < plan.after:
            return None
        if not self._taken:
            done = Path(f"{self._path}.taken-{os.getpid()}")
            try:
                os.rename(self._path, done)
            except FileNotFoundError:
                self._plan = None
                return None
            self._taken = True
            done.write_text(str(time.monotonic()))
            os.rename(done, f"{self._path}.done")
        if self._n == plan.after + plan.times - 1:
            self._plan = None
        return plan.how

    def strike(self, where: Where) -> How | None:
        """Fail, if that is planned. Return a way to fail that is up to the caller."""
        how = self.due(where)
        if how is not None:
            _fail(how, f"planned for {where}", self.channel)
        return how

    def _look(self) -> None:
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            return
        if self._seen != (seen := (stat.st_ino, stat.st_mtime_ns)):
            try:
                plan = msgspec.json.decode(Path(self._path).read_bytes(), type=Plan)
            except FileNotFoundError:
                return
            self._seen, self._plan, self._n, self._taken = seen, plan, 0, False


def _fail(how: How, why: str, channel: WorkerChannel | None) -> None:
    import torch

    if how == "RuntimeError":
        raise RuntimeError(why)
    if how == "OSError":
        raise OSError(5, why)
    if how == "KeyError":
        raise KeyError(why)
    if how == "OutOfMemoryError":
        raise torch.OutOfMemoryError(why)
    if how == "MemoryError":
        raise MemoryError(why)
    if how == "hang":
        time.sleep(3600)
    if how == "exit":
        os._exit(7)
    signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segfault": signal.SIGSEGV}
    if how in signals:
        os.kill(os.getpid(), signals[how])
        time.sleep(3600)
    if how == "cut":
        assert channel is not None
        channel._steps.close()
        channel._replies.close()


def _before(owner: Any, name: str, hook: Callable[[], object]) -> None:
    """Call `hook` before each call of a method or function."""
    original = getattr(owner, name)

    def called(*given: Any, **named: Any) -> Any:
        hook()
        return original(*given, **named)

    setattr(owner, name, called)


def install(faults: Faults) -> None:
    """Patch the worker's code."""
    import workers.worker
    from workers.attention.native import NativeAttention
    from workers.constraints.progress import Progress
    from workers.models.loading import FusedModel
    from workers.models.transformers_path import TransformersModel
    from workers.ranks import Ranks
    from workers.runner import Runner
    from workers.sampling import Sampler
    from workers.sampling.output import SamplerOutput
    from workers.speculation.speculation import Speculation

    made = workers.worker.Worker.__init__

    def make(self: Any, channel: WorkerChannel, rank: int = 0) -> None:
        faults.channel, faults.rank = channel, rank
        made(self, channel, rank)

    workers.worker.Worker.__init__ = make  # type: ignore[method-assign]
    _before(workers.worker, "load", lambda: faults.strike("load"))
    _before(Runner, "_admit", lambda: faults.strike("admit"))
    for model in (FusedModel, TransformersModel):
        _before(model, "forward", lambda: faults.strike("forward"))
    for name in ("forward", "metadata"):
        _before(NativeAttention, name, lambda: faults.strike("attention"))
    _before(Ranks, "_try", lambda: faults.strike("collective"))
    for name in ("begin", "advance"):
        _before(Progress, name, lambda: faults.strike("mask"))
    _before(Speculation, "propose", lambda: faults.strike("drafts"))
    _before(Sampler, "sample", lambda: faults.strike("sampling"))
    _before(SamplerOutput, "fetch", lambda: faults.strike("sampled"))
    _patch_channel(faults)


def _patch_channel(faults: Faults) -> None:
    receive, send = WorkerChannel.receive, WorkerChannel.send

    def received(self: WorkerChannel, milliseconds: int | None = None) -> Any:
        message = receive(self, milliseconds)
        if isinstance(message, Step) and faults.strike("receive") == "garbage":
            self._codec_in.decode(b"\x01 this is no frame")
        return message

    def sent(self: WorkerChannel, message: Any) -> None:
        how = faults.strike("reply") if isinstance(message, StepDone) else None
        frame = self._codec_out.encode(message)
        if how == "garbage":
            frame = b"\x01 this is no frame"
        elif how == "truncated":
            frame = frame[: len(frame) // 2]
        elif how == "other version":
            frame = bytes([codec.VERSION + 1]) + frame[1:]
        elif how == "other step":
            frame = self._codec_out.encode(msgspec.structs.replace(message, step=message.step + 9))
        elif how == "twice":
            send(self, message)
        elif how == "lost":
            return
        self._replies.send(frame)

    WorkerChannel.receive = received  # type: ignore[method-assign]
    WorkerChannel.send = sent  # type: ignore[method-assign]


if __name__ == "__main__":
    from workers.__main__ import main

    install(Faults(os.environ[VARIABLE]))
    main()
