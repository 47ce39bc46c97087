"""The chart with several nodes for one model, as helm renders it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.fake_cluster import cluster_with_secret
from tests.deploy.kubernetes import CHART, Manifest, helm, manifests, rendered, validate
from tests.deploy.test_chart import settings_of
from tests.deploy.test_chart_rendered import EVERYTHING, KEDA, by_kind, written
from tgi_async.cluster.topology import topology

pytestmark = pytest.mark.full

LEADER = "leaderworkerset.sigs.k8s.io/worker-index"
NODES = ("--set", "nodes=2")


def pods_of(found: list[Manifest]) -> tuple[Manifest, Manifest]:
    """Return the leader's and the members' template."""
    group = by_kind(found)["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return group["leaderTemplate"], group["workerTemplate"]


def labels_as_made(pod: Manifest, index: int) -> dict[str, str]:
    """The labels that LeaderWorkerSet gives a pod of this template."""
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels | {LEADER: str(index)}


def secret_of(found: list[Manifest]) -> bytes:
    [made] = [one for one in found if one["kind"] == "Secret" and "data" in one]
    return base64.b64decode(made["data"]["secret"])


def test_the_values_for_nodes_are_valid(tmp_path: Path) -> None:
    file = str(CHART / "values-nodes.yaml")
    found = rendered("--values", file)
    validate(found, tmp_path)
    kinds = by_kind(found)
    assert "Deployment" not in kinds
    for pod in pods_of(found):
        [server] = pod["spec"]["containers"]
        assert server["resources"]["limits"]["nvidia.com/gpu"] == 8
        assert settings_of(server["args"]).num_shard == 16
    done = helm("lint", "--strict", str(CHART), "--values", file)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("scaling", [EVERYTHING["autoscaling"], KEDA], ids=["hpa", "keda"])
def test_everything_at_once_is_valid(scaling: dict[str, Any], tmp_path: Path) -> None:
    values = EVERYTHING | {"autoscaling": scaling, "nodes": 3, "exclusiveTopology": "rack"}
    found = rendered("--values", written(tmp_path, values))
    validate(found, tmp_path)
    kinds = by_kind(found)
    group = kinds["LeaderWorkerSet"]
    assert group["metadata"]["annotations"] == {
        "leaderworkerset.sigs.k8s.io/exclusive-topology": "rack"
    }
    spec = group["spec"]
    assert "replicas" not in spec
    assert spec["leaderWorkerTemplate"]["size"] == 3
    scaler = kinds["ScaledObject" if scaling is KEDA else "HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": group["apiVersion"],
        "kind": group["kind"],
        "name": group["metadata"]["name"],
    }
    if scaling is KEDA:
        name = group["metadata"]["name"]
        for trigger in scaler["spec"]["triggers"]:
            assert f'pod=~"{name}-.*"' in trigger["metadata"]["query"]


def test_a_group_is_started_as_the_server_wants_it() -> None:
    """Members start beside the leader, which is ready when they are; a pod is replaced alone."""
    spec = by_kind(rendered(*NODES, "--set", "replicaCount=2"))["LeaderWorkerSet"]["spec"]
    assert spec["replicas"] == 2
    assert spec["startupPolicy"] == "LeaderCreated"
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "None"
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


def test_leader_and_members_differ_in_what_asks_by_http_only() -> None:
    leader, member = pods_of(rendered(*NODES))
    [server] = leader["spec"]["containers"]
    [other] = member["spec"]["containers"]
    live = server.pop("livenessProbe"), other.pop("livenessProbe")
    assert {probe["httpGet"]["path"] for probe in live} == {"/health/live"}
    assert live[1]["httpGet"]["port"] == settings_of(other["args"]).port
    ways_in = {"ports", "startupProbe", "readinessProbe"}
    assert set(server) - set(other) == ways_in
    assert {name: value for name, value in server.items() if name not in ways_in} == other
    assert {**leader["spec"], "containers": []} == {**member["spec"], "containers": []}
    assert "llm-d.ai/engine-type" in leader["metadata"]["labels"]
    assert "llm-d.ai/engine-type" not in member["metadata"]["labels"]


def test_each_pod_finds_its_place() -> None:
    """By what LeaderWorkerSet adds to each container; nothing of the chart's is in its way."""
    added = {
        "LWS_GROUP_SIZE": "2",
        "LWS_LEADER_ADDRESS": "r-tgi-async-nodes-0.r-tgi-async-nodes.ns",
    }
    for index, pod in enumerate(pods_of(rendered(*NODES))):
        [server] = pod["spec"]["containers"]
        variables = {one["name"]: one.get("value", "") for one in server["env"]}
        found = topology(
            settings_of(server["args"]), variables | added | {"LWS_WORKER_INDEX": str(index)}
        )
        assert found is not None
        assert (found.nnodes, found.node_rank) == (2, index)
        assert found.address == added["LWS_LEADER_ADDRESS"]


def test_only_leaders_are_asked() -> None:
    found = rendered(*NODES, "--set", "inferencePool.enabled=true")
    leader, member = pods_of(found)
    kinds = by_kind(found)
    for selector in (
        kinds["Service"]["spec"]["selector"],
        kinds["InferencePool"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels_as_made(leader, 0).items()
        assert not selector.items() <= labels_as_made(member, 1).items()


def test_one_pod_of_all_groups_may_be_evicted() -> None:
    found = rendered(*NODES)
    budget = by_kind(found)["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    for index, pod in enumerate(pods_of(found)):
        assert budget["selector"]["matchLabels"].items() <= labels_as_made(pod, index).items()


@pytest.mark.parametrize("name", ["r", "r" * 50])
def test_names_leave_room_and_are_not_taken(name: str) -> None:
    """LeaderWorkerSet makes a headless Service of its own name, unless there is one."""
    found = rendered(*NODES, "--set", f"fullnameOverride={name}")
    kinds = by_kind(found)
    group = kinds["LeaderWorkerSet"]["metadata"]["name"]
    assert group != kinds["Service"]["metadata"]["name"]
    # In the label controller-revision-hash of a group's StatefulSet.
    assert len(f"{group}-99-0123456789") <= 63


def test_nodes_reach_each_other_and_others_only_http() -> None:
    found = rendered(*NODES, "--set", "networkPolicy.enabled=true")
    leader, member = pods_of(found)
    policies = {one["metadata"]["name"]: one for one in found if one["kind"] == "NetworkPolicy"}
    http = policies["r-tgi-async"]["spec"]
    [rule] = http["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    nodes = policies["r-tgi-async-nodes"]["spec"]
    [inward], [outward] = nodes["ingress"], nodes["egress"]
    assert set(inward) == {"from"}
    assert set(outward) == {"to"}
    [source], [target] = inward["from"], outward["to"]
    for pod in (leader, member):
        for selector in (nodes["podSelector"], source["podSelector"], target["podSelector"]):
            assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert len(rendered("--set", "networkPolicy.enabled=true")) == len(rendered()) + 1


def test_a_made_secret_is_one_for_all_nodes_and_new_in_each_rendering() -> None:
    first, second = rendered(*NODES), rendered(*NODES)
    assert len(secret_of(first)) == 64
    assert secret_of(first) != secret_of(second)
    name = by_kind(first)["Secret"]["metadata"]["name"]
    sums = []
    for pod in pods_of(first):
        [server] = pod["spec"]["containers"]
        [given] = [one for one in server["env"] if one["name"] == "CLUSTER_SECRET"]
        assert given["valueFrom"]["secretKeyRef"] == {"name": name, "key": "secret"}
        sums.append(pod["metadata"]["annotations"]["checksum/cluster-secret"])
    assert len(set(sums)) == 1
    assert not any(one["kind"] == "Secret" for one in rendered())


def test_a_made_secret_is_kept_by_an_upgrade() -> None:
    flags = ("--dry-run=server", "--disable-openapi-validation", "--kubeconfig", "/dev/null")
    values = (*NODES, "--set", "podDisruptionBudget.enabled=false")
    with cluster_with_secret("r", "r-tgi-async-cluster", b"kept") as url:
        done = helm("template", "r", str(CHART), *flags, "--kube-apiserver", url, *values)
    assert done.returncode == 0, done.stderr
    assert secret_of(manifests(done.stdout)) == b"kept"


def test_a_secret_that_is_there_is_named() -> None:
    found = rendered(*NODES, "--set", "clusterSecret.existingSecret=mine,clusterSecret.key=word")
    assert "Secret" not in by_kind(found)
    for pod in pods_of(found):
        assert "annotations" not in pod["metadata"]
        [server] = pod["spec"]["containers"]
        [given] = [one for one in server["env"] if one["name"] == "CLUSTER_SECRET"]
        assert given["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "word"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("nodes=0", "at '/nodes': minimum: got 0, want 1"),
        ("nodes=two", "at '/nodes': got string, want integer"),
        ("nodes=2,args={--nnodes=2}", "args has --nnodes=2, which is nodes. Leave it out of args."),
        ("args={--node-rank}", "args has --node-rank, which is LeaderWorkerSet's."),
        ("args={--cluster-secret-file}", "which is clusterSecret. Leave it out of args."),
        ("nodes=2,strategy.type=Recreate", "strategy.type is Recreate and nodes is 2."),
        ("nodes=2,strategy.rollingUpdate.maxSurge=0", "so that no pod could be replaced."),
        ("nodes=2,podDisruptionBudget.maxUnavailable=50%", "Give a number of pods, each"),
        ("clusterSecret.existingSecret=a", "existingSecret was given and nodes is 1."),
        ("exclusiveTopology=rack", "exclusiveTopology was given and nodes is 1."),
        (
            "nodes=2,cache.type=pvc,cache.size=9Gi",
            "cache.accessModes are ReadWriteOnce, and up to 2 pods share the volume.",
        ),
    ],
)
def test_helm_refuses_what_cannot_go_together(flags: str, message: str) -> None:
    done = helm("template", "r", str(CHART), "--set", flags)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_validation_can_fail(tmp_path: Path) -> None:
    """A misspelt field of the set and of a member's pod are found."""
    found = rendered(*NODES)
    by_kind(found)["LeaderWorkerSet"]["spec"]["startupPolicyy"] = "LeaderCreated"
    with pytest.raises(AssertionError, match="startupPolicyy"):
        validate(found, tmp_path)
    found = rendered(*NODES)
    pods_of(found)[1]["spec"]["containerss"] = []
    with pytest.raises(AssertionError, match="containerss"):
        validate(found, tmp_path)
