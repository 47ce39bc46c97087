"""The wheel: what it says of itself, and a server from it in an environment of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import httpx
import pytest

from tests.helpers.shadows import write_shadows
from tests.integration.server import Server
from workers import native, prebuilt

ROOT = Path(__file__).parents[2]
PLATFORM = "manylinux_2_28_x86_64"
BUILDER = ROOT / ".cache" / "release" / "bin" / "python"
NEEDS_BUILD = pytest.mark.skipif(
    not BUILDER.exists(), reason="what `make wheel` builds with is not installed"
)
UNIT = ROOT / "deploy" / "systemd" / "tgi-async.service"


def build(kind: str, source: Path, out: Path, *options: str, **variables: str) -> Path:
    """Build a wheel or an sdist and return its path."""
    command = (str(BUILDER), "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out))
    done = subprocess.run(
        [*command, *options, str(source)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


def copied(to: Path) -> Path:
    """A copy of the repository's files, as a build writes beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With kernels for this machine's platform."""
    return build(
        "wheel",
        sources,
        tmp_path_factory.mktemp("wheel"),
        f"--config-setting=--build-option=--plat-name={PLATFORM}",
        TGI_ASYNC_REPOSITORY="https://host/owner/name",
    )


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; what it depends on is this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", "--no-deps", wheel],
        check=True,
        capture_output=True,
        # pip would take a folder there with our metadata for an installation.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # At the end of the path: an editable install of this repository comes after the wheel.
    theirs = Path(httpx.__file__).parents[1]
    (packages / "dependencies.pth").write_text(f"{theirs}\n")
    return folder


def test_the_metadata_is_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"authors", "classifiers", "description", "keywords", "license"} <= project.keys()
    assert all((ROOT / name).is_file() for name in project["license-files"])
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in project["classifiers"]
    # Each Python with its pinned versions is one that is claimed, and the other way round.
    pinned = {path.stem.removeprefix("python") for path in ROOT.glob("constraints/python*.txt")}
    claimed = {re.sub(r".*:: ", "", one) for one in project["classifiers"] if ":: 3." in one}
    assert claimed == pinned


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("nodes", [False, True])
def test_systemd_takes_the_unit(nodes: bool, tmp_path: Path) -> None:
    text = UNIT.read_text()
    command = "/opt/tgi-async/bin/tgi-async"
    assert command in text
    # The program that it starts must exist.
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(command, "/bin/true"))
    if nodes:
        shutil.copytree(UNIT.with_name(f"{UNIT.name}.d"), tmp_path / f"{UNIT.name}.d")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.full
@NEEDS_BUILD
def test_the_wheel_has_a_library_for_each_level_of_instructions(wheel: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-{PLATFORM}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        key = native.sources_key()
        expected = [prebuilt.library_name(one, key) for one in prebuilt.of_machine("x86_64")]
        assert sorted(names) == sorted(f"workers/libraries/{name}" for name in expected)
        for name in names:
            found = re.findall(rb"GLIBC_(\d+)\.(\d+)", archive.read(name))
            assert max((int(major), int(minor)) for major, minor in found) <= (2, 28), name


@pytest.mark.full
@NEEDS_BUILD
def test_its_page_has_links_that_lead_out_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert "(https://host/owner/name/blob/main/docs/machines.md)" in page
    assert "(https://host/owner/name/raw/main/benchmarks/streams.svg)" in page
    assert not re.search(r"\]\((?!https?://|#)", page)
    assert any(url.startswith("Source, ") for url in metadata.get_all("Project-URL", []))


@pytest.mark.full
@NEEDS_BUILD
def test_the_sources_build_a_wheel_for_any_machine(sources: Path, tmp_path: Path) -> None:
    archive = build("sdist", sources, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert not (folder / "tests").exists()
    wheel = build("wheel", folder, tmp_path / "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    here = {str(path.relative_to(ROOT)) for path in native.SOURCES}
    assert here <= set(names)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory with the names of modules."""
    (tmp_path / "work").mkdir()
    write_shadows(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.full
@pytest.mark.model
@NEEDS_BUILD
def test_it_serves_anywhere_without_a_compiler(
    environment: Path, hostile: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    variables = {"PATH": "/nonexistent", "TGI_ASYNC_CACHE": str(cache), "PYTHONPATH": None}
    with Server.running(
        tmp_path / "log",
        variables=variables,
        cwd=hostile,
        command=(str(environment / "bin" / "tgi-async"), "serve"),
    ) as server:
        reply = httpx.post(
            f"http://127.0.0.1:{server.port}/generate",
            json={"inputs": "The capital of France is", "parameters": {"max_new_tokens": 4}},
            trust_env=False,
        )
        assert "Paris" in reply.json()["generated_text"]
        (library,) = _libraries_below(environment)
    assert "no C compiler" not in (tmp_path / "log").read_text()
    assert not (cache / "kernels").exists()
    best = prebuilt.runnable("x86_64", prebuilt.instructions_of(prebuilt.CPUINFO.read_text()))[0]
    assert library.name.startswith(best.name)


def _libraries_below(folder: Path) -> set[Path]:
    """The kernels of this environment that processes have mapped."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        paths = (Path(line.split()[-1]) for line in lines if "/libraries/" in line)
        found |= {path for path in paths if path.is_relative_to(folder)}
    return found


KERNEL_TESTS = (
    *("tests/workers/kernels", "tests/workers/attention", "tests/workers/decoder"),
    *("tests/workers/sampling", "tests/workers/layers"),
)


@pytest.mark.full
@NEEDS_BUILD
@pytest.mark.parametrize("variant", prebuilt.of_machine("x86_64"), ids=lambda one: one.name)
def test_the_tests_of_kernels_pass_with_each_library(
    variant: prebuilt.Variant, wheel: Path, tmp_path: Path
) -> None:
    if not variant.needs <= prebuilt.instructions_of(prebuilt.CPUINFO.read_text()):
        pytest.skip(f"this processor does not run {variant.name}")
    source = copied(tmp_path / "source")
    name = prebuilt.library_name(variant, native.sources_key())
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"workers/libraries/{name}", source)
    # Those of compiling do not do so here.
    options = ("-m", "not full and not soak", "-k", "not portable and not cannot_be_written")
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", *options, *KERNEL_TESTS),
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
