"""The compiled kernel: doing without it, sharing out its work, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers import native
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.gather import TorchAttention
from workers.attention.kv_codes import CODES, KvCodes
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.native import NativeAttention
from workers.attention.registry import choose

CPU = torch.device("cpu")


@pytest.mark.usefixtures("no_kernels")
def test_without_a_compiler_torch_serves_and_a_note_says_so() -> None:
    backend, (note,) = choose("auto", CPU)
    assert backend is TorchAttention
    assert "attention runs in plain torch" in note
    assert "Install one (such as the package gcc)" in note


@pytest.mark.usefixtures("fresh_kernels")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.c"
    broken.write_text("not C")
    monkeypatch.setattr(native, "SOURCES", (broken,))
    _, (note,) = choose("auto", CPU)
    assert "failed with status 1" in note
    assert "broken.c" in note


@pytest.mark.usefixtures("fresh_kernels")
def test_a_cache_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "file"))
    _, (note,) = choose("auto", CPU)
    assert str(tmp_path / "file") in note


def test_tensors_that_do_not_fit_the_cache_are_refused() -> None:
    cache = PagedCache(1, 2, 4, 2, 32, torch.float32)
    one = torch.ones(1, dtype=torch.int32)
    context = AttentionContext(
        cache, torch.zeros(1, dtype=torch.int64), 1, torch.zeros(1, 2, dtype=torch.int32), one
    )
    q, k = torch.ones(1, 4, 1, 32), torch.ones(1, 2, 1, 32)
    layer = AttentionLayer(0, 1.0)
    attention = NativeAttention(AttentionShape(4, 2, 32, torch.float32))
    assert attention.forward(layer, q, k, k, context).shape == (1, 1, 4, 32)
    wrong: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = [
        (q.bfloat16(), k, k),
        (q, k, k.double()),
        (q, k[..., :16], k),
        (q[:, :3], k, k),
        (q.repeat(1, 1, 2, 1), k, k),
        (q, k, None),
    ]
    for query, key, value in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            attention.forward(layer, query, key, value, context)
    with pytest.raises(ValueError, match="6 heads where 4 are the most"):
        attention.forward(layer, q.repeat(1, 2, 1, 1)[:, :6], k, k, context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    n_blocks, lengths = 86, [700, 1, 129, 300]
    pools = torch.randn(2, n_blocks, 2, 16, 64, generator=generator).to(dtype)
    q, k, v = (torch.randn(1, h, 204, 64, generator=generator).to(dtype) for h in (6, 2, 2))
    tables = torch.arange(n_blocks, dtype=torch.int32)
    rows = torch.zeros(4, 44, dtype=torch.int32)
    first = 0
    for row, length in zip(rows, lengths, strict=True):
        n = -(-length // 16)
        row[:n] = tables[first : first + n]
        first += n
    at = torch.tensor(lengths) - 1
    slots = rows.long()[torch.arange(4), at // 16] * 16 + at % 16
    slots = torch.cat((slots, tables[first].long() * 16 + torch.arange(200)))
    chunk = Prefill(4, 200, 200, tables[first:].clone())

    def run(threads: int) -> tuple[torch.Tensor, torch.Tensor]:
        cache = PagedCache(1, n_blocks, 16, 2, 64, dtype)
        cache.keys[0].copy_(pools[0])
        cache.values[0].copy_(pools[1])
        context = AttentionContext(
            cache, slots, 4, rows, torch.tensor(lengths, dtype=torch.int32), [chunk]
        )
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            attention = NativeAttention(AttentionShape(6, 2, 64, dtype))
            out = attention.forward(AttentionLayer(0, 0.125), q, k, v, context)
        finally:
            torch.set_num_threads(before)
        return out, torch.stack((cache.keys[0], cache.values[0]))

    alone, written = run(1)
    for threads in (2, 3, 8):
        for _ in range(20):
            out, cached = run(threads)
            assert torch.equal(out, alone)
            assert torch.equal(cached, written)


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
    assert why in (NativeAttention.shape_refusal(AttentionShape(*shape)) or "")
    with pytest.raises(ValueError, match=why):
        NativeAttention(AttentionShape(*shape))
    assert NativeAttention.shape_refusal(AttentionShape(64, 1, 512, torch.bfloat16)) is None


@pytest.mark.parametrize("codes", [None, CODES["int8"]], ids=["numbers", "codes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 150])
def test_long_parts_that_attend_in_both_directions(
    dtype: torch.dtype, window: int, codes: KvCodes | None
) -> None:
    """Longer than the kernel takes at once, and begun behind a chunk that is computed already."""
    draw = torch.Generator().manual_seed(7)
    length, n = 700, 620
    spans = ((80, 81), (90, 391), (391, 400), (500, 700))
    table = torch.randperm(44, generator=draw).to(torch.int32)
    at = torch.arange(length)
    slots = table.long()[at // 16] * 16 + at % 16
    none = torch.empty(0, dtype=torch.int32)
    before = torch.randn(2, 1, 2, length - n, 32, generator=draw).to(dtype)
    query, key, value = (torch.randn(1, h, n, 32, generator=draw).to(dtype) for h in (6, 2, 2))
    found = []
    for backend in (NativeAttention, TorchAttention):
        attention = backend(AttentionShape(6, 2, 32, dtype))
        cache = PagedCache(1, 44, 16, 2, 32, dtype, "cpu", codes)
        for start, end, (k, v), its in ((0, 80, before, ()), (80, 700, (key, value), spans)):
            prefill = Prefill(0, end - start, end, table, its)
            context = AttentionContext(
                cache, slots[start:end], 0, none.reshape(0, 0), none, [prefill]
            )
            given = query[:, :, : end - start]
            out = attention.forward(AttentionLayer(0, 0.2, window), given, k, v, context)
        found.append(out.float())
    tolerance = 2e-2 if dtype is torch.bfloat16 else 2e-5
    torch.testing.assert_close(*found, atol=tolerance, rtol=tolerance)
