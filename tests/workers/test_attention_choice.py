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

from tests.workers import flash_doubles
from tests.workers.test_worker import refusal
from workers.attention import registry
from workers.attention.flash import FlashPrefill, VarlenPrefill

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen here is so for this test only."""
    monkeypatch.setattr(registry, "ATTENTIONS", dict(registry.ATTENTIONS))


@pytest.mark.parametrize(("name", "page"), [("auto", 16), ("triton", 16), ("flash", 256)])
def test_the_choice_decides_the_page(name: str, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flash_doubles.put_in_place(monkeypatch)
    registry.choose(name, CUDA)
    assert registry.block_size(CUDA) == page
    assert registry.block_size(torch.device("cpu")) == 16


def test_on_a_cpu_there_is_nothing_to_choose() -> None:
    registry.choose("auto", torch.device("cpu"))
    for name in ("triton", "flash", "varlen"):
        with pytest.raises(ValueError, match=f"--attention {name} needs an NVIDIA GPU"):
            registry.choose(name, torch.device("cpu"))


def test_flash_attn_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if util.find_spec("flash_attn") is None:
        with pytest.raises(
            ValueError, match="needs the package flash-attn, which is not installed"
        ):
            registry.choose("flash", CUDA)
    # As flash-attn 4 leaves it, which has no such function.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    with pytest.raises(ValueError, match=r"flash-attn is installed and cannot be used: .*varlen"):
        registry.choose("flash", CUDA)
    old = ModuleType("flash_attn")
    old.flash_attn_varlen_func = lambda q, k, v: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    with pytest.raises(ValueError, match=r"needs flash-attn 2\.6 or later"):
        registry.choose("flash", CUDA)
    assert registry.block_size(CUDA) == 16


def test_a_torch_without_block_tables_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # As torch 2.11 has it.
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value: query)
    with pytest.raises(ValueError, match=re.escape(f"and {torch.__version__} is installed")):
        registry.choose("varlen", CUDA)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(ValueError, match="takes a block table"):
        registry.choose("varlen", CUDA)


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
