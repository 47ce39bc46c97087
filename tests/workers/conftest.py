from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from workers import native, prebuilt
from workers.kernels import packed
from workers.models.embedded import DISTRIBUTION, prepare_embedded


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    """Kernels are loaded anew in this test, so that it can stand in the way, and after it."""
    for cached in (native._found, packed.kernel):
        cached.cache_clear()
    yield
    for cached in (native._found, packed.kernel):
        cached.cache_clear()


@pytest.fixture
def no_kernels(
    fresh_kernels: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a compiler, and without kernels in the package and the cache."""
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded model, converted."""
    try:
        metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pytest.skip("the embedded model is not installed")
    return prepare_embedded()
