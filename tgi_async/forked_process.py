"""A child of this process that another one forked."""

from __future__ import annotations

import asyncio
import os


class ForkedProcess:
    """To its owner what `asyncio.subprocess.Process` is: it has an id, takes signals and ends."""

    def __init__(self, pid: int) -> None:
        """Raises OSError where the kernel does not say when it ends (before Linux 5.3), or where it
        is no child of this process."""
        self.pid = pid
        self.returncode: int | None = None
        """Its exit status, or minus the number of the signal that ended it."""
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._descriptor = os.pidfd_open(pid)
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            os.close(self._descriptor)
            raise
        self._loop.add_reader(self._descriptor, self._on_end)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.returncode is None:
            # Until it is waited for, no other process gets its id.
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Return its `returncode` once it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _on_end(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._ended.set()
