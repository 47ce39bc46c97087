"""Compiles for a GPU, without one, each kernel that the fused decoder launches besides attention:
`python -m tests.helpers.triton_compile_decoder 90 bfloat16 1 llama` (compute capability, dtype,
tokens, model of MODELS); with `codes=int8`, with a cache of codes; with `keep=FOLDER`, the PTX goes
there.

One line of JSON for each kernel, a `Build`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.triton_compile import standing_in
from workers.attention import triton_kernels as attention_kernels
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.device_batch import DeviceBatch
from workers.attention.kv_codes import CODES
from workers.attention.triton_paged import TritonAttention
from workers.decoder import triton_kernels
from workers.decoder.device import DeviceDecoder
from workers.decoder.families import Description
from workers.forward import ForwardBatch
from workers.kernels import triton_codes, triton_linear
from workers.layers.layer import Layer
from workers.layers.replace import Replacements
from workers.models.weights import put
from workers.quantization.method import QuantMethod
from workers.quantization.registry import PLAIN

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
        },
    ),
    "qwen3": (
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
    ),
    "phi3": (
        "phi3",
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "partial_rotary_factor": 0.75,
            "pad_token_id": 0,
        },
    ),
}
GPU = torch.device("cuda", 0)
OURS: dict[ModuleType, tuple[str, ...]] = {
    triton_kernels: ("turn", "embed", "add_norm", "place", "bound"),
    triton_linear: ("gemv", "narrow", "gate"),
    triton_codes: ("coded_gemv", "coded_narrow", "dequantize", "quantize_rows"),
}
ATTENTION: dict[ModuleType, tuple[str, ...]] = {
    attention_kernels: ("prefill", "decode", "combine"),
}
ALL = OURS | ATTENTION


def described(name: str, dtype: torch.dtype, method: QuantMethod = PLAIN) -> Description:
    """A model of two layers whose weights come without memory, within `no_gpu`."""
    kind, settings = MODELS[name]
    config = AutoConfig.for_model(kind, num_hidden_layers=2, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # What is read on the host.
    rotary, embedding = model.model.rotary_emb, model.model.embed_tokens
    put(rotary, "inv_freq", torch.ones(rotary.inv_freq.shape))
    if hasattr(embedding, "embed_scale"):
        put(embedding, "embed_scale", torch.tensor(48.0))
    Replacements(model, GPU, method).put()
    return Description(model, _move, GPU)


def _move(module: nn.Module, borrow: bool) -> None:
    for one in module.modules():
        if isinstance(one, Layer):
            slots = one.slots.items()
            one.load({x: torch.empty(y.shape, dtype=y.dtype, device=GPU) for x, y in slots})
            continue
        for leaf, old in list(one.named_parameters(recurse=False)):
            put(one, leaf, torch.empty(old.shape, dtype=old.dtype, device=GPU))


class Launched:
    """Stands in for a kernel: counts its launches."""

    def __init__(self) -> None:
        self.n = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Launched:
        assert all(isinstance(n, int) and n > 0 for n in grid)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.n += 1


@contextmanager
def no_gpu(kernels: Mapping[ModuleType, Sequence[str]] = ALL) -> Iterator[dict[str, Launched]]:
    """Within, tensors on a GPU have no memory, code that waits for one fails, and these kernels are
    not launched."""
    stand_ins: dict[str, Launched] = {}
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), warnings.catch_warnings():
        # Addresses are noted down, of tensors that have none here.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for module, names in kernels.items():
            for name in names:
                stand_ins[name] = Launched()
                patch.setattr(module, name, stand_ins[name])
        yield stand_ins


def decoder_of(description: Description) -> DeviceDecoder:
    """Within `no_gpu`."""
    description.ropes = [
        replace(rope, frequencies=torch.empty(rope.frequencies.shape, device=GPU))
        for rope in description.ropes
    ]
    return DeviceDecoder(TritonAttention, description)


def cache_for(description: Description, codes: str = "") -> PagedCache:
    """Within `no_gpu`."""
    numbers = description.numbers
    dim, dtype = numbers.head_dim, description.dtype
    return PagedCache(
        description.n_blocks, 8, 16, numbers.n_kv_heads, dim, dtype, GPU, CODES.get(codes)
    )


def captured(decoder: DeviceDecoder, cache: PagedCache, n_rows: int) -> AttentionContext:
    """Within `no_gpu`: a forward pass of decodes as a CUDA graph has it."""

    def numbers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=GPU)

    batch = DeviceBatch(
        slots=numbers(n_rows),
        lengths=numbers(n_rows),
        starts=numbers(n_rows),
        parts=numbers(n_rows + 1),
        tables=numbers(64),
        tiles=numbers(0, 4),
        most_parts=4 * n_rows,
    )
    return AttentionContext.captured(cache, n_rows, {decoder.attention: batch})


def forward(decoder: DeviceDecoder, cache: PagedCache, n_rows: int) -> torch.Tensor:
    ids, positions, wanted = (torch.empty(n_rows, dtype=torch.int64, device=GPU) for _ in range(3))
    batch = ForwardBatch(ids, positions, wanted, captured(decoder, cache, n_rows))
    return decoder.forward(batch).logits


def main(capability: int, dtype: torch.dtype, n_rows: int, name: str, more: dict[str, str]) -> None:
    description = described(name, dtype)
    keep = Path(more["keep"]) if "keep" in more else None
    with ExitStack() as within:
        for module, names in OURS.items():
            within.enter_context(standing_in(module, names, capability, keep))
        within.enter_context(no_gpu(ATTENTION))
        cache = cache_for(description, more.get("codes", ""))
        forward(decoder_of(description), cache, n_rows)


if __name__ == "__main__":
    capability, dtype, n_rows, name, *words = sys.argv[1:]
    more = dict(word.split("=") for word in words)
    main(int(capability), getattr(torch, dtype), int(n_rows), name, more)
