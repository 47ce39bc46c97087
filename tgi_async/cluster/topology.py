"""Which node of how many this is, and where the leader is: by our flags, or by what started us."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from tgi_async.cluster import hostlist
from tgi_async.errors import StartError

log = logging.getLogger(__name__)

MAX_NODES = 1024
DEFAULT_PORT = 29700
"""Of the leader. Not torch's and TGI's 29500, which another program of the machine may have, nor
one near it, where torch and others look next. Below 30000, where Kubernetes' node ports begin, and
32768, where the kernel's own choices do."""

NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
EACH_BY_ITSELF = "With --nnodes 1 each node serves by itself."


class NodeSettings(Protocol):
    """The settings that say where this node is. None: what started the server knows, or it is the
    only one."""

    @property
    def nnodes(self) -> int | None: ...
    @property
    def node_rank(self) -> int | None: ...
    @property
    def master_addr(self) -> str | None: ...
    @property
    def master_port(self) -> int | None: ...


class Topology(NamedTuple):
    """The place of this node among those that have a part of one model."""

    nnodes: int
    """2 or more."""
    node_rank: int
    """0 is the leader."""
    address: str
    """The leader's: a name, or an IPv4 or IPv6 address without brackets."""
    port: int
    source: str
    """What said that there are several: `--nnodes`, or a variable of the environment."""


class _Launcher(NamedTuple):
    """What a program that starts one process on each node says by its variables."""

    size: str
    """Variable with the number of nodes."""
    rank: str
    address: str
    """Variable with the leader's address or, of SLURM, a list whose first host it is."""
    tasks: str
    """Variable with the number of processes, where several on a node are possible."""
    tasks_are_of_a_node: bool
    one_task: str
    """How to have one process on each node."""


LAUNCHERS = (
    # torchrun first. Where LeaderWorkerSet or srun starts it, it is what started us, and its
    # MASTER_ADDR, which we read as our own, is the address of its own rank 0.
    _Launcher(
        "GROUP_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "LOCAL_WORLD_SIZE",
        True,
        "torchrun --nproc-per-node 1",
    ),
    _Launcher("LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "LWS_LEADER_ADDRESS", "", True, ""),
    # Of a step, which is what srun starts. A batch script, which runs once, has SLURM_NNODES too.
    _Launcher(
        "SLURM_STEP_NUM_NODES",
        "SLURM_NODEID",
        "SLURM_STEP_NODELIST",
        "SLURM_STEP_NUM_TASKS",
        False,
        "srun --ntasks-per-node 1",
    ),
)


def topology(settings: NodeSettings, environment: Mapping[str, str]) -> Topology | None:
    """Return the place of this node; None where it is the only one.

    Settings count first, then what started this process: torchrun, LeaderWorkerSet or a step of
    SLURM. Each part that a setting does not give is what that one says, if it speaks of as many
    nodes. Raises StartError where a part is missing, or out of its bounds. The variable NODE_RANK
    alone is no such part: platforms set it for programs of their own kind.
    """
    launcher, nnodes = _launcher(settings.nnodes, environment)
    if nnodes == 1:
        ours = settings.nnodes is not None or environment.get("NODE_RANK") != str(
            settings.node_rank
        )
        if settings.node_rank and not ours:
            log.warning(
                "NODE_RANK=%d is ignored: nothing says that there are several nodes, and this one "
                "serves by itself. If there are, give --nnodes (NNODES)",
                settings.node_rank,
            )
        elif settings.node_rank:
            raise StartError(
                f"--node-rank must be from 0 to --nnodes - 1, and there is one node. Given: "
                f"{settings.node_rank}. Give --nnodes too, or leave --node-rank (NODE_RANK) out."
            )
        return None
    if settings.nnodes is None:
        assert launcher is not None
        source = launcher.size
        said = f"{source} says that this is one of {nnodes} nodes"
        hint = f" {EACH_BY_ITSELF}"
    else:
        source = "NNODES" if environment.get("NNODES") == str(nnodes) else "--nnodes"
        said, hint = f"{source} is {nnodes}", ""
    if launcher is not None:
        _check_tasks(launcher, nnodes, environment, hint)
    rank = settings.node_rank
    if rank is None and launcher is not None and environment.get(launcher.rank):
        rank = _number(environment, launcher.rank, 0, nnodes - 1, hint)
    if rank is None:
        raise StartError(
            f"{said}, and --node-rank is missing: 0 on the leader, which clients ask, and 1 to "
            f"{nnodes - 1} on the others.{hint}"
        )
    if rank >= nnodes:
        raise StartError(
            f"--node-rank must be from 0 to {nnodes - 1}, as {said}. Given: {rank}.{hint}"
        )
    address = settings.master_addr
    if address is None and launcher is not None:
        address = environment.get(launcher.address) or None
        if address is not None and launcher.address == "SLURM_STEP_NODELIST":
            address = hostlist.first(address)
    if address is None:
        raise StartError(
            f"{said}, and --master-addr is missing: a name or an address of the leader, the same "
            f"on all nodes.{hint}"
        )
    return Topology(nnodes, rank, _host(address), _port(settings.master_port, environment), source)


def _launcher(given: int | None, environment: Mapping[str, str]) -> tuple[_Launcher | None, int]:
    """Return what started this process, if it speaks of as many nodes as are `given`, and how many
    there are."""
    for launcher in LAUNCHERS:
        if not environment.get(launcher.size):
            continue
        if given is None:
            # The first one decides: it started us, maybe within what another one started.
            return launcher, _number(environment, launcher.size, 1, MAX_NODES, f" {EACH_BY_ITSELF}")
        if environment[launcher.size] == str(given):
            return launcher, given
    return None, given or 1


def _check_tasks(
    launcher: _Launcher, nnodes: int, environment: Mapping[str, str], hint: str
) -> None:
    """Raise StartError where several processes were started on a node."""
    if not environment.get(launcher.tasks):
        return
    n = _number(environment, launcher.tasks, 1, 2**31 - 1, hint)
    if n != (1 if launcher.tasks_are_of_a_node else nnodes):
        where = "each node" if launcher.tasks_are_of_a_node else f"{nnodes} nodes"
        raise StartError(
            f"{launcher.tasks} says that {n} processes were started on {where}. Start one on each "
            f"node, which starts a process for each GPU itself: {launcher.one_task}.{hint}"
        )


def _port(given: int | None, environment: Mapping[str, str]) -> int:
    if given is None:
        return DEFAULT_PORT
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and environment.get(
        "MASTER_PORT"
    ) == str(given):
        # torchrun itself listens there.
        return given + 1 if given < 65535 else given - 1
    return given


def _host(text: str) -> str:
    """Return an address without brackets, or a name. Raises StartError for anything else."""
    host = text.strip()
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        numeric = re.fullmatch(r"[0-9.]+", host)
        if numeric is None and len(host) <= 253 and NAME.fullmatch(host):
            return host
        raise StartError(
            "--master-addr must be a name or an address of the leader, without a port, which is "
            f"--master-port's. Given: {text!r}."
        ) from None
    if address.is_unspecified or address.is_multicast:
        raise StartError(
            "--master-addr must be an address of the leader that the other nodes can connect to. "
            f"Given: {text!r}."
        )
    return host


def _number(environment: Mapping[str, str], variable: str, least: int, most: int, hint: str) -> int:
    text = environment[variable]
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise StartError(
            f"The environment variable {variable} must be a whole number from {least} to {most}. "
            f"Given: {text!r}.{hint}"
        )
    return int(text)
