from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.fake_engine_run import until
from tgi_async.cluster import interfaces
from tgi_async.cluster.interfaces import NotResolved, Route, is_mine, towards
from tgi_async.cluster.leader import _endpoint
from tgi_async.cluster.topology import Topology


def addresses() -> list[tuple[str, str]]:
    """The interfaces and addresses of this machine, but for those that need an interface named."""
    return [(name, str(one)) for name, one in interfaces._addresses() if not one.is_link_local]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_the_loopback_interface_has_the_loopback_addresses() -> None:
    assert towards("127.0.0.1", 29700) == Route("127.0.0.1", "lo", "127.0.0.1")
    assert towards("127.0.0.2", 29700) == Route("127.0.0.2", "lo", "127.0.0.2")
    if has_ipv6():
        assert towards("::1", 29700) == Route("::1", "lo", "::1")
        mapped = towards("::ffff:127.0.0.1", 29700)
        assert mapped is not None
        assert mapped.interface == "lo"


def test_the_way_to_an_own_address_is_its_interface() -> None:
    assert ("lo", "127.0.0.1") in addresses()
    for name, address in addresses():
        assert towards(address, 29700) == Route(address, name, address)
        assert is_mine(address)


def test_another_machines_address_is_not_mine() -> None:
    assert not is_mine("198.51.100.7")
    assert is_mine("127.0.0.1")


def test_the_way_to_another_machine_begins_at_an_own_address() -> None:
    found = towards("198.51.100.7", 29700)
    if found is None:
        pytest.skip("this machine is on no network")
    assert (found.interface, found.address) in addresses()
    assert found.peer == "198.51.100.7"


def test_a_name_that_has_no_address_yet_is_another_thing_than_no_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for ask in (lambda: towards("llama-0.llama", 1), lambda: is_mine("llama-0.llama")):
        with pytest.raises(NotResolved, match=r"^llama-0\.llama has no address: .*try again"):
            ask()


def test_a_name_that_can_be_none_has_no_address() -> None:
    with pytest.raises(NotResolved):
        towards("a" * 64, 1)


def test_the_first_address_of_a_name_that_has_a_way_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing can be connected to the broadcast address without asking for it.
    ways: list[Any] = [("255.255.255.255", 1), ("127.0.0.1", 1)]
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", one) for one in ways],
    )
    assert towards("node-a", 1) == Route("127.0.0.1", "lo", "127.0.0.1")
    del ways[1]
    assert towards("node-a", 1) is None


def test_an_address_that_is_valid_on_a_link_has_its_interface() -> None:
    index = socket.if_nametoindex("lo")
    assert interfaces._shown(("fe80::7", 1, 0, index)) == "fe80::7%lo"
    assert interfaces._interface(("fe80::7", 1, 0, index)) == "lo"
    assert interfaces._shown(("fe80::7", 1, 0, 2**31 - 1)) == f"fe80::7%{2**31 - 1}"


def test_an_interface_that_the_kernel_does_not_tell_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interfaces, "IF_INET6", tmp_path / "absent")
    assert interfaces._interface(("198.51.100.7", 1)) == ""
    assert interfaces._interface(("2001:db8::7", 1, 0, 0)) == ""
    assert interfaces._interface(("127.0.0.1", 1)) == "lo"


async def test_a_server_of_names_that_never_answers_is_not_waited_for_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The threads that others use are joined there, so that SIGTERM would have to wait."""
    answer = threading.Event()
    of: list[threading.Thread] = []

    def hang(*_: Any, **__: Any) -> Any:
        of.append(threading.current_thread())
        answer.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    asking = [
        asyncio.create_task(interfaces.found("node-a", 1)),
        asyncio.create_task(_endpoint(Topology(2, 0, "node-a", 1, "--nnodes"))),
    ]
    await until(lambda: len(of) == 2)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    answer.set()
    assert [thread.daemon for thread in of] == [True, True]
