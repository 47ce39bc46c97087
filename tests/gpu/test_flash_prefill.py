"""Prefills by flash-attn and by torch's varlen_attn, beside decodes by the Triton kernels, against
plain attention in float32. Without a GPU, doubles stand in for the two."""

from __future__ import annotations

import pytest
import torch

from tests.doubles import flash_doubles
from tests.helpers.paged_batch import Shape, largest_difference

pytest.importorskip("triton", reason="the package triton is not installed")

from workers.attention.flash import FlashAttention, VarlenAttention
from workers.attention.layer import AttentionShape
from workers.attention.triton_paged import TritonAttention

CHOICES = {"flash": FlashAttention, "varlen": VarlenAttention}
DECODES, PREFILLS = [1, 300], [(33, 190), (1, 1), (20, 270), (1, 257)]


@pytest.fixture(params=CHOICES)
def choice(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    prefill = CHOICES[name].PREFILL
    assert prefill is not None
    if device == "cpu":
        flash_doubles.put_in_place(monkeypatch)
    elif refusal := prefill.refusal():
        pytest.skip(refusal)
    return name


def difference(choice: str, shape: Shape, decodes: list[int], **options: object) -> float:
    backend = CHOICES[choice]
    assert backend(shape.attention).notes == []
    return largest_difference(backend, shape, decodes, PREFILLS, **options)  # type: ignore[arg-type]


def shape(device: str, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape(4, 2, head_dim, 256, dtype, device)


@pytest.mark.parametrize(
    ("window", "decodes"), [(0, []), (0, DECODES), (1, []), (40, DECODES), (1000, [])]
)
def test_chunks_beside_decodes_equal_each_sequence_alone(
    device: str, choice: str, window: int, decodes: list[int]
) -> None:
    assert difference(choice, shape(device), decodes, window=window) < 0.02
    assert device != "cpu" or flash_doubles.calls == [choice]


@pytest.mark.parametrize("head_dim", [8, 80, 256])
def test_head_dims_in_steps_of_eight(device: str, choice: str, head_dim: int) -> None:
    assert difference(choice, shape(device, head_dim, torch.float16), []) < 0.003
    assert device != "cpu" or flash_doubles.calls == [choice]


@pytest.mark.parametrize(
    "option",
    ["softcap", "sinks", *(pytest.param(x, marks=pytest.mark.full) for x in ("chunk", "slopes"))],
)
def test_what_they_do_not_take_the_triton_kernel_does(
    device: str, choice: str, option: str
) -> None:
    value = {"softcap": 20.0, "chunk": 100}.get(option, True)
    assert difference(choice, shape(device, 16), [5], **{option: value}) < 0.03
    taken = (choice, option) == ("flash", "softcap")
    assert device != "cpu" or flash_doubles.calls == ["flash"] * taken


def test_a_shape_that_they_do_not_take_is_reported(device: str, choice: str) -> None:
    for head_dim, dtype in ((64, torch.float32), (20, torch.bfloat16), (264, torch.bfloat16)):
        there = Shape(4, 2, head_dim, 256, dtype, device)
        (note,) = CHOICES[choice](there.attention).notes
        assert note.startswith("prefills run without ")
        assert largest_difference(CHOICES[choice], there, [], [(3, 3)]) < 0.03
    assert device != "cpu" or flash_doubles.calls == []
    assert TritonAttention(AttentionShape(4, 2, 64, torch.float32)).notes == []
