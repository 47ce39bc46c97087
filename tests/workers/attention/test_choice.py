"""Which attention serves a GPU, and what is said where it cannot; no GPU is needed for that."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.doubles import flash_doubles
from tests.workers.test_worker import refusal
from workers.attention.flash import FlashPrefill, VarlenPrefill
from workers.attention.native import NativeAttention
from workers.attention.registry import choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one that Triton compiles for."""
    monkeypatch.setattr("workers.attention.triton_paged.gpu_refusal", lambda: None)


@pytest.mark.parametrize(("name", "page"), [("auto", 16), ("triton", 16), ("flash", 256)])
def test_the_choice_decides_the_page(name: str, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flash_doubles.put_in_place(monkeypatch)
    backend, notes = choose(name, CUDA)
    assert backend.page_size == page
    assert notes == []


def test_what_needs_a_gpu_is_refused_on_a_cpu() -> None:
    assert choose("auto", CPU) == (NativeAttention, [])
    assert choose("native", CPU) == (NativeAttention, [])
    for name in ("triton", "flash", "varlen"):
        with pytest.raises(ValueError, match=f"--attention {name} needs an NVIDIA GPU"):
            choose(name, CPU)
    with pytest.raises(ValueError, match="--attention native needs a CPU, and serving is on cuda"):
        choose("native", CUDA)


def test_a_name_that_nobody_registered_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"one of native, torch, triton, .*, not paged"):
        choose("paged", CPU)


def test_a_gpu_that_triton_does_not_compile_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attention.triton_paged.gpu_refusal", lambda: "it is too old")
    with pytest.raises(ValueError, match="--attention triton cannot be used: it is too old"):
        choose("triton", CUDA)


def test_flash_attn_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if util.find_spec("flash_attn") is None:
        with pytest.raises(
            ValueError, match="needs the package flash-attn, which is not installed"
        ):
            choose("flash", CUDA)
    # As flash-attn 4 leaves it, which has no such function.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    with pytest.raises(ValueError, match=r"flash-attn is installed and cannot be used: .*varlen"):
        choose("flash", CUDA)
    old = ModuleType("flash_attn")
    old.flash_attn_varlen_func = lambda q, k, v: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(ValueError, match=r"needs flash-attn 2\.6 or later"):
        choose("flash", CUDA)


def test_a_torch_without_block_tables_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # As torch 2.11 has it.
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value: query)
    with pytest.raises(ValueError, match=re.escape(f"and {torch.__version__} is installed")):
        choose("varlen", CUDA)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(ValueError, match="takes a block table"):
        choose("varlen", CUDA)


@pytest.mark.skipif(VarlenPrefill.refusal() is not None, reason=str(VarlenPrefill.refusal()))
def test_the_double_has_the_signature_of_torch() -> None:
    from torch.nn.attention.varlen import varlen_attn

    def parameters(function: object) -> list[tuple[object, ...]]:
        found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return [(one.name, one.kind, one.default) for one in found]

    assert parameters(varlen_attn) == parameters(flash_doubles.varlen_attn)


@pytest.mark.parametrize("prefill", [FlashPrefill, VarlenPrefill])
def test_what_they_never_take_is_refused(
    prefill: type[FlashPrefill | VarlenPrefill], monkeypatch: pytest.MonkeyPatch
) -> None:
    flash_doubles.put_in_place(monkeypatch)
    assert prefill.refusal() is None
    prefill(256, torch.float16)
    for head_dim, dtype, said in (
        (64, torch.float32, "bfloat16 and float16, not torch.float32"),
        (20, torch.bfloat16, "in steps of 8, not 20"),
        (264, torch.bfloat16, "up to 256 in steps of 8, not 264"),
    ):
        with pytest.raises(ValueError, match=said):
            prefill(head_dim, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can be chosen for")
def test_a_worker_refuses_what_cannot_be_had_before_it_loads(tmp_path: Path) -> None:
    said = refusal(tmp_path / "no-model", attention="flash")
    assert "cannot be served: --attention flash needs an NVIDIA GPU" in said
