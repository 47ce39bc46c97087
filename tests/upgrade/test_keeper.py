"""The process that stays, over servers of a few lines."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import json, os, signal, socket, sys, time
handed = json.loads(os.environ["TGI_ASYNC_UPGRADE"])
channel = socket.socket(fileno=handed["channel"])
def say(*words):  # in one piece, as others print at the same time
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
signal.signal(signal.SIGUSR1, lambda *_: say("asked"))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGUSR1))
n = len(os.listdir(sys.argv[1]))
open(f"{sys.argv[1]}/{n}", "w").close()
if n == int(sys.argv[2]):
    sys.exit(3)
channel.send(b"ready cpu")
say("server", n, os.getpid())
channel.settimeout(0.1)  # a signal just before it would wait for a message, too
message = b"freed"
while message == b"freed":
    try:
        message = channel.recv(256)
    except TimeoutError:
        pass
say("server", n, "got", message.decode() or "the end")
"""

KEEPER = """
import logging, signal, socket, sys
from tgi_async.upgrade import process
from tgi_async.upgrade.keeper import Keeper
from tgi_async.upgrade.terminal import Terminal
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
signal.pthread_sigmask(signal.SIG_BLOCK, process.SIGNALS)
listener = socket.create_server(("127.0.0.1", 0))
command = [sys.executable, "-S", "-c", *sys.argv[1:]]
current = process.start(command, listener, waits=False)
sys.exit(Keeper(command, current, listener, Terminal(had=False)).run())
"""


class Kept:
    """A keeper, and what it and its servers print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self._lines = process.stdout
        self.others: list[str] = []

    def until(self, part: str) -> str:
        """The first line that has this, of those that were not asked for before: several processes
        print."""
        for line in self.others:
            if part in line:
                self.others.remove(line)
                return line
        for line in self._lines:
            if part in line:
                return line
            self.others.append(line)
        raise AssertionError("".join(self.others))


@contextmanager
def kept(folder: Path, *, failing: int = -1) -> Iterator[Kept]:
    """A keeper whose servers count themselves in the folder; one of them fails."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, SERVER, str(folder), str(failing)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Kept(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_one_server_follows_another_until_a_stop(tmp_path: Path) -> None:
    with kept(tmp_path) as keeper:
        keeper.until("server 0")
        for n in range(1, 4):
            keeper.process.send_signal(signal.SIGHUP)
            keeper.until(f"server {n} ")
            keeper.until("has taken over from process")
            keeper.until(f"server {n - 1} got retire")
            keeper.until("from before the upgrade, exited with 0")
        keeper.process.send_signal(signal.SIGUSR1)
        keeper.until("asked")
        keeper.process.send_signal(signal.SIGTERM)
        assert keeper.process.wait(20) == 0


def test_one_that_fails_leaves_the_current_one_and_its_end_is_the_end(tmp_path: Path) -> None:
    with kept(tmp_path, failing=1) as keeper:
        current = int(keeper.until("server 0").split()[-1])
        keeper.process.send_signal(signal.SIGHUP)
        line = keeper.until("the new server exited with 3 before it was ready")
        assert f"process {current} goes on" in line
        subprocess.run(["kill", "-KILL", str(current)], check=True)
        keeper.until(f"process {current}, which served, was killed by SIGKILL")
        assert keeper.process.wait(20) == 128 + signal.SIGKILL
