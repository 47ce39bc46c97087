"""ZeroMQ sockets between the router and the workers of one epoch.

Each rank pulls from a socket of its own; all ranks push replies to one. Steps go to rank 0 alone,
which drives the others; start and stop go to all. The sockets are `ipc://` files in a folder that
only this user can enter. Each epoch of the workers has new sockets, so that no frame of a dead one
can reach it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

from tgi_async.errors import StartError
from tgi_async.wire.codec import MAX_FRAME_BYTES, to_router_codec, to_worker_codec
from tgi_async.wire.messages import Step, ToRouter, ToWorker

HIGH_WATER = 64
"""Frames that may wait in a socket: far more than the steps that are ever in flight."""


def _address(folder: Path, name: str) -> str:
    return f"ipc://{folder / name}"


def _configure(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)


class RouterChannel:
    """The router's end. `folder` must exist and be private (mode 0700).

    Replies are polled for after `wait`: so a reply needs no task, and several are taken in one turn
    of the event loop.

    Raises StartError where no socket can be made in `folder`.
    """

    def __init__(self, folder: Path, epoch: int, ranks: Sequence[int]) -> None:
        self._codec_out = to_worker_codec()
        self._codec_in = to_router_codec()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._replies = self._context.socket(zmq.PULL)
        _configure(self._replies)
        try:
            self._replies.bind(_address(folder, f"replies-{epoch}"))
        except zmq.ZMQError as error:
            self._replies.close()
            self._context.term()
            raise StartError(
                f"No socket for the workers can be made in {folder}: {error}. Set TMPDIR to a "
                "folder that can be written and has a short path."
            ) from error
        self._steps: list[zmq.Socket[Any]] = []
        for rank in ranks:
            socket = self._context.socket(zmq.PUSH)
            _configure(socket)
            # Connecting before the worker binds lets frames wait for it.
            socket.connect(_address(folder, f"steps-{epoch}-{rank}"))
            self._steps.append(socket)
        self._loop = asyncio.get_running_loop()
        self._readable: int = self._replies.FD
        """A descriptor that is readable from when a reply comes until the next poll."""
        self._watched = False
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False

    def send(self, message: ToWorker) -> None:
        """Send a step to the first rank, anything else to every rank.

        Raises zmq.Again where a rank no longer reads.
        """
        frame = self._codec_out.encode(message)
        for socket in self._steps[:1] if isinstance(message, Step) else self._steps:
            socket.send(frame, zmq.NOBLOCK)

    def poll(self) -> ToRouter | None:
        """Return the next reply, if one has arrived. Raises WireError for anything outside the
        schema."""
        try:
            frame = self._replies.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return self._codec_in.decode(frame)

    async def wait(self) -> None:
        """Return when a reply may have arrived, or when woken, after a poll that found none.

        It returns at once where `wake` was called while no task waited.
        """
        if self._woken:
            self._woken = False
            return
        if not self._watched:
            self._loop.add_reader(self._readable, self._on_readable)
            self._watched = True
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Wake the task that waits."""
        if self._waiter is None:
            self._woken = True
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Cancel the task that waits. May be repeated."""
        self._unwatch()
        if self._waiter is not None:
            self._waiter.cancel()
        for socket in self._steps:
            socket.close()
        self._replies.close()
        self._context.term()

    def _on_readable(self) -> None:
        if self._waiter is None:
            # It stays readable until it is polled, and would call here again and again.
            self._unwatch()
        else:
            self.wake()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._readable)
            self._watched = False


class WorkerChannel:
    """A worker's end."""

    def __init__(self, folder: Path, epoch: int, rank: int) -> None:
        self._codec_in = to_worker_codec()
        self._codec_out = to_router_codec()
        self._context = zmq.Context()
        self._steps = self._context.socket(zmq.PULL)
        _configure(self._steps)
        self._steps.bind(_address(folder, f"steps-{epoch}-{rank}"))
        self._replies = self._context.socket(zmq.PUSH)
        _configure(self._replies)
        self._replies.connect(_address(folder, f"replies-{epoch}"))

    def receive(self, milliseconds: int | None = None) -> ToWorker | None:
        """Return the next frame; None if none comes in time. A time of None waits for ever."""
        if milliseconds is not None and not self._steps.poll(milliseconds):
            return None
        return self._codec_in.decode(self._steps.recv())

    def send(self, message: ToRouter) -> None:
        self._replies.send(self._codec_out.encode(message))

    def close(self) -> None:
        """Wait up to a second until everything is sent."""
        self._replies.setsockopt(zmq.LINGER, 1000)
        self._steps.close()
        self._replies.close()
        self._context.term()
