"""The config files for Ray Serve and their page, as far as they can be read without Ray."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.doubles.fake_engine_run import ROOT
from tgi_async import ray_serve
from tgi_async.arguments import flag_of
from tgi_async.errors import StartError
from tgi_async.ray_serve.flags import OF_SERVE, settings_of

FILES = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))
PAGE = (ROOT / "docs" / "deploy" / "ray.md").read_text()
CODE = (ROOT / "tgi_async" / "ray_serve" / "application.py").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_sets_what_there_is(file: Path) -> None:
    (application,) = yaml.safe_load(file.read_text())["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    settings = settings_of(application["args"], {})
    (server,) = application["deployments"]
    assert f'NAME = "{server["name"]}"' in CODE
    # More requests than this would wait in the engine before there is another replica.
    target = server["autoscaling_config"]["target_ongoing_requests"]
    assert target <= settings.max_concurrent_requests
    actor, bundles = server["ray_actor_options"], server.get("placement_group_bundles", [])
    for bundle in bundles:
        assert bundle == {"CPU": actor["num_cpus"], "GPU": actor["num_gpus"]}
    assert f"deploy/ray/{file.name}" in PAGE


def test_the_page_has_the_defaults_that_differ_from_serves() -> None:
    (call,) = [
        one
        for one in ast.walk(ast.parse(CODE))
        if isinstance(one, ast.Call) and ast.unparse(one.func) == "serve.deployment"
    ]
    options = {one.arg for one in call.keywords if one.arg not in (None, "name")}
    assert options == set(re.findall(r"^\| `([a-z_]+)` \| \d+ ", PAGE, re.M))


def test_the_page_names_the_flags_that_are_serves_business() -> None:
    named = re.search(r"^Flags that are Serve's business \((.*?)\)", PAGE, re.M | re.S)
    assert named
    patterns = [one.replace("*", ".*") for one in re.findall(r"`(--[a-z*-]+)`", named[1])]
    missing = [
        name
        for name in OF_SERVE
        if name != "unix_socket" and not any(re.fullmatch(one, flag_of(name)) for one in patterns)
    ]
    assert missing == []


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tgi_async.ray_serve.application", raising=False)
    with pytest.raises(StartError, match=r"Install it with `pip install 'tgi-async\[ray\]'`"):
        ray_serve.app({})


def test_the_replica_does_without_ray_and_torch() -> None:
    code = (
        "import sys; import tgi_async.ray_serve.replica, tgi_async.ray_serve.prefixes;"
        "print([name for name in ('ray', 'torch', 'numpy', 'workers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
