"""The fused decoder of a GPU where there is none: that it waits for nothing, how often it launches,
and what its kernels take of a GPU. tests/gpu/test_decoder.py has its numbers."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.helpers.triton_process import NEEDED, compile
from workers.attention.flash import FlashAttention
from workers.attention.gather import TorchAttention
from workers.attention.native import NativeAttention
from workers.attention.triton_paged import TritonAttention
from workers.decoder.families import NotFused
from workers.decoder.native import NativeDecoder
from workers.models.loading import decoder_for
from workers.quantization.on_the_fly import OnTheFlyMethod
from workers.quantization.registry import PLAIN

pytestmark = NEEDED

CPU = torch.device("cpu")
PASS = ["turn", "embed"]
ATTEND = ["place", "decode", "combine"]


def launches(
    name: str, n_rows: int, monkeypatch: pytest.MonkeyPatch, quantize: str = ""
) -> Counter[str]:
    """Of a captured pass, products by cuBLAS included as `linear`, `mm` and `scaled_mm`."""
    from tests.helpers import triton_compile_decoder as without_gpu
    from workers.kernels import device_codes, device_linear

    products: Counter[str] = Counter()
    linear, mm = torch.nn.functional.linear, torch.mm

    def counted(name: str, run: object) -> object:
        def call(*args: object, **named: object) -> object:
            products[name] += 1
            return run(*args, **named)  # type: ignore[operator]

        return call

    monkeypatch.setattr(device_linear, "linear", counted("linear", linear))
    monkeypatch.setattr(device_codes, "linear", counted("linear", linear))
    monkeypatch.setattr(torch, "mm", counted("mm", mm))
    monkeypatch.setattr(torch, "_scaled_mm", counted("scaled_mm", torch._scaled_mm))
    monkeypatch.setattr(device_codes, "_multiplies_e4m3", lambda device: True)
    method = OnTheFlyMethod(quantize) if quantize else PLAIN
    description = without_gpu.described(name, torch.bfloat16, method)
    with without_gpu.no_gpu() as stand_ins:
        decoder = without_gpu.decoder_of(description)
        rounds = [note for note in decoder.notes if "activations are rounded to e4m3" in note]
        assert len(rounds) == (quantize == "fp8")
        cache = without_gpu.cache_for(description)
        logits = without_gpu.forward(decoder, cache, n_rows)
        assert logits.shape == (n_rows, description.numbers.vocab_size)
        assert logits.dtype == torch.float32
        assert logits.device.type == "cuda"
    return products + Counter({kernel: one.n for kernel, one in stand_ins.items()})


def test_a_captured_pass_waits_for_nothing_and_launches_nine_kernels_a_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = {"add_norm": 2, "place": 1, "decode": 1, "combine": 1}
    both = Counter({name: 2 * n for name, n in layer.items()}) + Counter(turn=1, embed=1)
    assert sum(layer.values()) + 4 == 9
    for name, n_rows, more in (
        ("llama", 1, {"gemv": 2 * 4 + 1}),
        ("llama", 16, {"narrow": 2 * 4 + 1}),
        ("gemma2", 3, {"gemv": 2 * 4 + 1, "bound": 1}),
        ("qwen3", 64, {"linear": 2 * 4, "gate": 2, "mm": 1}),
    ):
        assert launches(name, n_rows, monkeypatch) == both + Counter(more), (name, n_rows)


def test_codes_take_no_more_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what many rows need besides a product."""
    both = Counter({"add_norm": 4, "place": 2, "decode": 2, "combine": 2, "turn": 1, "embed": 1})
    for quantize, n_rows, more in (
        ("int4", 1, {"coded_gemv": 2 * 4 + 1}),
        ("int8", 128, {"coded_narrow": 2 * 4 + 1}),
        ("eetq", 129, {"dequantize": 2 * 4, "linear": 2 * 4, "gate": 2, "mm": 1}),
        ("fp8", 65, {"quantize_rows": 2 * 4, "scaled_mm": 2 * 4, "gate": 2, "mm": 1}),
    ):
        found = launches("qwen3", n_rows, monkeypatch, quantize)
        assert found == both + Counter(more), (quantize, n_rows)


QUICK = [(90, "bfloat16", 16, "llama")]
MORE = [
    (80, "bfloat16", 16, "gemma2"),
    (90, "bfloat16", 1, "llama"),
    (90, "bfloat16", 64, "phi3"),
    (86, "float16", 4, "qwen3"),
    (86, "bfloat16", 32, "phi3"),
    (90, "float32", 4, "llama"),
    (120, "bfloat16", 2, "gemma2"),
    (120, "float16", 16, "llama"),
]


@pytest.mark.parametrize(
    ("capability", "dtype", "n_rows", "name"),
    [*QUICK, *(pytest.param(*one, marks=pytest.mark.full) for one in MORE)],
)
def test_the_kernels_compile_and_fit_a_gpu(
    tmp_path: Path, capability: int, dtype: str, n_rows: int, name: str
) -> None:
    builds = compile(tmp_path, "decoder", capability, dtype, n_rows, name, f"keep={tmp_path}")
    names = {build.name for build in builds}
    assert names >= {"turn", "embed", "add_norm", "place"}
    for build in builds:
        build.expect_fitting(capability)
    loads = {"gemv": "ld.global.L1::evict_first", "narrow": "cp.async.cg.shared.global"}
    for product in names & loads.keys():
        ptx = (tmp_path / f"{product}.ptx").read_text()
        of_weights = [line for line in ptx.splitlines() if loads[product] in line]
        assert of_weights
        assert all(".v4.b32" in line or ", 0x10, " in line for line in of_weights)
    if "narrow" in names and capability == 90:
        assert "wgmma.mma_async" in (tmp_path / "narrow.ptx").read_text()


@pytest.mark.full
@pytest.mark.parametrize(
    ("capability", "codes"), [(80, "fp8_e4m3fn"), (89, "fp8_e5m2"), (90, "int8"), (120, "int8")]
)
def test_keys_and_values_are_written_as_codes(tmp_path: Path, capability: int, codes: str) -> None:
    builds = compile(tmp_path, "decoder", capability, "bfloat16", 1, "qwen3", f"codes={codes}")
    written = [build for build in builds if build.name == "place"]
    assert written
    for build in written:
        build.expect_fitting(capability)


def test_each_device_has_its_own() -> None:
    from workers.decoder.device import DeviceDecoder

    assert decoder_for(NativeAttention, CPU) is NativeDecoder
    for backend in (TritonAttention, FlashAttention):
        made = decoder_for(backend, torch.device("cuda"))
        assert isinstance(made, partial)
        assert (made.func, made.args) == (DeviceDecoder, (backend,))
    with pytest.raises(NotFused, match="it attends by torch, not by its own kernel"):
        decoder_for(TorchAttention, CPU)
