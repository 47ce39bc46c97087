from __future__ import annotations

from pathlib import Path

import pytest

from tgi_async.errors import StartError
from tgi_async.shards import n_shards, visible_gpus


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    """A folder of devices."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 2),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "0,1"}, 1),
    ],
)
def test_gpus_are_counted_as_cuda_would(
    two_gpus: Path, environment: dict[str, str], n: int
) -> None:
    assert visible_gpus(environment, two_gpus) == n


@pytest.mark.parametrize(
    ("sharded", "num_shard", "n"),
    [(None, None, 2), (True, None, 2), (False, None, 1), (None, 4, 4), (False, 3, 3), (True, 2, 2)],
)
def test_what_is_asked_for_counts_before_what_is_there(
    two_gpus: Path, sharded: bool | None, num_shard: int | None, n: int
) -> None:
    assert n_shards(sharded, num_shard, {}, two_gpus) == n


@pytest.mark.parametrize("visible", ["", "1"])
def test_a_cpu_alone_and_one_gpu_are_one_shard(two_gpus: Path, visible: str) -> None:
    assert n_shards(None, None, {"CUDA_VISIBLE_DEVICES": visible}, two_gpus) == 1


@pytest.mark.parametrize(
    ("visible", "num_shard", "message"),
    [
        ("0,1", 1, "--num-shard for one"),
        ("", None, "there are 0 GPUs"),
        ("1", None, "there are 1 GPUs"),
    ],
)
def test_sharded_needs_more_than_one(
    two_gpus: Path, visible: str, num_shard: int | None, message: str
) -> None:
    with pytest.raises(StartError, match=message):
        n_shards(True, num_shard, {"CUDA_VISIBLE_DEVICES": visible}, two_gpus)


@pytest.mark.parametrize(
    ("visible", "num_shard", "n"), [("0,1", None, 6), ("", None, 3), ("1", None, 3), ("0,1", 9, 9)]
)
def test_each_node_has_as_many_shards(
    two_gpus: Path, visible: str, num_shard: int | None, n: int
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    for sharded in (None, True):
        assert n_shards(sharded, num_shard, environment, two_gpus, nnodes=3) == n


@pytest.mark.parametrize(
    ("sharded", "num_shard", "message"),
    [
        (None, 4, "a multiple of 3, the number of nodes. Given: 4"),
        (True, 1, "a multiple of 3"),
        (False, None, "--sharded false asks for one shard, and there are 3 nodes"),
        (False, 3, "--sharded false"),
    ],
)
def test_shards_that_nodes_cannot_share_equally_are_refused(
    two_gpus: Path, sharded: bool | None, num_shard: int | None, message: str
) -> None:
    with pytest.raises(StartError, match=message):
        n_shards(sharded, num_shard, {}, two_gpus, nnodes=3)
