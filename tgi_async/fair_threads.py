"""Threads that serve clients in turn.

What has to be done for a request before it can stand in the scheduler's queue (a template to be
rendered, a prompt to be tokenized, a grammar to be tried) takes turns too: a client with many
requests, or with long ones, holds up another's by no more than what runs already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from threading import Lock
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""The client that the current task works for."""


class FairThreads(Executor):
    """A thread pool that serves clients in turn, and first come, first served within one client."""

    def __init__(self, n_threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
        self._waiting: OrderedDict[str, dict[Future[Any], Callable[[], Any]]] = OrderedDict()
        """Waiting work by client, in the order of their turns."""
        self._lock = Lock()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn` for the client of this task. Raises RuntimeError after `shutdown`."""
        future: Future[R] = Future()
        client = CLIENT.get()
        with self._lock:
            self._waiting.setdefault(client, {})[future] = lambda: fn(*args, **kwargs)
        # Cancelled work is dropped at once, with all that it holds.
        future.add_done_callback(lambda future: self._take_out(client, future))
        self._threads.submit(self._run_next)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more work."""
        if cancel_futures:
            with self._lock:
                futures = [future for queue in self._waiting.values() for future in queue]
            for future in futures:
                future.cancel()
        self._threads.shutdown(wait)

    def _run_next(self) -> None:
        with self._lock:
            if not self._waiting:
                return  # It was cancelled.
            client, queue = self._waiting.popitem(last=False)
            future = next(iter(queue))
            call = queue.pop(future)
            if queue:
                self._waiting[client] = queue
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
            del future, call  # The error's traceback holds this frame, and so all they hold.
        else:
            future.set_result(result)

    def _take_out(self, client: str, future: Future[Any]) -> None:
        with self._lock:
            queue = self._waiting.get(client)
            if queue is not None and queue.pop(future, None) is not None and not queue:
                del self._waiting[client]
