"""The chart and the manifests, as far as they can be read without helm."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.kubernetes import CHART, CUSTOM, DEPLOY, ROOT, check_custom, containers, manifests
from tgi_async.api import status
from tgi_async.api.cloud import kserve
from tgi_async.arguments import add_arguments, resolve
from tgi_async.settings import Settings

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = sorted(CHART.glob("values*.yaml"))
KSERVE = sorted((DEPLOY / "kserve").glob("*.yaml"))
ROUTES = {one.path for one in (*status.OPERATE, *kserve.OPERATIONS)}
TEXTS = [
    *sorted(CHART.rglob("*.yaml")),
    *sorted(CHART.rglob("*.tpl")),
    *sorted(DEPLOY.rglob("*.yaml")),
    ROOT / "docs" / "deploy" / "kubernetes.md",
]


def merged(base: Any, over: Any) -> Any:
    """Values as helm lays one file over another."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {name: merged(base.get(name), value) for name, value in over.items()}


def settings_of(args: list[str]) -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_arguments(parser)
    return resolve(vars(parser.parse_args(args)), {})


def documented_metrics() -> set[str]:
    """All names of docs/metrics.md; where a line has several, the later ones are endings."""
    names: set[str] = set()
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        if line.startswith("| `tgi_"):
            first, *others = re.findall(r"`(\w+)`", line.split("|")[1])
            names.add(first)
            for other in others:
                stem = first.rsplit("_", other.count("_"))[0]
                names.add(f"{stem}{other}" if other.startswith("_") else other)
    return names


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_values_follow_the_schema(file: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    values = merged(values, yaml.safe_load(file.read_text()))
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert [e.message for e in jsonschema.Draft7Validator(SCHEMA).iter_errors(values)] == []


def test_the_chart_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    for file in KSERVE:
        for one in containers(manifests(file.read_text())):
            assert f":{version}-" in one["image"]
    documented = re.findall(
        r"tgi-async:([\d.]+)-c", (ROOT / "docs" / "deploy" / "kubernetes.md").read_text()
    )
    assert set(documented) == {version}


def test_every_key_of_the_schema_has_a_default() -> None:
    def compare(schema: dict[str, Any], values: Any, path: str) -> None:
        named = set(schema.get("properties", {})) - {"global"}
        if named and isinstance(values, dict):
            assert named == set(values), path
            for name in named:
                compare(schema["properties"][name], values[name], f"{path}.{name}")

    compare(SCHEMA, yaml.safe_load((CHART / "values.yaml").read_text()), "values")


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_args_of_values_are_the_servers(file: Path) -> None:
    settings_of(yaml.safe_load(file.read_text()).get("args", []))


def test_flags_of_the_template_are_the_servers() -> None:
    flags = re.findall(r"- (--[a-z-]+)\n", (CHART / "templates" / "_pod.tpl").read_text())
    assert "--shutdown-delay" in flags
    settings_of([word for flag in flags for word in (flag, "1")])


@pytest.mark.parametrize("file", KSERVE, ids=lambda file: file.stem)
def test_args_for_kserve_are_the_servers(file: Path) -> None:
    found = manifests(file.read_text())
    for one in containers(found):
        settings = settings_of(one["args"])
        stop = settings.shutdown_delay + settings.graceful_termination_timeout
        assert one["startupProbe"]["failureThreshold"] * 5 > 600
        assert settings.model_id == "/mnt/models"
        assert stop < 120
    for manifest in found:
        check_custom(manifest, CUSTOM[manifest["apiVersion"], manifest["kind"]])


def test_every_probe_is_a_route_and_lives_through_a_replaced_worker() -> None:
    text = "".join(file.read_text() for file in TEXTS)
    probes = re.findall(r"(\w+)Probe:\n(?: *#[^\n]*\n)? *httpGet: \{path: ([^,]+),", text)
    assert len(probes) == 10
    for kind, path in probes:
        assert path in ROUTES
        assert path.endswith("/live" if kind == "liveness" else "/ready")


def test_every_metric_is_documented() -> None:
    text = "".join(file.read_text() for file in TEXTS)
    named = set(re.findall(r"\b(tgi_(?:async|batch|request|queue)_\w+)", text))
    assert "tgi_async_total_blocks" in named
    assert {re.sub("_bucket$", "", name) for name in named} <= documented_metrics()


def test_the_picker_reads_the_load_the_cache_and_its_size() -> None:
    config = yaml.safe_load((CHART / "files" / "endpoint-picker.yaml").read_text())
    plugins = {one["type"]: one.get("parameters", {}) for one in config["plugins"]}
    [engine] = plugins["core-metrics-extractor"]["engineConfigs"]
    labels = (CHART / "templates" / "_pod.tpl").read_text()
    assert f"llm-d.ai/engine-type: {engine['name']}\n" in labels
    assert plugins["core-metrics-extractor"]["defaultEngine"] == engine["name"]
    assert set(engine.values()) - {engine["name"]} <= documented_metrics()
    assert plugins["metrics-data-source"]["path"] in ROUTES
    used = [one["pluginRef"] for one in config["schedulingProfiles"][0]["plugins"]]
    used += [one["pluginRef"] for one in config["requestHandler"]["parsers"]]
    assert set(used) <= set(plugins)
    [service] = manifests((DEPLOY / "kserve" / "llminferenceservice.yaml").read_text())
    inline = service["spec"]["router"]["scheduler"]["config"]["inline"]
    [source] = [one for one in inline["plugins"] if one["type"] == "metrics-data-source"]
    assert source["parameters"].pop("insecureSkipVerify") is True
    assert source["parameters"].pop("scheme") == "https"
    assert plugins["metrics-data-source"].pop("scheme") == "http"
    assert inline == config


def test_where_kserve_has_a_certificate_all_that_asks_knows() -> None:
    [service] = manifests((DEPLOY / "kserve" / "llminferenceservice.yaml").read_text())
    [server] = containers([service])
    files = settings_of(server["args"]).certificate_files
    assert files is not None
    assert {Path(files.certificate).parent, Path(files.key).parent} == {Path("/var/run/kserve/tls")}
    probes = [server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}


def test_the_autoscaler_asks_for_what_the_adapter_has() -> None:
    asked = re.findall(r"name: (tgi_\w+)", (CHART / "templates" / "hpa.yaml").read_text())
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())
    given = [re.match(r"\w+", rule["seriesQuery"]) for rule in adapter["rules"]["custom"]]
    assert sorted(asked) == sorted(one[0] for one in given if one)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repplicaCount": 1}, "Additional properties are not allowed ('repplicaCount' was"),
        ({"model": {"idd": "x"}}, "Additional properties are not allowed ('idd' was"),
        ({"replicaCount": "two"}, "'two' is not of type 'integer'"),
        ({"autoscaling": {"type": "vpa"}}, "'vpa' is not one of ['none', 'hpa', 'keda']"),
        ({"autoscaling": {"cacheUsage": 80}}, "80 is greater than the maximum of 1"),
        ({"args": ["--max-total-tokens", 4096]}, "4096 is not of type 'string'"),
        ({"shm": {"sizeLimit": "1 GB"}}, "'1 GB' does not match"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], message: str) -> None:
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(wrong)
    [found] = [error.message for error in errors]
    assert message in found
