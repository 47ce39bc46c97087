"""Which quantized weights the kernels of a GPU take, and that those are all that is kept."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.helpers.triton_process import NEEDED
from workers.quantization import device_codes
from workers.quantization.codes import Codes, Groups
from workers.quantization.gptq import GPTQMethod
from workers.quantization.grouped import GroupedWeight
from workers.quantization.method import Cut, Size
from workers.quantization.on_the_fly import ROUNDINGS, OnTheFlyMethod

GPU = torch.device("cuda", 0)


def grouped(
    k: int, group: int, dtype: torch.dtype = torch.bfloat16, device: torch.device | None = None
) -> GroupedWeight:
    packed = torch.zeros((4, k // 2), dtype=torch.uint8, device=device)
    scales = torch.ones(4, -(-k // group), device=device)
    return GroupedWeight(Codes(packed, k, 4), Groups(scales, None, group), dtype)


@NEEDED
@pytest.mark.parametrize(
    "flag",
    [
        one if one in ("int4", "bitsandbytes-nf4") else pytest.param(one, marks=pytest.mark.full)
        for one in sorted(ROUNDINGS)
    ],
)
def test_a_gpu_keeps_the_form_of_its_kernels_alone(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.kernels import device_codes as kernels

    monkeypatch.setattr(kernels, "_multiplies_e4m3", lambda device: True)
    # Tables are on the host, and have to be brought to the GPU.
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = torch.empty((256, 512), dtype=torch.bfloat16, device=GPU)
        weight = OnTheFlyMethod(flag).weight(
            {"weight": given}, Size(256, 512), Cut(), torch.bfloat16
        )
        packed = weakref.ref(weight.codes.packed)
        n_bytes = sum(one.nbytes for one in weight.tensors)
        form = weight.fastest()
        del weight
        gc.collect()
        assert isinstance(form, kernels.DeviceCodes)
        assert (form.note is not None) == form.rounds_inputs == (flag == "fp8")
        assert packed() is None
        assert {one.device for one in form.tensors} == {GPU}
        assert sum(one.nbytes for one in form.tensors) == n_bytes + 4


@NEEDED
def test_what_the_kernels_do_not_have_is_said() -> None:
    with FakeTensorMode():
        weight = grouped(96, 48, device=GPU)
        assert weight.fastest() is weight
        assert weight.note == (
            "quantized layers are dequantized whenever they are multiplied: its groups are of 48 "
            "inputs, no multiple of 32"
        )
    assert device_codes.refusal(grouped(96, 32)) is None
    assert device_codes.refusal(grouped(40, 40)) is None
    assert "not for torch.float64" in str(device_codes.refusal(grouped(96, 32, torch.float64)))
    index = torch.tensor([0] * 20 + [1] * 44)
    uneven = GroupedWeight(
        Codes(torch.zeros((4, 32), dtype=torch.uint8), 64, 4),
        Groups(torch.ones(4, 2), None, 32),
        torch.bfloat16,
        group_index=index,
    )
    assert device_codes.refusal(uneven) == "its groups are of different sizes"


def test_the_fused_decoder_of_a_gpu_has_what_that_of_a_cpu_has() -> None:
    sizes = [Size(64, 128), Size(32, 128)]
    for settings, n, fits in (
        ({"bits": 4, "group_size": 32}, 2, True),
        ({"bits": 3, "group_size": -1}, 2, True),
        ({"bits": 4, "group_size": 16}, 1, False),
        ({"bits": 4, "group_size": 32, "desc_act": True}, 1, True),
        ({"bits": 4, "group_size": 32, "desc_act": True}, 2, False),
    ):
        method = GPTQMethod.of({"quant_method": "gptq", **settings})
        assert (method.prepared("triton_linear", sizes[:n]) is not None) == fits, settings
    assert method.prepared("triton_rows", sizes[:1]) is None
