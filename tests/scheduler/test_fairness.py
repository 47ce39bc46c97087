from __future__ import annotations

from itertools import count

import pytest

from tgi_async.scheduler import fairness
from tgi_async.scheduler.fairness import WaitingQueue
from tgi_async.scheduler.request import Request

_numbers = count(1)


def queued(queue: WaitingQueue, client: str) -> Request:
    request = Request(next(_numbers), [1], 1, client=client)
    request.arrival = request.id
    queue.add(request)
    return request


def test_an_empty_queue_has_no_head() -> None:
    queue = WaitingQueue()
    assert queue.head() is None
    assert len(queue) == 0


def test_within_a_client_the_first_come_is_first() -> None:
    queue = WaitingQueue()
    first, second = queued(queue, "ann"), queued(queue, "ann")
    assert queue.head() is first
    queue.remove(first)
    assert queue.head() is second


def test_clients_that_got_the_same_service_are_served_in_order_of_arrival() -> None:
    queue = WaitingQueue()
    first = queued(queue, "bob")
    queued(queue, "ann")
    assert queue.head() is first


def test_the_client_with_the_least_service_is_served_first() -> None:
    queue = WaitingQueue()
    queued(queue, "ann")
    other = queued(queue, "bob")
    queue.charge("ann", 1)
    assert queue.head() is other


def test_a_client_that_queues_later_starts_at_the_least_counter_of_the_queued() -> None:
    queue = WaitingQueue()
    queued(queue, "ann")
    queued(queue, "bob")
    queue.charge("ann", 10)
    queue.charge("bob", 7)
    queued(queue, "eve")
    assert queue.counter("eve") == 7


def test_a_client_that_queues_while_nobody_does_starts_at_the_last_that_left() -> None:
    queue = WaitingQueue()
    running = queued(queue, "ann")
    queue.remove(running)
    queue.charge("ann", 10)
    queued(queue, "bob")
    assert queue.counter("bob") == 10


def test_a_lift_never_lowers_a_counter() -> None:
    queue = WaitingQueue()
    running = queued(queue, "ann")
    queued(queue, "bob")
    queue.charge("ann", 10)
    queue.remove(running)
    queued(queue, "ann")
    assert queue.counter("ann") == 10


def test_a_client_with_something_queued_is_not_lifted() -> None:
    queue = WaitingQueue()
    queued(queue, "ann")
    queued(queue, "bob")
    queue.charge("ann", 3)
    queue.charge("bob", 9)
    queued(queue, "ann")
    assert queue.counter("ann") == 3


def test_a_preempted_request_is_before_those_that_came_after_it() -> None:
    queue = WaitingQueue()
    preempted, other = queued(queue, "ann"), queued(queue, "ann")
    queue.remove(preempted)
    queue.put_back(preempted)
    assert list(queue) == [preempted, other]
    assert len(queue) == 2


def test_a_client_is_queued_while_it_has_something_in_the_queue() -> None:
    queue = WaitingQueue()
    first, second = queued(queue, "ann"), queued(queue, "ann")
    queue.remove(first)
    assert queue.queued_clients == ["ann"]
    queue.remove(second)
    assert queue.queued_clients == []


def test_when_all_is_over_nothing_is_remembered_and_nobody_starts_behind() -> None:
    queue = WaitingQueue()
    for client, cost in (("ann", 3), ("bob", 9)):
        request = queued(queue, client)
        queue.charge(client, cost)
        queue.remove(request)
        queue.ended(request)
    assert queue.counter("ann") is None
    queued(queue, "ann")
    queued(queue, "bob")
    assert queue.counter("ann") == queue.counter("bob")


def test_an_idle_client_that_is_ahead_is_remembered() -> None:
    queue = WaitingQueue()
    queued(queue, "ann")
    request = queued(queue, "bob")
    queue.charge("bob", 5)
    queue.remove(request)
    queue.ended(request)
    assert queue.counter("bob") == 5


def test_an_idle_client_that_would_be_lifted_anyway_is_forgotten() -> None:
    queue = WaitingQueue()
    queued(queue, "ann")
    queue.charge("ann", 5)
    request = queued(queue, "bob")
    queue.remove(request)
    queue.ended(request)
    assert queue.counter("bob") is None


def test_idle_clients_are_forgotten_from_the_least_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fairness, "MAX_IDLE_CLIENTS", 4)
    queue = WaitingQueue()
    queued(queue, "ann")
    for number in range(1, 6):
        request = queued(queue, f"idle {number}")
        queue.charge(request.client, number)
        queue.remove(request)
        queue.ended(request)
    remembered = [number for number in range(1, 6) if queue.counter(f"idle {number}") is not None]
    assert remembered == [3, 4, 5]
    assert queue.counter("ann") == 0
