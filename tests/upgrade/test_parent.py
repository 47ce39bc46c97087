"""What a server knows of the process that started it."""

from __future__ import annotations

import json
import socket

import pytest

from tests.doubles.fake_engine_run import until
from tgi_async.upgrade.parent import Parent
from tgi_async.upgrade.process import FREED, RETIRE, VARIABLE


async def test_it_is_found_once_and_what_it_says_is_followed() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.create_server(("127.0.0.1", 0))
    handed = {"listener": listener.detach(), "channel": there.detach(), "waits": True}
    environment = {VARIABLE: json.dumps(handed), "PATH": "/bin"}
    parent = Parent.found(environment)
    assert environment == {"PATH": "/bin"}
    assert parent is not None
    assert parent.waits
    assert not parent.listener.get_inheritable()
    said: list[str] = []
    parent.follow(lambda: said.append("retire"), lambda: said.append("gone"))
    parent.ready("cpu")
    assert here.recv(100) == b"ready cpu"
    parent.upgrade()
    assert here.recv(100) == b"upgrade"
    here.send(FREED)
    await parent.wait()
    assert here.recv(100) == b"holding"
    here.send(RETIRE)
    here.close()
    await until(lambda: said == ["retire", "gone"])
    parent.ready("cpu")  # nobody is there any more
    parent.listener.close()
    parent._channel.close()


@pytest.mark.parametrize("environment", [{}, {"PATH": "/bin"}])
def test_most_servers_have_none(environment: dict[str, str]) -> None:
    assert Parent.found(environment) is None
