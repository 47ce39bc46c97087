"""One model on several machines, which are network namespaces with a cable each."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.helpers.network import Network
from tests.helpers.tiny_chat import save_tiny_chat
from tests.integration.server import COMMAND, START_SECONDS, STOP_SECONDS, Server, environment

SECRET = "a secret of these tests"
PARAMETERS = {"max_new_tokens": 200, "ignore_eos": True, "details": True}
N_STREAMS = 4


class Machine:
    """One that runs a node."""

    def __init__(self, network: Network, rank: int, log: Path) -> None:
        self.network = network
        self.rank = rank
        self.path = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, secret: str = SECRET, **variables: str) -> None:
        with self.path.open("ab") as file:
            self.process = subprocess.Popen(
                (*self.network.within(self.rank), *COMMAND, *flags),
                stderr=file,
                env={**environment(), "CLUSTER_SECRET": secret, **variables},
            )

    @property
    def log(self) -> str:
        return self.path.read_text()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def says(self, words: str, n: int = 1) -> None:
        """Wait until it has said this so often."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if len(re.findall(words, self.log)) >= n:
                return
            time.sleep(0.05)
        raise AssertionError(f"machine {self.rank} did not say {words!r}:\n{self.log}")


class Cluster:
    """Machines whose nodes serve one model."""

    def __init__(self, network: Network, folder: Path, model: Path, n: int, n_ranks: int) -> None:
        self.network = network
        self.model = model
        self.n_ranks = n_ranks
        self.machines = [Machine(network, rank, folder / f"{rank}.log") for rank in range(n)]

    @property
    def leader(self) -> Machine:
        return self.machines[0]

    @property
    def url(self) -> str:
        return f"http://{self.network.address(0)}:8080"

    def flags(self, rank: int) -> tuple[str, ...]:
        n = len(self.machines)
        of_model = ("--model-id", str(self.model), "--dtype", "float32", "--port", "8080")
        spread = ("--num-shard", str(self.n_ranks), "--nnodes", str(n), "--node-rank", str(rank))
        return (*of_model, *spread, "--master-addr", self.network.address(0))

    def start(self, rank: int) -> None:
        self.machines[rank].start(*self.flags(rank))

    async def texts(self, n: int = N_STREAMS) -> list[str]:
        """Those of so many requests at once."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            return await asyncio.gather(*(generated(client, number) for number in range(n)))


async def generated(client: httpx.AsyncClient, number: int) -> str:
    parameters = {**PARAMETERS, "seed": number, "do_sample": bool(number % 2)}
    body = {"inputs": f"It was {number} o'clock", "parameters": parameters}
    reply = await client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    text = reply.json()["generated_text"]
    assert isinstance(text, str)
    return text


@contextmanager
def cluster(folder: Path, model: Path, n: int = 2, n_ranks: int | None = None) -> Iterator[Cluster]:
    with Network.of(n) as network:
        made = Cluster(network, folder, model, n, n_ranks or n)
        try:
            for rank in range(n):
                made.start(rank)
            made.leader.says("ready in ")
            yield made
        finally:
            for machine in made.machines:
                machine.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one process says."""
    log = tmp_path_factory.mktemp("alone") / "log"

    async def ask(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            return await asyncio.gather(*(generated(client, one) for one in range(N_STREAMS)))

    with Server.running(log, "--model-id", str(model), "--dtype", "float32") as server:
        return asyncio.run(ask(server.url))


def workers_of(machine: Machine) -> list[int]:
    """The processes of ranks on a machine."""
    listed = subprocess.run(
        ("ip", "netns", "pids", machine.network.within(machine.rank)[-1]),
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        pid
        for pid in map(int, listed.stdout.split())
        if b"--rank=" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


async def while_serving(made: Cluster, harm: object, alone: list[str]) -> None:
    """Do harm while texts are generated, which are those of one process even so."""
    asking = asyncio.create_task(made.texts())
    await asyncio.sleep(0.5)
    assert callable(harm)
    await asyncio.to_thread(harm)
    assert await asking == alone


def test_two_machines_say_what_one_does(model: Path, alone: list[str], tmp_path: Path) -> None:
    with cluster(tmp_path, model) as made:
        assert asyncio.run(made.texts()) == alone
        member = f"http://{made.network.address(1)}:8080"
        for route, status in {"/health/live": 200, "/health": 200, "/generate": 503}.items():
            assert httpx.get(f"{member}{route}").status_code == status
        metrics = httpx.get(f"{made.url}/metrics").text
        assert re.findall(r"(?m)^tgi_async_node_up.*", metrics) == [
            'tgi_async_node_up{node="0"} 1',
            'tgi_async_node_up{node="1"} 1',
        ]
        made.leader.signal(signal.SIGTERM)
        assert made.leader.wait() == 0
        assert made.machines[1].wait() == 0
        assert "the leader has ended" in made.machines[1].log


@pytest.mark.full
def test_nothing_is_lost_with_a_node(model: Path, alone: list[str], tmp_path: Path) -> None:
    """A member is killed and started again, then left by its cable, then loses a rank, then is
    stopped."""
    with cluster(tmp_path, model, n_ranks=4) as made:
        member = made.machines[1]

        def kill() -> None:
            member.kill()
            made.start(1)

        def pull() -> None:
            made.network.pull(1)
            made.leader.says("was silent for 5 seconds")
            made.network.plug(1)

        def kill_rank() -> None:
            os.kill(workers_of(member)[0], signal.SIGKILL)

        def stop_rank() -> None:
            os.kill(workers_of(member)[0], signal.SIGSTOP)

        def terminate() -> None:
            member.signal(signal.SIGTERM)
            assert member.wait() == 0
            made.start(1)

        for harm in (kill, pull, kill_rank, stop_rank, terminate):
            asyncio.run(while_serving(made, harm, alone))
        assert asyncio.run(made.texts()) == alone


@pytest.mark.full
def test_members_wait_for_a_leader_that_died(model: Path, alone: list[str], tmp_path: Path) -> None:
    with cluster(tmp_path, model) as made:
        made.leader.kill()
        made.start(0)
        made.leader.says("ready in ", 2)
        assert asyncio.run(made.texts()) == alone


@pytest.mark.full
def test_a_node_with_another_secret_gets_nothing(
    model: Path, alone: list[str], tmp_path: Path
) -> None:
    with Network.of(2) as network:
        made = Cluster(network, tmp_path, model, 2, 2)
        try:
            made.start(0)
            made.machines[1].start(*made.flags(1), secret="another secret of these")
            made.machines[1].says("does not take the cluster secret of this node")
            made.leader.says("has another cluster secret: refused")
            made.machines[1].kill()
            made.start(1)
            made.leader.says("ready in ")
            assert asyncio.run(made.texts()) == alone
        finally:
            for machine in made.machines:
                machine.kill()
