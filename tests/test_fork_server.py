from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles import fake_fork_server
from tests.doubles.fake_engine_run import ROOT, alive, until
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tests.test_supervisor import FIRST, START, environment_of, ignore
from tgi_async import deadline
from tgi_async.backoff import Backoff
from tgi_async.fork_server import ForkServer
from tgi_async.supervisor import WorkerDied, WorkerGroup, environment

PR_GET_CHILD_SUBREAPER = 37


class Forks:
    """Fork servers of fake workers, and groups that these fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[ForkServer] = []
        self.groups: list[WorkerGroup] = []

    def server(self, what: str = "") -> ForkServer:
        given = environment() | {"PYTHONPATH": str(ROOT), fake_fork_server.VARIABLE: what}
        backoff = Backoff(first=0.01)
        self.servers.append(ForkServer(self.folder, given, fake_fork_server.COMMAND, backoff))
        return self.servers[-1]

    async def group(self, server: ForkServer, world_size: int = 1) -> WorkerGroup:
        epoch = len(self.groups) + 1
        made = WorkerGroup(self.folder, epoch, world_size, COMMAND, fork_server=server)
        self.groups.append(made)
        await made.launch(START, ignore)
        return made


@pytest.fixture
async def forks(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Forks]:
    monkeypatch.setenv(VARIABLE, Behaviour().environment())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Forks(tmp_path_factory.mktemp("s"))
    yield made
    for group in made.groups:
        await group.kill()
        assert not any(map(alive, group.pids))
    for server in made.servers:
        pid = pid_of(server)
        await server.stop()
        assert pid is None or not alive(pid)


def pid_of(server: ForkServer) -> int | None:
    current = server._importer
    if current is None or not current.done():
        return None
    importer = current.result()
    return None if importer is None else importer.pid


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        return []  # it has ended by now


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_forked_worker_is_what_a_started_one_is(forks: Forks) -> None:
    server = forks.server()
    group = await forks.group(server, world_size=2)
    group.send(FIRST)
    assert (await group.receive()).step == 1
    for rank, pid in enumerate(group.pids):
        assert parent_of(pid) == os.getpid()
        assert os.getsid(pid) == pid
        assert words_of(pid)[1:4] == ["-P", "-m", fake_fork_server.MODULE]
        assert f"--rank={rank}" in words_of(pid)
        assert "OMP_WAIT_POLICY=PASSIVE" in environment_of(pid)
        descriptors = os.listdir(f"/proc/{pid}/fd")
        targets = [os.readlink(f"/proc/{pid}/fd/{one}") for one in descriptors if int(one) > 2]
        assert not any(one.startswith("pipe:") for one in targets)
    await group.stop(20.0)
    assert [exit.result() for exit in group._exits] == [0, 0]


async def test_it_is_known_how_a_forked_worker_died(forks: Forks) -> None:
    """And this process adopts nobody else."""
    group = await forks.group(forks.server())
    found = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0
    assert found.value == 0
    os.kill(group.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerDied, match="worker 0 was killed by SIGKILL"):
        await group.receive()


async def test_workers_outlive_it_and_it_is_replaced(forks: Forks) -> None:
    server = forks.server()
    group = await forks.group(server)
    first = pid_of(server)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: pid_of(server) not in (None, first))
    group.send(FIRST)
    assert (await group.receive()).step == 1
    assert words_of((await forks.group(server)).pids[0])[1] == "-P"


@pytest.mark.parametrize(
    ("what", "said"),
    [("thread", "it exited with status 1"), ("exit", "it exited with status 5")],
)
async def test_workers_are_started_without_one_that_does_not_fork(
    forks: Forks, caplog: pytest.LogCaptureFixture, what: str, said: str
) -> None:
    group = await forks.group(forks.server(what))
    assert words_of(group.pids[0])[1] == "-m"
    assert caplog.messages == [
        f"workers are started without a fork server from now on: {said}",
    ]


async def test_one_that_dies_and_does_not_come_back_is_given_up(
    forks: Forks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = forks.server(f"once:{tmp_path / 'file'}")
    await forks.group(server)
    pid = pid_of(server)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: len(caplog.messages) == 2)
    assert "was killed by signal 9; another one is started" in caplog.messages[0]
    assert "exited with status 5" in caplog.messages[1]
    assert words_of((await forks.group(server)).pids[0])[1] == "-m"


@pytest.mark.parametrize("when", ["importing", "forking"])
async def test_workers_are_started_without_one_that_hangs(
    forks: Forks, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(deadline, "IDLE_LOADING_SECONDS", 0.2)
    monkeypatch.setattr(deadline, "STOPPED_SECONDS", 0.2)
    monkeypatch.setattr("tgi_async.deadline.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("tgi_async.fork_server.LOOK_SECONDS", 0.05)
    server = forks.server("hang" if when == "importing" else "")
    if when == "forking":
        await forks.group(server)
        pid = pid_of(server)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    group = await forks.group(server)
    assert words_of(group.pids[0])[1] == "-m"


async def test_a_fork_that_nobody_waits_for_any_more_is_ended(forks: Forks) -> None:
    server = forks.server()
    await forks.group(server)
    waits = [f"--folder={forks.folder}", "--epoch=9", "--rank=0", f"--router={os.getpid()}"]
    forking = asyncio.create_task(server.fork(waits))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # As whoever ends a group may itself be ended meanwhile.
    for _ in range(2):
        forking.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await forking
    # Whether it was forked is known once the next one is.
    await forks.group(server)
    await until(lambda: len(of(forks.folder)) == 3)


def of(folder: Path) -> list[int]:
    """The fork server of this folder and what it forked."""
    found = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
    return [pid for pid in found if alive(pid) and f"--folder={folder}" in words_of(pid)]


ROUTER = """
import asyncio, pathlib, sys
from tests.test_fork_server import Forks, pid_of

async def main():
    forks = Forks(pathlib.Path(sys.argv[1]))
    server = forks.server()
    group = await forks.group(server)
    print(pid_of(server), *group.pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nothing_outlives_a_router_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    command = [sys.executable, "-c", ROUTER, str(tmp_path_factory.mktemp("s"))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as router:
        assert router.stdout is not None
        pids = [int(word) for word in router.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        router.kill()
    asyncio.run(until(lambda: not any(map(alive, pids))))
