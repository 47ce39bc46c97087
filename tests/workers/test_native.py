"""C sources become libraries, once; where they cannot, the message says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from workers import native, prebuilt

NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def source(folder: Path, text: str) -> Path:
    path = folder / "answer.c"
    path.write_text(text)
    return path


@NEEDS_COMPILER
def test_a_source_is_compiled_once(tmp_path: Path, cache: Path) -> None:
    path = source(tmp_path, "int answer(void) { return 42; }")
    assert native.load(path).answer() == 42
    (built,) = cache.iterdir()
    before = built.stat().st_mtime_ns
    assert native.load(path).answer() == 42
    assert built.stat().st_mtime_ns == before


@NEEDS_COMPILER
def test_a_changed_source_is_compiled_anew(tmp_path: Path, cache: Path) -> None:
    native.load(source(tmp_path, "int answer(void) { return 42; }"))
    assert native.load(source(tmp_path, "int answer(void) { return 43; }")).answer() == 43
    assert len(list(cache.iterdir())) == 2


@NEEDS_COMPILER
def test_the_compilers_error_is_passed_on(tmp_path: Path, cache: Path) -> None:
    path = source(tmp_path, '#warning "first"\n#error "this processor is too old"\n')
    with pytest.raises(native.NativeUnavailable, match=r"failed with status 1.*too old"):
        native.load(path)
    assert list(cache.iterdir()) == []


@NEEDS_COMPILER
def test_a_broken_library_in_the_cache_is_reported(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, "int answer(void) { return 42; }")
    native.load(path)
    (built,) = cache.iterdir()
    broken = tmp_path / "broken" / "kernels" / built.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "broken"))
    with pytest.raises(native.NativeUnavailable, match=r"the compiled answer\.c cannot be kept"):
        native.load(path)


@NEEDS_COMPILER
def test_a_library_that_the_cache_cannot_take_is_built_in_the_scratch_folder(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.build_cache._scratch", [tmp_path / "scratch"])
    monkeypatch.setattr(native, "notes", [])
    path = source(tmp_path, "int answer(void) { return 42; }")
    cache.parent.write_text("a file where the folder should be")

    assert native.load(path).answer() == 42
    (note,) = native.notes
    assert f"cannot be kept in, or loaded from, {cache.parent} (Not a directory)" in note
    assert len(list((tmp_path / "scratch" / "kernels").iterdir())) == 1


@NEEDS_COMPILER
def test_a_library_in_the_cache_is_used_without_the_compiler_that_made_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, "int answer(void) { return 42; }")
    native.load(path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.load(path).answer() == 42
    with pytest.raises(native.NativeUnavailable, match="no C compiler"):
        native.load(source(tmp_path, "int answer(void) { return 43; }"))


@NEEDS_COMPILER
@pytest.mark.parametrize("compiler", [True, False])
def test_a_library_that_an_image_brings_is_not_compiled_again(
    compiler: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, "int answer(void) { return 42; }")
    native.load(path)
    monkeypatch.setenv("TGI_ASYNC_IMAGE_CACHE", os.environ["TGI_ASYNC_CACHE"])
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "empty"))
    if not compiler:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.load(path).answer() == 42
    assert not (tmp_path / "empty").exists()


@NEEDS_COMPILER
def test_a_compiler_leaves_nothing_in_the_folder_for_temporary_files(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert native.load(source(tmp_path, "int answer(void) { return 42; }")).answer() == 42


@NEEDS_COMPILER
@pytest.mark.usefixtures("fresh_kernels")
def test_a_compiler_that_fails_is_tried_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = tmp_path / "tried"
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho $1 >> {tried}\n[ $1 = --version ]\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(3):
        with pytest.raises(native.NativeUnavailable, match="failed with status 1"):
            native.kernels()
    assert len(tried.read_text().splitlines()) == 2


def test_a_processor_that_is_not_reported_is_no_processor_to_compile_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "CPUINFO", tmp_path / "none")
    with pytest.raises(native.NativeUnavailable, match="the kind of processor is not known"):
        native.load(source(tmp_path, "int answer(void) { return 42; }"))


def test_without_a_compiler_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(native.NativeUnavailable, match=r"no C compiler .* Install one"):
        native.load(source(tmp_path, "int answer(void) { return 42; }"))


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_kernels: None) -> Path:
    """A library that the wheel carries for this processor; what is compiled is another one."""
    made = native.load(source(tmp_path, "int answer(void) { return 1; }"))
    monkeypatch.setattr(prebuilt, "find", lambda key: Path(made._name))
    monkeypatch.setattr(native, "SOURCES", (source(tmp_path, "int answer(void) { return 2; }"),))
    monkeypatch.setattr(native, "_prefer_compiled", False)
    monkeypatch.setattr(native, "notes", [])
    return Path(made._name)


@NEEDS_COMPILER
@pytest.mark.usefixtures("carried")
def test_what_the_wheel_carries_goes_before_a_compiler() -> None:
    assert native.kernels().answer() == 1
    assert native.notes == []


@NEEDS_COMPILER
@pytest.mark.usefixtures("carried")
def test_a_compiler_goes_first_where_that_is_asked_for() -> None:
    native.prefer_compiled()
    assert native.kernels().answer() == 2
    assert native.notes == []


@NEEDS_COMPILER
@pytest.mark.usefixtures("carried")
def test_a_compiler_that_is_asked_for_and_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    native.prefer_compiled()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.kernels().answer() == 1
    (note,) = native.notes
    assert "--native-kernels: no C compiler" in note
    assert "The kernels of the package are used" in note


@NEEDS_COMPILER
@pytest.mark.usefixtures("carried")
def test_where_the_wheel_has_none_for_this_processor_they_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prebuilt, "find", lambda key: None)
    assert native.kernels().answer() == 2


@NEEDS_COMPILER
def test_a_library_of_the_wheel_that_cannot_be_loaded_is_compiled(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(prebuilt, "find", lambda key: broken)
    assert native.kernels().answer() == 2
    assert "broken.so" in native.notes[0]


@NEEDS_COMPILER
@pytest.mark.usefixtures("carried")
def test_without_either_the_reason_is_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "find", lambda key: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(native.NativeUnavailable, match="no C compiler"):
        native.kernels()


def test_a_clone_carries_none() -> None:
    assert prebuilt.find(native.sources_key()) is None
