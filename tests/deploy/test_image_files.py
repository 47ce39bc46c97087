"""The files that images are made of, without building one."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.podman import ROOT
from tgi_async import build_info, platforms
from workers import native, prebuilt

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def instructions(stage: str) -> list[str]:
    """The instructions of a stage, each on one line."""
    joined = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    stages = re.split(r"^FROM \S+ AS ", joined, flags=re.MULTILINE)[1:]
    return next(one for one in stages if one.split()[0] == stage).splitlines()[1:]


def test_the_stage_of_the_libraries_has_all_of_their_sources() -> None:
    copies = [one.split()[1:-1] for one in instructions("libraries") if one.startswith("COPY")]
    patterns = [pattern for copy in copies for pattern in copy]
    needed = [
        *(path.relative_to(ROOT) for path in native.HERE.rglob("*.[ch]")),
        Path("release/kernels.py"),
    ]
    for path in needed:
        assert any(fnmatch(str(path), pattern) for pattern in patterns), path


def test_the_libraries_need_no_module_that_their_stage_lacks() -> None:
    copied = [one for line in instructions("libraries") for one in line.split() if ".py" in one]
    imported = "import sys, release.kernels; print(*(m for m in sys.modules if 'workers' in m))"
    done = subprocess.run(
        ["python3", "-c", imported], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = [name for name in done.stdout.split() if name != "workers"]
    assert {f"{name.replace('.', '/')}.py" for name in modules} <= set(copied)


def test_a_build_takes_what_the_dockerfile_copies_and_no_more() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if "!" in line}
    copied = {
        source if source.startswith(("docker/", "docs/")) else source.split("/")[0]
        for stage in ("libraries", "cpu-dependencies", "cuda-dependencies", "cpu", "cuda")
        for line in instructions(stage)
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == kept


def test_both_targets_have_what_the_package_is_built_of() -> None:
    needed = {"setup.py", "pyproject.toml", "LICENSE", "README.md", "docs/differences.md"}
    for target in ("cpu", "cuda"):
        copied = {
            source
            for line in instructions(target)
            if line.startswith("COPY")
            for source in line.split()[1:-1]
        }
        assert needed | {"release/*.py", "tgi_async", "workers"} <= copied


def test_the_libraries_lie_where_the_package_looks_for_them() -> None:
    place = f"lib/python3.11/site-packages/workers/{prebuilt.FOLDER.name}"
    for target in ("cpu", "cuda"):
        copy = f"COPY --from=libraries /libraries /opt/tgi-async/{place}"
        assert copy in instructions(target)


def test_only_an_image_for_gpus_has_a_compiler() -> None:
    stages = {"cpu": "cpu-dependencies", "cuda": "cuda-dependencies"}
    compiling = {
        target
        for target, stage in stages.items()
        for line in instructions(stage) + instructions(target) + instructions("system")
        if re.search(r"\bgcc\b", line)
    }
    assert compiling == {"cuda"}


def test_the_image_says_what_it_was_built_from() -> None:
    for target in ("cpu", "cuda"):
        (variables,) = (line for line in instructions(target) if line.startswith("ENV"))
        assert f"{build_info.SHA_VARIABLE}=${{GIT_SHA}}" in variables
        assert f"{build_info.LABEL_VARIABLE}=${{DOCKER_LABEL}}" in variables


def test_the_code_comes_after_the_dependencies() -> None:
    for target in ("cpu", "cuda"):
        assert not any("tgi_async" in line for line in instructions(f"{target}-dependencies"))
        (install,) = (line for line in instructions(target) if "pip install" in line)
        assert "--no-deps" in install


def test_both_targets_end_in_the_same_way() -> None:
    for target in ("cpu", "cuda"):
        labels = next(line for line in instructions(target) if line.startswith("LABEL"))
        for label in ("title", "description", "licenses", "version", "revision", "source"):
            assert f"org.opencontainers.image.{label}=" in labels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert DOCKERFILE.count(f"ARG VERSION={project['version']}\n") == 2


def test_the_image_keeps_models_where_the_entrypoint_thinks() -> None:
    assert f"ENV HF_HOME={platforms.IMAGE_HF_HOME} " in "\n".join(instructions("system"))


def test_requirements_are_those_of_the_project() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    requirements = runpy.run_path(str(DOCKER / "requirements.py"))["requirements"]
    found = list(requirements(pyproject, ["cuda"]))
    project = tomllib.loads(pyproject)["project"]
    assert set(project["dependencies"]) < set(found)
    assert any(one.startswith("setuptools") for one in found)
    assert any(one.startswith("triton") for one in found)
    assert any(one.startswith("opentelemetry-sdk") for one in found)
    assert not any(one.startswith("pytest") for one in found)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        ["hadolint", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
