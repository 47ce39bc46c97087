from __future__ import annotations

from typing import Any

import pytest

from tgi_async.cluster.topology import DEFAULT_PORT, MAX_NODES, Topology, topology
from tgi_async.errors import StartError
from tgi_async.settings import Settings

LWS = {
    "LWS_LEADER_ADDRESS": "llama-0.llama.default",
    "LWS_GROUP_SIZE": "2",
    "LWS_WORKER_INDEX": "1",
}
SLURM = {
    # What srun gave to the second of `srun -N2 env`, in a job of four nodes.
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "gpu[003-006]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[004-005]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
}
TORCHRUN = {
    "GROUP_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "LOCAL_WORLD_SIZE": "1",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "MASTER_ADDR": "head.example",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def found(environment: dict[str, str] | None = None, **settings: Any) -> Topology | None:
    """What is made of these settings, and of the environment's MASTER_* as settings read them."""
    environment = environment or {}
    if port := environment.get("MASTER_PORT"):
        settings.setdefault("master_port", int(port))
    settings.setdefault("master_addr", environment.get("MASTER_ADDR"))
    return topology(Settings(**settings), environment)


def test_without_flags_and_variables_there_is_one_node() -> None:
    assert found() is None
    assert found(nnodes=1, node_rank=0, master_addr="a", master_port=1) is None


def test_flags_say_it_all() -> None:
    assert found(nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=4000) == Topology(
        2, 1, "10.0.0.1", 4000, "--nnodes"
    )
    assert found(nnodes=MAX_NODES, node_rank=0, master_addr="a") == Topology(
        MAX_NODES, 0, "a", DEFAULT_PORT, "--nnodes"
    )


def test_a_variable_of_ours_is_the_source_where_it_says_so() -> None:
    got = found({"NNODES": "2"}, nnodes=2, node_rank=0, master_addr="a")
    assert got is not None
    assert got.source == "NNODES"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (LWS, Topology(2, 1, "llama-0.llama.default", DEFAULT_PORT, "LWS_GROUP_SIZE")),
        (SLURM, Topology(2, 1, "gpu004", DEFAULT_PORT, "SLURM_STEP_NUM_NODES")),
        (TORCHRUN, Topology(2, 1, "head.example", 29501, "GROUP_WORLD_SIZE")),
    ],
)
def test_what_started_the_process_says_it(environment: dict[str, str], wanted: Topology) -> None:
    assert found(environment) == wanted


@pytest.mark.parametrize("environment", [LWS, SLURM, TORCHRUN])
def test_a_flag_counts_before_what_started_the_process(environment: dict[str, str]) -> None:
    got = found(environment, node_rank=0, master_addr="a", master_port=4000)
    assert got is not None
    assert got[:4] == (2, 0, "a", 4000)
    got = found(environment, master_port=4000)
    assert got is not None
    assert got[:4] == (2, 1, found(environment)[2], 4000)  # type: ignore[index]
    assert found(environment, nnodes=1) is None


def test_a_number_of_nodes_takes_the_rest_of_what_speaks_of_as_many() -> None:
    assert found(SLURM, nnodes=2) == Topology(2, 1, "gpu004", DEFAULT_PORT, "--nnodes")
    with pytest.raises(StartError, match=r"^--nnodes is 4, and --node-rank is missing: .* 1 to 3 "):
        found(SLURM, nnodes=4)


def test_a_batch_script_and_one_node_of_a_launcher_are_one_node() -> None:
    batch = {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[1-2]"}
    assert found(batch) is None
    for environment, size in (
        (LWS, "LWS_GROUP_SIZE"),
        (SLURM, "SLURM_STEP_NUM_NODES"),
        (TORCHRUN, "GROUP_WORLD_SIZE"),
    ):
        assert found(environment | {size: "1"}) is None


def test_torchrun_counts_before_what_started_it() -> None:
    # srun starts torchrun on each node; SLURM's order of nodes may be another than its ranks'.
    together = SLURM | TORCHRUN | {"SLURM_NODEID": "0"}
    assert found(together) == Topology(2, 1, "head.example", 29501, "GROUP_WORLD_SIZE")
    # One torchrun for itself on each node.
    assert found(SLURM | TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}) is None


def test_a_port_that_torchrun_has_is_not_used() -> None:
    for port, ours in (("65535", 65534), ("40123", 40124)):
        got = found(TORCHRUN | {"MASTER_PORT": port})
        assert got is not None
        assert got.port == ours
    got = found(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert got is not None
    assert got.port == 29500
    # Scripts for SLURM often set it for torch, which has no store of its own there.
    got = found(SLURM | {"MASTER_PORT": "29500", "MASTER_ADDR": "gpu004"})
    assert got is not None
    assert got[2:4] == ("gpu004", 29500)


@pytest.mark.parametrize(
    ("environment", "variable", "reason"),
    [
        (SLURM | {"SLURM_STEP_NUM_TASKS": "16"}, "SLURM_STEP_NUM_TASKS", "--ntasks-per-node 1"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE", "--nproc-per-node 1"),
    ],
)
def test_one_process_starts_those_of_a_node(
    environment: dict[str, str], variable: str, reason: str
) -> None:
    with pytest.raises(StartError, match=f"^{variable} says .*{reason}.*--nnodes 1 each node"):
        found(environment)


@pytest.mark.parametrize(
    ("environment", "lacks", "reason"),
    [
        (LWS, "LWS_WORKER_INDEX", "^LWS_GROUP_SIZE says .* of 2 nodes, and --node-rank is missing"),
        (LWS, "LWS_LEADER_ADDRESS", "^LWS_GROUP_SIZE says .* and --master-addr is missing"),
        (SLURM, "SLURM_STEP_NODELIST", "^SLURM_STEP_NUM_NODES says .* --master-addr is missing"),
        (TORCHRUN, "MASTER_ADDR", "^GROUP_WORLD_SIZE says .* --master-addr is missing"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], lacks: str, reason: str) -> None:
    left = {name: value for name, value in environment.items() if name != lacks}
    with pytest.raises(StartError, match=rf"{reason}.*\. With --nnodes 1 each node serves by itse"):
        found(left)


def test_flags_that_are_missing_are_named_without_another_way_out() -> None:
    with pytest.raises(StartError, match="and --node-rank is missing") as caught:
        found(nnodes=2, master_addr="a")
    assert "--nnodes 1" not in str(caught.value)
    with pytest.raises(StartError, match="--nnodes is 2, and --master-addr is missing"):
        found(nnodes=2, node_rank=0)


@pytest.mark.parametrize(
    ("environment", "settings", "reason"),
    [
        (
            {},
            {"nnodes": 2, "node_rank": 2},
            "^--node-rank must be from 0 to 1, as --nnodes is 2",
        ),
        (LWS, {"node_rank": 2}, "from 0 to 1, as LWS_GROUP_SIZE says that this is one of 2 nodes"),
        ({}, {"node_rank": 1}, r"there is one node\. Given: 1\. Give --nnodes too"),
        ({}, {"nnodes": 1, "node_rank": 1}, "there is one node"),
        (LWS | {"LWS_WORKER_INDEX": "2"}, {}, "LWS_WORKER_INDEX must be .* 0 to 1. Given: '2'"),
        (LWS | {"LWS_WORKER_INDEX": "-1"}, {}, "LWS_WORKER_INDEX must be"),
        (LWS | {"LWS_GROUP_SIZE": "1025"}, {}, "LWS_GROUP_SIZE must be .* from 1 to 1024"),
        (LWS | {"LWS_GROUP_SIZE": "0"}, {}, "LWS_GROUP_SIZE must be"),
        (
            SLURM | {"SLURM_STEP_NUM_NODES": "two"},
            {},
            "SLURM_STEP_NUM_NODES must .*'two'.*nnodes",
        ),
        (SLURM | {"SLURM_NODEID": "٣"}, {}, "SLURM_NODEID must be"),
    ],
)
def test_numbers_out_of_bounds_are_refused(
    environment: dict[str, str], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(StartError, match=reason):
        found(environment, **settings)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("node-a.example", "node-a.example"),
        ("node_a", "node_a"),
        ("llama-0.llama.default.svc.cluster.local.", "llama-0.llama.default.svc.cluster.local."),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("127.0.0.1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_the_leader_has_a_name_or_an_address(given: str, address: str) -> None:
    got = found(nnodes=2, node_rank=0, master_addr=given)
    assert got is not None
    assert got.address == address


@pytest.mark.parametrize(
    "given",
    [
        "192.0.2.7:29500",
        "node-a:29500",
        "[2001:db8::7]:29500",
        "tcp://node-a",
        "192.0.2",
        "192.0.2.777",
        "a b",
        "-a",
        "a..b",
        "[node-a]",
        "*",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "a" * 64,
        "a." * 130,
    ],
)
def test_what_nobody_can_connect_to_is_no_address(given: str) -> None:
    with pytest.raises(StartError, match=r"^--master-addr must be a"):
        found(nnodes=2, node_rank=0, master_addr=given)


def test_a_rank_that_a_platform_sets_alone_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert found({"NODE_RANK": "1"}, node_rank=1) is None
    assert "NODE_RANK=1 is ignored" in caplog.text
    # Not where somebody meant it.
    for environment, nnodes in (({"NODE_RANK": "1"}, 1), ({"NODE_RANK": "2"}, None)):
        with pytest.raises(StartError, match="there is one node"):
            found(environment, node_rank=1, nnodes=nnodes)
