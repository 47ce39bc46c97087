from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from threading import Event

import pytest

from tgi_async.errors import ValidationError
from tgi_async.fair_threads import CLIENT, FairThreads


@pytest.fixture
def threads() -> Iterator[FairThreads]:
    threads = FairThreads(1, "test")
    yield threads
    threads.shutdown()


class Busy:
    """Holds up the one thread while others queue, and notes the order in which they run."""

    def __init__(self, threads: FairThreads) -> None:
        self._threads = threads
        self.go = Event()
        self.order: list[str] = []
        began = Event()

        def hold() -> None:
            began.set()
            self.go.wait(10)

        threads.submit(hold)
        began.wait(10)

    def ask(self, client: str, name: str) -> Future[None]:
        CLIENT.set(client)
        return self._threads.submit(self.order.append, name)


def test_clients_take_turns_however_many_wait_for_one(threads: FairThreads) -> None:
    busy = Busy(threads)
    asked = [busy.ask("eve", f"eve {number}") for number in range(4)]
    asked += [
        busy.ask(client, f"{client} {number}") for number in (0, 1) for client in ("ann", "bob")
    ]
    busy.go.set()
    for one in asked:
        one.result(10)
    assert busy.order == [
        *("eve 0", "ann 0", "bob 0"),
        *("eve 1", "ann 1", "bob 1"),
        *("eve 2", "eve 3"),
    ]


def test_what_is_cancelled_does_not_run_and_holds_nothing(threads: FairThreads) -> None:
    class Prompt:
        """Something large."""

        def use(self) -> None:
            raise AssertionError("it ran")

    busy = Busy(threads)
    prompt = Prompt()
    gone = weakref.ref(prompt)
    future = threads.submit(prompt.use)
    del prompt
    assert future.cancel()
    gc.collect()
    assert gone() is None
    last = busy.ask("ann", "last")
    busy.go.set()
    last.result(10)
    assert busy.order == ["last"]


def test_results_and_errors_come_back(threads: FairThreads) -> None:
    assert threads.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(10)


def test_after_the_end_nothing_is_taken() -> None:
    threads = FairThreads(1, "test")
    busy = Busy(threads)
    waiting = busy.ask("ann", "never")
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(10)
    with pytest.raises(RuntimeError):
        threads.submit(int)
    busy.go.set()
    threads.shutdown()
    assert busy.order == []


def test_an_error_holds_nothing_of_the_work_once_it_has_been_read(threads: FairThreads) -> None:
    class Prompt:
        def use(self) -> None:
            raise ValidationError("no")

    prompt = Prompt()
    gone = weakref.ref(prompt)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValidationError):
            threads.submit(prompt.use).result(10)
        threads.submit(int).result(10)  # the thread has left the first work behind
        del prompt
        assert gone() is None
    finally:
        gc.enable()
