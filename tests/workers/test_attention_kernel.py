"""The compiled kernel: building it, keeping it, doing without it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.attention import build
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.cpu import CpuAttention
from workers.attention.kernel import Kernel


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path))
    return tmp_path


def test_it_is_compiled_once_and_then_found(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.library()
    assert list((empty_cache / "kernels").iterdir()) == [made]
    written = made.stat().st_mtime_ns
    assert build.library() == made
    assert made.stat().st_mtime_ns == written
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.library() != made


def test_without_a_compiler_torch_serves_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    (note,) = CpuAttention(4, 2, 32, torch.float32).notes
    assert "attention runs in plain torch" in note
    assert "Install a C compiler" in note


def test_a_compiler_that_fails_is_quoted(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("not C")
    monkeypatch.setattr(build, "SOURCE", broken)
    (note,) = CpuAttention(4, 2, 32, torch.float32).notes
    assert "failed with status 1" in note
    assert "broken.c" in note
    assert list((empty_cache / "kernels").iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "file"))
    (note,) = CpuAttention(4, 2, 32, torch.float32).notes
    assert str(tmp_path / "file") in note


def test_tensors_that_do_not_fit_the_cache_are_refused() -> None:
    cache = PagedCache(1, 2, 4, 2, 32, torch.float32)
    one = torch.ones(1, dtype=torch.int32)
    context = AttentionContext(
        cache, torch.zeros(1, dtype=torch.int64), 1, torch.zeros(1, 2, dtype=torch.int32), one
    )
    q, k = torch.ones(1, 4, 1, 32), torch.ones(1, 2, 1, 32)
    kernel = Kernel()
    assert kernel(q, k, k, 0, context, 1.0, 0, 0.0).shape == (1, 1, 4, 32)
    for args in (
        (q.bfloat16(), k, k),
        (q, k, k.double()),
        (q, k[..., :16], k),
        (q[:, :3], k, k),
        (q.repeat(1, 1, 2, 1), k, k),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            kernel(*args, 0, context, 1.0, 0, 0.0)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((4, 2, 20, torch.float32), "head dims"),
        ((4, 2, 528, torch.float32), "head dims"),
        ((71, 1, 64, torch.float32), "heads to a key-value head"),
        ((4, 2, 64, torch.float16), "float16"),
    ],
)
def test_shapes_it_does_not_take_are_said(
    shape: tuple[int, int, int, torch.dtype], why: str
) -> None:
    assert why in (Kernel.refusal(*shape) or "")
    assert Kernel.refusal(64, 1, 512, torch.bfloat16) is None
