"""Prometheus takes our rules, and each of its alerts fires for what it is about and for no less."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kubernetes import CHART, ROOT
from tests.deploy.test_chart import documented_metrics

RULES = CHART / "files" / "alerts.yaml"
PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
WORKS = {"tgi_async_total_blocks": "100x60", "tgi_async_requests_running": "0x60"}
"""Series of a server that has nothing to do."""


@dataclass(frozen=True)
class Case:
    """Series of a server, as `promtool` writes their values, and what they come to."""

    alert: str
    series: dict[str, str]
    minute: int
    """When it fires. A minute and the alert's own `for` before, it does not."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that say more than which server."""


CASES = [
    Case("TgiAsyncAbsent", {"up": "1x60"}, 5),
    Case(
        "TgiAsyncStuck",
        WORKS
        | {
            "tgi_async_requests_running": "3x60",
            'tgi_batch_inference_success{method="decode"}': "0+9x10 90x50",
            'tgi_batch_inference_success{method="prefill"}': "0+1x10 10x50",
        },
        14,
    ),
    Case("TgiAsyncWorkerRestarts", WORKS | {"tgi_async_worker_restarts": "0x10 1 2 3x48"}, 13),
    Case(
        "TgiAsyncNodeAway",
        WORKS | {'tgi_async_node_up{node="1"}': "1x10 0x50"},
        16,
        labels={"node": "1"},
    ),
    Case(
        "TgiAsyncRequestsFail",
        WORKS
        | {
            "tgi_request_count": "0+100x60",
            'tgi_request_failure{err="generation"}': "0x10 0+2x50",
            'tgi_request_failure{err="validation"}': "0+50x60",
        },
        20,
    ),
    Case("TgiAsyncRequestsRefused", WORKS | {'tgi_request_failure{err="overloaded"}': "0+1x60"}, 6),
    Case(
        "TgiAsyncRequestsWait",
        WORKS
        | {
            'tgi_request_queue_duration_bucket{le="1"}': "0+9x60",
            'tgi_request_queue_duration_bucket{le="40"}': "0+10x60",
            'tgi_request_queue_duration_bucket{le="+Inf"}': "0+10x60",
        },
        11,
    ),
    Case("TgiAsyncCacheFull", WORKS | {"tgi_async_kv_cache_usage": "0.97x60"}, 10),
]


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_every_alert_is_tried() -> None:
    assert [rule["alert"] for rule in rules()] == [case.alert for case in CASES]


def test_alerts_are_of_documented_metrics_and_say_where() -> None:
    documented = documented_metrics()
    for rule in rules():
        named = re.findall(r"\btgi_\w+", rule["expr"])
        assert {re.sub("_bucket$", "", name) for name in named} <= documented
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert "absent" in rule["expr"] or "$labels.instance" in rule["annotations"]["summary"]


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@PROMTOOL
def test_prometheus_takes_the_rules_and_its_configuration(tmp_path: Path) -> None:
    assert f"SUCCESS: {len(CASES)} rules found" in promtool("check", "rules", str(RULES))
    # As the compose file mounts them.
    shutil.copy(RULES, tmp_path)
    shutil.copy(ROOT / "docker" / "prometheus.yml", tmp_path)
    assert "SUCCESS: 1 rule files found" in promtool(
        "check", "config", str(tmp_path / "prometheus.yml")
    )


def labelled(name: str) -> str:
    """A series of one server."""
    where = 'instance="server:80",job="tgi-async"'
    return name.replace("{", "{" + where + ",") if "{" in name else f"{name}{{{where}}}"


@PROMTOOL
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_for_what_it_is_about(case: Case, tmp_path: Path) -> None:
    (rule,) = (one for one in rules() if one["alert"] == case.alert)
    labels = {} if case.alert == "TgiAsyncAbsent" else {"instance": "server:80", "job": "tgi-async"}
    fires = {"exp_labels": {**labels, **case.labels, **rule["labels"]}}
    series = [{"series": labelled(name), "values": values} for name, values in case.series.items()]
    before = case.minute - 1 - int(rule.get("for", "0m").removesuffix("m"))
    asked = [
        {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": expected}
        for minute, expected in ((max(before, 0), []), (case.minute, [fires]))
    ]
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": asked}]
    # promtool compares annotations too, which are texts of the rule alone.
    plain = {"name": "tried", "rules": [rule | {"annotations": {}}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [plain]}))
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests})
    )
    promtool("test", "rules", str(tmp_path / "tests.yaml"))
