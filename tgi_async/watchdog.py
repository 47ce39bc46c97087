"""Answer for the server while its event loop is stuck.

A loop that computes, or waits for something that blocks, answers nobody, and a probe that runs into
its timeout does not say why. So a thread watches the loop. Where this has not turned for
`STUCK_SECONDS`, the log shows what it does, and until it turns again the thread takes the
connections that come (`stand_in.py`): everything gets a 503 with the reason, so that load balancers
and readiness probes go elsewhere; `/health/live` gets a 200 up to `LIVE_SECONDS`, after which only
a restart helps.

Code that holds Python's lock stops this thread too. Then the stacks are written to stderr, as is
done without that lock, and connections wait.

Only time in which this process ran counts: a suspended machine, or a container that was paused, has
no loop that is stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import logging
import socket
import sys
import threading
import time
import traceback

from tgi_async.api.error_body import error_body
from tgi_async.certificate import Certificate
from tgi_async.errors import RETRY_AFTER_SECONDS
from tgi_async.stand_in import StandIn

log = logging.getLogger(__name__)

STUCK_SECONDS = 3.0
LIVE_SECONDS = 60.0
LOOK_SECONDS = 0.25
LOCKED_SECONDS = 20.0
LIVE_PATHS = (b"/health/live", b"/v2/health/live")


class Watchdog:
    """A thread that watches the running loop, and answers at `listener` while it is stuck."""

    def __init__(self, listener: socket.socket, certificate: Certificate | None) -> None:
        self._stand_in = StandIn(listener, certificate, self._reply)
        self._loop = asyncio.get_running_loop()
        self._of_loop = threading.get_ident()
        self._turns = 0
        self._stuck = 0.0
        """Seconds since the loop turned last, of those in which this process ran."""
        self._answers = True
        self._ended = threading.Event()
        self._turn()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def leave_socket(self) -> None:
        """Take no connection from now on: nobody listens here any more, or another server does."""
        self._answers = False

    def end(self) -> None:
        """Watch no more."""
        self.leave_socket()
        self._ended.set()
        self._timer.cancel()

    def _turn(self) -> None:
        self._turns += 1
        self._timer = self._loop.call_later(LOOK_SECONDS, self._turn)

    def _watch(self) -> None:
        seen, looked = -1, time.monotonic()
        arm_at = looked
        while True:
            self._stand_in_or_wait()
            if self._ended.is_set():
                break
            now = time.monotonic()
            passed, looked = min(now - looked, 2 * LOOK_SECONDS), now
            if self._turns != seen:
                if self._stuck >= STUCK_SECONDS:
                    log.warning("the event loop goes on, after %.1f s", self._stuck)
                seen, self._stuck = self._turns, 0.0
                if now >= arm_at:
                    self._arm()
                    arm_at = now + LOCKED_SECONDS / 4
                continue
            before, self._stuck = self._stuck, self._stuck + passed
            if before < STUCK_SECONDS <= self._stuck:
                self._show()
        self._stand_in.close()
        with contextlib.suppress(io.UnsupportedOperation, ValueError):
            faulthandler.cancel_dump_traceback_later()

    def _stand_in_or_wait(self) -> None:
        """Answer in place of a stuck loop, or wait until it is time to look at it."""
        takes = self._answers and self._stuck >= STUCK_SECONDS
        # Those that were taken have their answers, though the loop may go on by then.
        if takes or self._stand_in.is_talking:
            self._stand_in.turn(LOOK_SECONDS, takes=takes)
        else:
            self._ended.wait(LOOK_SECONDS)

    def _arm(self) -> None:
        """Have the stacks written where even this thread does not get on."""
        # Without a stderr there is nowhere to write to.
        with contextlib.suppress(AttributeError, io.UnsupportedOperation, ValueError, OSError):
            faulthandler.dump_traceback_later(LOCKED_SECONDS)

    def _show(self) -> None:
        frame = sys._current_frames().get(self._of_loop)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "it has ended"
        log.error(
            "the event loop has been stuck for %.1f s, and /health says so; it is here:\n%s",
            self._stuck,
            stack.rstrip(),
        )

    def _reply(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path in LIVE_PATHS and self._stuck < LIVE_SECONDS:
            return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        message = f"The server has been stuck for {self._stuck:.0f} s"
        shown = path.decode("latin-1")[:200]
        body = error_body(shown, 503, message, code="stuck", seconds=round(self._stuck, 1))
        lines = (
            b"HTTP/1.1 503 Service Unavailable",
            b"retry-after: %d" % RETRY_AFTER_SECONDS,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
            b"",
            b"" if method == b"HEAD" else body,
        )
        return b"\r\n".join(lines)
