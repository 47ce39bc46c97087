"""Answer for the server while its event loop is stuck.

A loop that computes, or waits for something that blocks, answers nobody, and a probe that runs into
its timeout does not say why. So a thread watches the loop. Where this has not turned for
`STUCK_SECONDS`, the log shows what it does, and until it turns again the thread takes the
connections that come: everything gets a 503 with the reason, so that load balancers and readiness
probes go elsewhere; `/health/live` gets a 200 up to `LIVE_SECONDS`, after which only a restart
helps.

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
import select
import socket
import ssl
import sys
import threading
import time
import traceback

from tgi_async.api.error_body import error_body
from tgi_async.certificate import Certificate
from tgi_async.errors import RETRY_AFTER_SECONDS

log = logging.getLogger(__name__)

STUCK_SECONDS = 3.0
LIVE_SECONDS = 60.0
LOOK_SECONDS = 0.25
LOCKED_SECONDS = 20.0
CLIENT_SECONDS = 0.5
"""How long one of these connections may take to send its request, and to read the reply."""
MOST_HEAD_BYTES = 16_384
LIVE_PATHS = (b"/health/live", b"/v2/health/live")


class Watchdog:
    """A thread that watches the running loop, and answers at `listener` while it is stuck."""

    def __init__(self, listener: socket.socket, certificate: Certificate | None) -> None:
        self._listener = listener
        self._certificate = certificate
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
        while not self._ended.wait(0 if self._stuck >= STUCK_SECONDS else LOOK_SECONDS):
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
            if self._stuck < STUCK_SECONDS:
                continue
            if before < STUCK_SECONDS:
                self._show()
            self._take()
        with contextlib.suppress(io.UnsupportedOperation, ValueError):
            faulthandler.cancel_dump_traceback_later()

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

    def _take(self) -> None:
        """Answer the next connection, if one comes soon."""
        try:
            if not self._answers or not select.select([self._listener], [], [], LOOK_SECONDS)[0]:
                self._ended.wait(0 if self._answers else LOOK_SECONDS)
                return
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # the loop was faster
        except (OSError, ValueError):
            self._answers = False  # it is closed
            return
        connection.settimeout(CLIENT_SECONDS)
        # What a client does wrong is its own affair.
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as closing:
            closing.enter_context(connection)
            if self._certificate is not None:
                connection = closing.enter_context(self._secure(connection))
            head = _head(connection)
            connection.sendall(self._reply(head))

    def _secure(self, connection: socket.socket) -> ssl.SSLSocket:
        assert self._certificate is not None
        return self._certificate.context.wrap_socket(connection, server_side=True)

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


def _head(connection: socket.socket) -> bytes:
    """Return the head of the request, as far as it comes in time. Raises OSError."""
    head = b""
    deadline = time.monotonic() + CLIENT_SECONDS
    while b"\r\n\r\n" not in head and len(head) < MOST_HEAD_BYTES:
        if time.monotonic() >= deadline or not (more := connection.recv(4096)):
            raise TimeoutError
        head += more
    return head
