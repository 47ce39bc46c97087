"""The chart as helm renders it, against Kubernetes' schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kubernetes import CHART, DEPLOY, Manifest, helm, manifests, rendered, validate
from tests.deploy.test_chart import ROUTES, settings_of

pytestmark = pytest.mark.full

EVERYTHING: dict[str, Any] = {
    "replicaCount": 3,
    "image": {"repository": "registry.example/tgi-async", "tag": "v1", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "model": {"id": "owner/name", "revision": "0123abc", "servedNames": ["first", "second"]},
    "args": ["--max-total-tokens", "4096", "--json-output"],
    "env": [
        {"name": "NCCL_DEBUG", "value": "WARN"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ],
    "gpu": {"count": 2},
    "hfToken": {"value": "hf_secret"},
    "apiKey": {"existingSecret": "keys", "key": "clients"},
    "cache": {
        "type": "pvc",
        "size": "100Gi",
        "storageClassName": "fast",
        "accessModes": ["ReadWriteMany"],
    },
    "autoscaling": {"type": "hpa", "minReplicas": 2},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        "hosts": ["llm.example"],
        "tls": [{"hosts": ["llm.example"], "secretName": "tls"}],
    },
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["a.example"]},
    "inferencePool": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"team": "web"}}}],
    },
    "serviceAccount": {"name": "server"},
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "extraVolumes": [{"name": "models", "hostPath": {"path": "/models"}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
}
KEDA = {"type": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}}


def written(folder: Path, values: dict[str, Any]) -> str:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def by_kind(found: list[Manifest]) -> dict[str, Manifest]:
    return {one["kind"]: one for one in found}


def server_of(found: list[Manifest]) -> dict[str, Any]:
    pod = by_kind(found)["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("name", ["values", "values-gpu", "values-cpu"])
def test_each_file_of_values_is_valid_for_kubernetes(name: str, tmp_path: Path) -> None:
    file = str(CHART / f"{name}.yaml")
    found = rendered("--values", file)
    validate(found, tmp_path)
    settings_of(server_of(found)["args"])
    done = helm("lint", "--strict", str(CHART), "--values", file)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("scaling", [EVERYTHING["autoscaling"], KEDA], ids=["hpa", "keda"])
def test_everything_at_once_is_valid(scaling: dict[str, Any], tmp_path: Path) -> None:
    found = rendered("--values", written(tmp_path, EVERYTHING | {"autoscaling": scaling}))
    validate(found, tmp_path)
    kinds = by_kind(found)
    assert len(kinds) == len(found)
    assert ("ScaledObject" in kinds) is (scaling is KEDA)
    assert "replicas" not in kinds["Deployment"]["spec"]
    server = server_of(found)
    settings = settings_of(server["args"])
    assert settings.model_id == "owner/name"
    assert settings.served_model_name == ("first", "second")
    assert settings.num_shard == server["resources"]["limits"]["nvidia.com/gpu"] == 2
    secrets = {one["name"]: one["valueFrom"] for one in server["env"] if "valueFrom" in one}
    assert secrets["HF_TOKEN"]["secretKeyRef"] == {"name": "r-tgi-async", "key": "hf-token"}
    assert secrets["API_KEY"]["secretKeyRef"] == {"name": "keys", "key": "clients"}
    assert kinds["Secret"]["stringData"] == {"hf-token": "hf_secret"}
    alerts = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    assert kinds["PrometheusRule"]["spec"] == alerts
    for kind in ("PrometheusRule", "ServiceMonitor"):
        assert kinds[kind]["metadata"]["labels"]["release"] == "prometheus"
    [rule] = kinds["HTTPRoute"]["spec"]["rules"]
    assert rule["backendRefs"][0]["kind"] == "InferencePool"
    config = kinds["ConfigMap"]["data"]["tgi-async.yaml"]
    assert yaml.safe_load(config) == yaml.safe_load(
        (CHART / "files/endpoint-picker.yaml").read_text()
    )


@pytest.mark.parametrize(("gpus", "kind"), [(0, "cpu"), (1, "cuda")])
def test_the_image_is_of_the_charts_version(gpus: int, kind: str) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    found = rendered("--set", f"gpu.count={gpus},model.id=owner/name")
    assert server_of(found)["image"] == f"tgi-async:{version}-{kind}"


def test_a_pod_runs_as_no_one_and_writes_to_volumes_only() -> None:
    found = rendered()
    pod = by_kind(found)["Deployment"]["spec"]["template"]["spec"]
    server = server_of(found)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {one["mountPath"] for one in server["volumeMounts"]}
    assert mounts == {"/data", "/tmp", "/dev/shm"}
    written_to = {one["name"]: one.get("value") for one in server["env"]}
    for name in ("HOME", "HF_HOME", "TGI_ASYNC_CACHE", "TMPDIR"):
        assert any(str(written_to[name]).startswith(place) for place in mounts)
    [memory] = [one for one in pod["volumes"] if one["name"] == "shm"]
    assert memory["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize(("delay", "grace"), [(15, 90), (0, 5), (60, 600)])
def test_a_pod_is_killed_later_than_the_server_stops(delay: int, grace: int) -> None:
    found = rendered(
        *("--set", f"shutdown.delaySeconds={delay}"), *("--set", f"shutdown.graceSeconds={grace}")
    )
    settings = settings_of(server_of(found)["args"])
    assert (settings.shutdown_delay, settings.graceful_termination_timeout) == (delay, grace)
    pod = by_kind(found)["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > delay + grace


def test_probes_are_routes() -> None:
    server = server_of(rendered())
    paths = {
        kind: server[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert set(paths.values()) <= ROUTES
    assert paths["liveness"] == "/health/live"


def test_a_pool_with_the_chart_is_reached_at_the_containers_port() -> None:
    found = rendered("--set", "inferencePool.enabled=true")
    kinds = by_kind(found)
    [port] = kinds["InferencePool"]["spec"]["targetPorts"]
    assert port["number"] == server_of(found)["ports"][0]["containerPort"]
    assert settings_of(server_of(found)["args"]).port == port["number"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["InferencePool"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("kserve/*.yaml")), ids=lambda file: file.stem)
def test_manifests_for_kserve_are_valid(file: Path, tmp_path: Path) -> None:
    found = manifests(file.read_text())
    for one in found:
        # Mounted by the configuration that this is merged with.
        one["spec"].get("template", {}).pop("volumes", None)
    validate(found, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("repplicaCount=1", "additional properties 'repplicaCount' not allowed"),
        ("model.idd=x", "at '/model': additional properties 'idd' not allowed"),
        ("replicaCount=two", "at '/replicaCount': got string, want integer"),
        ("autoscaling.type=vpa", "value must be one of 'none', 'hpa', 'keda'"),
        ("gpu.count=-1", "at '/gpu/count': minimum: got -1, want 0"),
        ("args={--port}", "args has --port, which is the chart's. Leave it out of args."),
        ("args={--model-id=x}", "args has --model-id=x, which is model.id. Leave it out of args."),
        ("gpu.count=1", "model.id is empty. Give a model: only the image for CPUs has one."),
        ("cache.type=pvc", "cache.type is pvc and cache.size is empty. Give the size"),
        (
            "cache.type=pvc,cache.size=9Gi,replicaCount=2",
            "cache.accessModes are ReadWriteOnce, and up to 2 pods share the volume.",
        ),
        ("autoscaling.type=keda", "autoscaling.keda.prometheusAddress is empty. Give the URL"),
        ("autoscaling.type=hpa,autoscaling.minReplicas=9", "Given: 9 and 4."),
        ("httpRoute.enabled=true", "httpRoute.parentRefs is empty. Name the Gateway."),
        ("ingress.enabled=true", "ingress.hosts is empty. Name a host."),
        ("hfToken.value=a,hfToken.existingSecret=b", "were both given; give one of them."),
        ("strategy.rollingUpdate.maxSurge=0", "are both 0, so that no pod could be replaced."),
    ],
)
def test_helm_refuses_what_is_wrong(flags: str, message: str) -> None:
    done = helm("template", "r", str(CHART), "--set", flags)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_validation_can_fail(tmp_path: Path) -> None:
    """A misspelt field and a wrong type are found, in Kubernetes' resources and in others."""
    for kind, field in [("PodDisruptionBudget", "maxUnavailabel"), ("InferencePool", "targetPort")]:
        found = rendered("--set", "inferencePool.enabled=true")
        by_kind(found)[kind]["spec"][field] = 1
        with pytest.raises(AssertionError, match=field):
            validate(found, tmp_path)
    found = rendered()
    by_kind(found)["Service"]["spec"]["ports"][0]["port"] = "80"
    with pytest.raises(AssertionError, match="'80' is not of type"):
        validate(found, tmp_path)
