"""The compose file: valid, of files that are there, and brought up as far as nothing is pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from tests.deploy.podman import IMAGE, ROOT, START_SECONDS, Podman
from tgi_async.settings import Settings

DOCKER = ROOT / "docker"
FILE = DOCKER / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text())
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "compose.json").read_text())


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":")
        yield source, target


def problems(compose: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(compose)]


def test_it_follows_the_specification() -> None:
    assert problems(COMPOSE) == []
    wrong = COMPOSE | {"services": {"server": COMPOSE["services"]["server"] | {"port": "80"}}}
    (problem,) = problems(wrong)
    assert problem.startswith("'port' does not match")


def test_it_mounts_files_that_are_there() -> None:
    for service in COMPOSE["services"].values():
        for source, _ in mounts(service):
            assert (DOCKER / source).exists() if "/" in source else source in COMPOSE["volumes"]
    server = COMPOSE["services"]["server"]
    assert (DOCKER / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert server["ports"] == ["8080:80"]
    assert int(server["stop_grace_period"].rstrip("s")) > Settings().graceful_termination_timeout


def test_prometheus_finds_its_rules_and_the_server() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:80"]}]
    mounted = {target for _, target in mounts(COMPOSE["services"]["prometheus"])}
    assert {f"/etc/prometheus/{name}" for name in scraped["rule_files"]} < mounted


@pytest.mark.full
@pytest.mark.skipif(
    shutil.which("podman-compose") is None, reason="podman-compose is not installed"
)
def test_its_server_comes_up_and_goes(tmp_path: Path) -> None:
    """With another port on this machine, and not those services whose images would be pulled."""
    podman = Podman(tmp_path)
    podman.make_base()
    podman.build(ROOT)
    service = COMPOSE["services"]["server"] | {"image": IMAGE, "ports": ["127.0.0.1::80"]}
    del service["build"]
    project = f"tgi-async-test-{os.getpid()}"
    changed = COMPOSE | {"name": project, "services": {"server": service}}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(changed))

    def compose(*arguments: str) -> str:
        done = subprocess.run(
            ["podman-compose", "--podman-path", podman.program(), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    compose("up", "--detach", "--no-build")
    try:
        server = podman.container(f"{project}_server_1", 80)
        url = server.wait_until_ready()
        body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 4}}
        reply = httpx.post(f"{url}/generate", json=body, timeout=START_SECONDS)
        assert "Paris" in reply.json()["generated_text"]
        assert "/data" in podman.call("inspect", server.name).stdout
    finally:
        compose("down", "--volumes")
