"""Servers that are started for an upgrade."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from tgi_async.upgrade import process

CHILD = """
import json, os, socket, sys
handed = json.loads(os.environ["TGI_ASYNC_UPGRADE"])
listener, channel = (socket.socket(fileno=handed[name]) for name in ("listener", "channel"))
own_session = os.getsid(0) == os.getpid()
channel.send(f"{listener.getsockname()[1]} {handed['waits']} {own_session}".encode())
"""


def test_it_gets_the_socket_a_channel_and_a_session_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = process.start([sys.executable, "-S", "-c", CHILD], listener, waits=True)
        child.channel.setblocking(True)
        port = listener.getsockname()[1]
        assert child.channel.recv(process.MOST_BYTES) == f"{port} True True".encode()
        # It is the only one that has the other end.
        assert child.channel.recv(process.MOST_BYTES) == b""
    status = os.waitpid(child.pid, 0)[1]
    assert process.how_it_ended(status) == "exited with 0"
    child.say(process.RETIRE)  # nobody is there any more
    child.channel.close()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_that_comes_before_it_handles_any_waits(number: signal.Signals) -> None:
    waiting = f"import signal, sys; sys.exit(signal.sigtimedwait([{number}], 20) is None)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = process.start([sys.executable, "-S", "-c", waiting], listener, waits=False)
    child.signal(number)
    status = os.waitpid(child.pid, 0)[1]
    assert process.how_it_ended(status) == "exited with 0"
    child.channel.close()


def test_one_that_is_not_ready_is_ended_without_a_traceback() -> None:
    waiting = "import time; time.sleep(20)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = process.start([sys.executable, "-S", "-c", waiting], listener, waits=False)
    child.signal(signal.SIGINT)
    status = os.waitpid(child.pid, 0)[1]
    assert process.how_it_ended(status) == "was killed by SIGTERM"
    child.channel.close()


def test_which_devices_have_no_room_for_two() -> None:
    assert process.is_exclusive("cuda:0, cuda:1")
    assert not process.is_exclusive("cpu")
