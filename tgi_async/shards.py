"""How many processes a model is spread over, by TGI's rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tgi_async.errors import StartError

VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
NONE = ("", "-1", "none", "void", "NoDevFiles")
"""Values of these variables that mean no GPU."""
DEVICES = Path("/dev")


def n_shards(
    sharded: bool | None,
    num_shard: int | None,
    environment: Mapping[str, str],
    devices: Path = DEVICES,
    *,
    nnodes: int = 1,
) -> int:
    """Return the number of shards on all `nnodes` nodes together: as set, or one for each visible
    GPU of a node. Raises StartError where the settings contradict each other."""
    if nnodes > 1:
        return _of_nodes(nnodes, sharded, num_shard, visible_gpus(environment, devices))
    if sharded and num_shard == 1:
        raise StartError(
            "--sharded asks for several shards and --num-shard for one. Leave one of them out."
        )
    if num_shard is not None:
        return num_shard
    if sharded is False:
        return 1
    n_gpus = visible_gpus(environment, devices)
    if sharded and n_gpus < 2:
        raise StartError(
            f"--sharded asks for a shard a GPU, and there are {n_gpus} GPUs here. Say with "
            "--num-shard how many processes are to share the CPU, or leave it out."
        )
    return max(1, n_gpus)


def _of_nodes(nnodes: int, sharded: bool | None, num_shard: int | None, n_gpus: int) -> int:
    """Return the number of shards on several nodes, each of which has as many."""
    if sharded is False:
        raise StartError(
            f"--sharded false asks for one shard, and there are {nnodes} nodes. Leave it out, or "
            "serve on each node by itself with --nnodes 1."
        )
    if num_shard is None:
        return nnodes * max(1, n_gpus)
    if num_shard % nnodes:
        raise StartError(
            f"--num-shard counts the shards of all nodes, which have equally many: a multiple of "
            f"{nnodes}, the number of nodes. Given: {num_shard}."
        )
    return num_shard


def visible_gpus(environment: Mapping[str, str], devices: Path = DEVICES) -> int:
    """Count the NVIDIA GPUs that a worker will see, without loading CUDA."""
    for variable in VISIBLE:
        value = environment.get(variable)
        if value is None or value == "all":
            continue
        return 0 if value in NONE else len(value.split(","))
    return sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))
