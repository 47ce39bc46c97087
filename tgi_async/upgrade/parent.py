"""What a server knows of the process that started it for an upgrade."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, MutableMapping

from tgi_async.upgrade.process import FREED, HOLDING, MOST_BYTES, READY, RETIRE, UPGRADE, VARIABLE


class Parent:
    """The other end of the channel. `waits`: the device is not free yet."""

    def __init__(self, listener: socket.socket, channel: socket.socket, *, waits: bool) -> None:
        self.listener = listener
        self.waits = waits
        self.freed = asyncio.Event()
        self._channel = channel

    @classmethod
    def found(cls, environment: MutableMapping[str, str] = os.environ) -> Parent | None:
        """Return it, or None where no server started this one. Children do not find it again."""
        value = environment.pop(VARIABLE, None)
        if value is None:
            return None
        handed = json.loads(value)
        listener, channel = (socket.socket(fileno=handed[name]) for name in ("listener", "channel"))
        for one in (listener, channel):
            one.set_inheritable(False)
            one.setblocking(False)
        return cls(listener, channel, waits=handed["waits"])

    def follow(self, on_retire: Callable[[], None], on_gone: Callable[[], None]) -> None:
        """Call `on_retire` when another server takes this one's place, `on_gone` when the parent is
        gone, from now on."""

        def read() -> None:
            try:
                message = self._channel.recv(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message == RETIRE:
                on_retire()
            elif message == FREED:
                self.freed.set()
            elif not message:
                loop.remove_reader(self._channel)
                on_gone()

        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, read)

    async def wait(self) -> None:
        """Say that this server holds requests, and wait for the device."""
        self._say(HOLDING)
        await self.freed.wait()

    def ready(self, device: str) -> None:
        """Say that this server answers, on this device."""
        self._say(READY + b" " + device.encode()[: MOST_BYTES // 2])

    def upgrade(self) -> None:
        """Pass on that somebody asked this server for an upgrade."""
        self._say(UPGRADE)

    def _say(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `follow` reports
            self._channel.send(message)
