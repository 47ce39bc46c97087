"""The fused decoder of a GPU against transformers: every family, in chunks, decodes and mixed
batches; captured passes; several ranks."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.helpers.kv_oracle import SCALED, attend_codes
from tests.helpers.tiny_families import VARIANTS, VOCABULARY, smaller, tiny
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_vision import save_vision
from tests.workers.attention.toy import ToyAttention
from tests.workers.test_runner import LONG, SHORT, Batch, greedy, tokens_of
from tgi_async.wire.messages import Admit

pytest.importorskip("triton", reason="the package triton is not installed")

from tests.helpers.loading import load
from tests.helpers.our_layers import replaced, tensors_of
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.device_batch import DeviceBatch, decode_numbers
from workers.attention.kv_codes import CODES, UNSCALED, KvCodes
from workers.attention.registry import Backend
from workers.attention.triton_paged import TritonAttention
from workers.decoder.device import DeviceDecoder
from workers.decoder.families import FAMILIES, Block, Description, NotFused
from workers.errors import UnsupportedModel
from workers.forward import ForwardBatch, Inserted, Model
from workers.kernels import device_codes
from workers.quantization.method import Cut, Kind, Size
from workers.quantization.on_the_fly import OnTheFlyMethod

BLOCK_SIZE = 4
BLOCKS_PER_ROW = 2
STEPS = ((4, 2, 1, 2, 1), (2, 1, 1, 0, 1))
"""Tokens of each of five rows. There are always five or more of them: up to four go through a
kernel that the interpreter needs seconds for."""
LENGTHS = tuple(map(sum, zip(*STEPS, strict=True)))
N_ROWS = len(LENGTHS)
MOST_DIFFERENCE = 2e-4
EACH = (
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "llama, biases",
    "ministral",
    "mistral",
    "phi3, partial",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
)
"""Of every family, the model with most of what a decoder can get wrong."""
SIX = ("gemma2", "gemma3", "granite", "llama, biases", "phi3, partial", "smollm3")
"""Those that have all of it between them: the interpreter needs seconds for each."""


def small(variant: str, dtype: torch.dtype = torch.float32, **other: Any) -> Any:
    return tiny(variant, dtype, **(smaller(variant) | other))


def cache_of(model: Any, device: str, dtype: torch.dtype = torch.float32) -> PagedCache:
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    n_blocks = N_ROWS * BLOCKS_PER_ROW
    cache = PagedCache(2, n_blocks, BLOCK_SIZE, config.num_key_value_heads, head_dim, dtype, device)
    for pool in cache.keys + cache.values:
        pool.fill_(float("nan"))  # what nobody wrote must not matter
    return cache


class Rows:
    """Sequences that are fed to a decoder step by step, their blocks scattered."""

    def __init__(self, decoder: Model, cache: PagedCache) -> None:
        draw = torch.Generator().manual_seed(1)
        self.decoder, self.cache = decoder, cache
        self.tokens = [torch.randint(VOCABULARY, (n,), generator=draw) for n in LENGTHS]
        order = torch.randperm(cache.n_blocks, generator=draw).to(torch.int32)
        self.tables = order.reshape(N_ROWS, BLOCKS_PER_ROW)
        self.computed = [0] * N_ROWS
        self.logits: list[list[torch.Tensor]] = [[] for _ in LENGTHS]

    def slots(self, row: int, n: int) -> torch.Tensor:
        at = torch.arange(self.computed[row], self.computed[row] + n)
        return self.tables[row].long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE

    def step(self, counts: Sequence[int]) -> None:
        """So many tokens of each row; single ones of rows that have begun are decodes."""
        decodes = [r for r, n in enumerate(counts) if n == 1 and self.computed[r]]
        chunks = [(r, n) for r, n in enumerate(counts) if n and r not in decodes]
        order = [(r, 1) for r in decodes] + chunks
        prefills, start = [], len(decodes)
        for r, n in chunks:
            prefills.append(Prefill(start, n, self.computed[r] + n, self.tables[r]))
            start += n
        context = AttentionContext(
            self.cache,
            torch.cat([self.slots(r, n) for r, n in order]),
            len(decodes),
            self.tables[decodes].contiguous(),
            torch.tensor([self.computed[r] + 1 for r in decodes], dtype=torch.int32),
            prefills,
        )
        logits = self.run(context, order)
        for (r, n), part in zip(order, logits.split([n for _, n in order]), strict=True):
            self.logits[r].append(part)
            self.computed[r] += n

    def run(self, context: AttentionContext, order: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Logits of all tokens, on the host."""
        ids = torch.cat([self.tokens[r][self.computed[r] :][:n] for r, n in order])
        positions = torch.cat([torch.arange(n) + self.computed[r] for r, n in order])
        device = self.cache.keys[0].device
        wanted = torch.arange(len(ids)).to(device)
        batch = ForwardBatch(ids.to(device), positions.to(device), wanted, context)
        with torch.inference_mode():
            return self.decoder.forward(batch).logits.cpu()

    def all(self) -> list[torch.Tensor]:
        """Logits [length, vocabulary] of each row."""
        for counts in STEPS:
            self.step(counts)
        return [torch.cat(parts) for parts in self.logits]


def reference(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(tokens[None], use_cache=False).logits[0]
    return logits


def device_decoder(model: Any, device: str, attention: Backend = TritonAttention) -> DeviceDecoder:
    return DeviceDecoder(attention, Description(replaced(copy.deepcopy(model).to(device))))


def test_every_family_is_among_them() -> None:
    assert {VARIANTS[name][0] for name in EACH} == FAMILIES


@pytest.mark.parametrize(
    "variant", [x if x in SIX else pytest.param(x, marks=pytest.mark.full) for x in VARIANTS]
)
def test_every_position_has_the_logits_of_transformers(device: str, variant: str) -> None:
    model = small(variant)
    rows = Rows(device_decoder(model, device), cache_of(model, device))
    for tokens, logits in zip(rows.tokens, rows.all(), strict=True):
        expected = reference(model, tokens)
        assert expected.std() > 0.3  # so that the difference below says something
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() < MOST_DIFFERENCE


@pytest.mark.full
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_cache_of_codes_has_the_logits_that_transformers_has_of_them(
    device: str, codes: KvCodes
) -> None:
    model = small("llama, biases")
    plain = cache_of(model, device)
    cache = PagedCache(
        2, plain.n_blocks, BLOCK_SIZE, plain.n_kv_heads, plain.head_dim, plain.dtype, device, codes
    )
    cache.scales = [SCALED, UNSCALED]
    rows = Rows(device_decoder(model, device), cache)
    found = rows.all()
    attend_codes(model, codes, cache.scales)
    expected = [reference(model, tokens) for tokens in rows.tokens]
    apart = (torch.cat(found) - torch.cat(expected)).abs()
    # A number between two codes may become the other one.
    assert apart.median() < 10 * MOST_DIFFERENCE
    assert apart.max() < 0.3


@pytest.mark.parametrize("variant", ["gemma2", pytest.param("granite", marks=pytest.mark.full)])
def test_hidden_states_are_those_of_transformers(device: str, variant: str) -> None:
    model = small(variant)
    decoder = device_decoder(model, device)
    rows = Rows(decoder, cache_of(model, device))
    n = len(rows.tokens[0])
    prefill = Prefill(0, n, n, rows.tables[0])
    none = torch.empty(0, dtype=torch.int32)
    context = AttentionContext(rows.cache, rows.slots(0, n), 0, none.reshape(0, 0), none, [prefill])
    at = torch.arange(n).to(device)
    with torch.inference_mode():
        batch = ForwardBatch(rows.tokens[0].to(device), at, at.flip(0), context, hidden=True)
        logits, hidden = decoder.forward(batch)
        assert hidden is not None
        output = model(rows.tokens[0][None], output_hidden_states=True)
        assert (hidden.cpu() - output.hidden_states[-1][0].flip(0)).abs().max() < 1e-4
        scores = decoder.head(hidden)
        assert (scores.cpu() - model.lm_head(hidden.cpu())).abs().max() < MOST_DIFFERENCE
        assert torch.equal(scores.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("kind", ["qwen3_vl", pytest.param("llava", marks=pytest.mark.full)])
def test_inserted_rows_and_positions_of_three_axes_are_as_in_transformers(
    device: str, kind: str, tmp_path: Path
) -> None:
    save_vision(kind, tmp_path)
    own = load(tmp_path, torch.float32, torch.device(device), "fused", attention=TritonAttention)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.tensor([5, 1, 9, 1, 1, 7])
    at, n_rows = torch.tensor([1, 3, 4]), 3 if kind == "qwen3_vl" else 1
    rows = torch.randn(3, n_rows * 64, generator=torch.Generator())
    positions, more = torch.arange(6), {}
    first, *added = rows.split(64, dim=1)
    if kind == "qwen3_vl":
        positions = torch.stack((positions, positions * 3, 20 - positions))
        masks = torch.zeros(1, 6, dtype=torch.bool).index_fill(1, at, value=True)
        more = {"visual_pos_masks": masks, "deepstack_visual_embeds": added}
    cache = own.spec.cache_group.pool(4, BLOCK_SIZE, device)
    table, none = torch.tensor([2, 0], dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    slots = torch.tensor([8, 9, 10, 11, 0, 1])
    context = AttentionContext(cache, slots, 0, none.reshape(0, 0), none, [Prefill(0, 6, 6, table)])
    inserted = Inserted(at.to(device), rows.to(device))
    every = torch.arange(6).to(device)
    batch = ForwardBatch(tokens.to(device), positions.to(device), every, context, inserted)
    with torch.inference_mode():
        logits = own.forward(batch).logits.cpu()
        embeddings = model.get_input_embeddings()(tokens).index_copy(0, at, first)
        hidden = model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions.unsqueeze(-2),
            use_cache=False,
            **more,
        ).last_hidden_state
        expected = model.lm_head(hidden)[0]
    assert expected.std() > 0.3
    assert (logits - expected).abs().max() < MOST_DIFFERENCE


def test_what_attends_in_both_directions_is_not_fused_where_attention_does_not(
    device: str, tmp_path: Path
) -> None:
    folder, on = save_vision("gemma3", tmp_path), torch.device(device)
    with pytest.raises(UnsupportedModel, match="which triton attention does not"):
        load(folder, torch.float32, on, "fused", attention=TritonAttention)


def faults(block: Block) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a decoder could get wrong in a layer and still look right at a glance."""
    yield "window", {"window": block.window + 1}
    yield "rope", {"rope": None}
    yield "gate and up", {"gate_up": block.gate_up[::-1]}
    for name in Block.__dataclass_fields__:
        if name.endswith("_norm"):
            yield name, {name: torch.ones_like(getattr(block, name))}


@pytest.mark.parametrize(
    "fault", [name for name, _ in faults(Description(replaced(small("gemma3"))).block(0))]
)
def test_a_fault_in_one_layer_would_be_seen(
    device: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("gemma3")
    whole = Description.block

    def block(description: Description, at: int) -> Block:
        found = whole(description, at)
        changed = dict(faults(found))[fault] if at == 0 else {}
        fields = {field: getattr(found, field) for field in Block.__dataclass_fields__}
        return Block(**(fields | changed))

    monkeypatch.setattr(Description, "block", block)
    rows = Rows(device_decoder(model, device), cache_of(model, device))
    rows.step((6, 0, 0, 0, 0))
    expected = reference(model, rows.tokens[0][:6])
    assert (rows.logits[0][0] - expected).abs().max() > 100 * MOST_DIFFERENCE


@pytest.mark.parametrize("variant", ["gemma2", pytest.param("qwen3", marks=pytest.mark.full)])
def test_bfloat16_is_nearer_to_float32_than_transformers_bfloat16_is(
    device: str, variant: str
) -> None:
    exact, rough = small(variant), small(variant, torch.bfloat16)
    exact.load_state_dict(rough.state_dict())
    rows = Rows(device_decoder(rough, device), cache_of(exact, device, torch.bfloat16))
    ours, theirs = 0.0, 0.0
    for tokens, logits in zip(rows.tokens, rows.all(), strict=True):
        expected = reference(exact, tokens)
        ours += float((logits - expected).square().mean())
        theirs += float((reference(rough, tokens).float() - expected).square().mean())
    assert ours < theirs


@pytest.mark.parametrize(
    ("variant", "flag", "dtype"),
    [
        ("llama, biases", "int4", torch.float32),
        ("phi3", "fp8", torch.bfloat16),
        *(
            pytest.param(*one, marks=pytest.mark.full)
            for one in (
                ("phi3", "bitsandbytes-nf4", torch.float32),
                ("qwen2", "int8", torch.bfloat16),
                ("gemma2", "bitsandbytes-nf4", torch.bfloat16),
                ("qwen3", "int4", torch.bfloat16),
            )
        ),
    ],
)
def test_quantized_weights_have_the_logits_of_what_they_stand_for(
    device: str,
    variant: str,
    flag: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Few large programs take the interpreter less time.
    monkeypatch.setattr(device_codes, "DEQUANTIZED", (128, 64))
    # Rounded after they were quantized, some would be other codes.
    small(variant, torch.bfloat16, intermediate_size=128).save_pretrained(tmp_path)
    own = load(
        tmp_path, dtype, torch.device(device), "fused", attention=TritonAttention, quantize=flag
    )
    method = OnTheFlyMethod(flag)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, module in dense.named_modules():
        kind: Kind = "head" if name == "lm_head" else "linear"
        if isinstance(module, nn.Linear) and (its := method.for_layer(name, kind)) is not None:
            weight = module.weight.data
            stands_for = its.weight({"weight": weight}, Size(*weight.shape), Cut(), torch.float32)
            module.weight.data = stands_for.dense(torch.float32)
    rows = Rows(own, cache_of(dense, device, dtype))
    for tokens, logits in zip(rows.tokens, rows.all(), strict=True):
        expected = reference(dense, tokens)
        assert expected.std() > 0.3
        if dtype is torch.float32:
            assert (logits - expected).abs().max() < MOST_DIFFERENCE
        else:
            assert (logits - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_a_captured_pass_has_the_logits_of_an_ordinary_one(device: str) -> None:
    """With room for longer texts, and rows that are not there."""
    model = small("qwen3")
    decoder = device_decoder(model, device)
    rows = Rows(decoder, cache_of(model, device))
    rows.step((4, 2, 1, 1, 1))
    order, n_there = [(r, 1) for r in range(N_ROWS)], N_ROWS - 1
    slots = torch.cat([rows.slots(r, 1) for r in range(N_ROWS)])
    lengths = torch.tensor(rows.computed, dtype=torch.int32) + 1
    slots[n_there:], lengths[n_there:] = -1, 0
    n_blocks = -(-lengths.numpy() // BLOCK_SIZE)
    starts, parts, tables = decode_numbers(lengths.numpy(), rows.tables.numpy(), n_blocks)
    before = [pool.clone() for pool in rows.cache.keys + rows.cache.values]
    batch = DeviceBatch(
        slots.int().to(device),
        lengths.to(device),
        torch.from_numpy(starts).to(device),
        torch.from_numpy(parts).to(device),
        torch.cat((torch.from_numpy(tables), torch.full((9,), 10**6))).int().to(device),
        torch.empty((0, 4), dtype=torch.int32, device=device),
        most_parts=2 * N_ROWS,
    )
    context = AttentionContext.captured(rows.cache, N_ROWS, {decoder.attention: batch})
    captured = rows.run(context, order)
    for pool, was in zip(rows.cache.keys + rows.cache.values, before, strict=True):
        block, offset = slots[:n_there] // BLOCK_SIZE, slots[:n_there] % BLOCK_SIZE
        assert not pool[block, :, offset].isnan().any()
        pool[block, :, offset] = was[block, :, offset]
        assert torch.equal(pool.nan_to_num(7.5), was.nan_to_num(7.5))
    rows.step((1, 1, 1, 1, 1))
    ordinary = torch.stack([logits[-1][0] for logits in rows.logits])
    assert torch.equal(captured[:n_there], ordinary[:n_there])
    assert captured.isfinite().all()


def test_another_backend_attends_to_what_the_decoder_wrote(device: str) -> None:
    model = small("llama")
    decoder = device_decoder(model, device, ToyAttention)
    rows = Rows(decoder, cache_of(model, device))
    rows.step((4, 2, 1, 1, 1))
    rows.step((1, 1, 1, 1, 1))
    for tokens, logits in zip(rows.tokens, rows.logits, strict=True):
        found = torch.cat(logits)
        assert (found - reference(model, tokens[: len(found)])).abs().max() < MOST_DIFFERENCE


def test_an_id_outside_the_vocabulary_spoils_its_row_alone(device: str) -> None:
    model = small("llama")
    rows = Rows(device_decoder(model, device), cache_of(model, device))
    for row, bad in ((1, VOCABULARY), (2, -1), (4, 2**40)):
        rows.tokens[row][0] = bad
    rows.step((2, 1, 1, 1, 1))
    spoilt = [bool(logits[0].isnan().all()) for logits in rows.logits]
    assert spoilt == [False, True, True, False, True]
    for row, n in ((0, 2), (3, 1)):
        expected = reference(model, rows.tokens[row][:n])
        assert (rows.logits[row][0] - expected).abs().max() < MOST_DIFFERENCE


def test_no_logits_are_wanted_of_the_middle_of_a_prompt(device: str) -> None:
    model = small("gemma2")
    cache = cache_of(model, device)
    rows = Rows(device_decoder(model, device), cache)
    chunk = Prefill(0, 5, 5, rows.tables[0])
    nothing = torch.empty(0, dtype=torch.int32)
    context = AttentionContext(cache, rows.slots(0, 5), 0, rows.tables[:0], nothing, [chunk])
    tokens, wanted = rows.tokens[0][:5].to(device), nothing.long().to(device)
    batch = ForwardBatch(tokens, torch.arange(5).to(device), wanted, context)
    logits = rows.decoder.forward(batch).logits
    assert logits.shape == (0, VOCABULARY)
    assert logits.dtype == torch.float32
    rows.computed[0] = 5
    rows.step((1, 2, 2, 0, 0))
    expected = reference(model, rows.tokens[0])[5:]
    assert (rows.logits[0][0] - expected).abs().max() < MOST_DIFFERENCE


@pytest.mark.parametrize("variant", ["llama", "llama, heads of 48", "phi3"])
def test_the_weights_of_transformers_are_let_go(device: str, variant: str) -> None:
    model = small(variant).to(device)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    decoder = DeviceDecoder(TritonAttention, Description(replaced(model)))
    assert not tensors_of(model.model.layers)
    tied = model.config.tie_word_embeddings and device == "cpu"  # where what is borrowed is copied
    assert decoder.weight_bytes == n_bytes + (VOCABULARY * 64 * 4 if tied else 0)


def test_a_shape_that_attention_does_not_take_leaves_the_model_as_it_was(device: str) -> None:
    heads: dict[str, Any] = {"num_attention_heads": 192, "num_key_value_heads": 1}
    model = tiny("llama", num_hidden_layers=2, hidden_size=192 * 4, **heads).to(device)
    with pytest.raises(NotFused, match=r"its attention is not the kernels': .*192"):
        DeviceDecoder(TritonAttention, Description(replaced(model)))
    assert len(tensors_of(model.model.layers)) == 2 * 9


@pytest.mark.full
def test_the_runner_says_what_transformers_says(device: str, tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path)
    where = torch.device(device)
    model = load(folder, torch.float32, where, "fused", attention=TritonAttention)
    expected_of = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = Batch(model, where)
    found: dict[int, list[int]] = {0: [], 1: []}

    def step(run: dict[int, int], *admit: Admit) -> None:
        for row, token in tokens_of(batch.step(run, *admit)).items():
            found[row].append(token)

    step({0: 3, 1: 7}, batch.admit(0, SHORT), batch.admit(1, LONG))
    step({0: 1, 1: 23})
    step({0: 1, 1: 1})
    assert found == {0: greedy(expected_of, SHORT, 3), 1: greedy(expected_of, LONG, 2)}


class Meeting:
    """Ranks in threads of one process, one of which runs at a time."""

    def __init__(self, world_size: int) -> None:
        self._all_there = threading.Barrier(world_size, timeout=60)
        self._said: list[torch.Tensor] = [torch.empty(0)] * world_size
        self.turn = threading.Lock()

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self._said[rank] = x.clone()
        self.turn.release()
        self._all_there.wait()
        said = list(self._said)
        self._all_there.wait()
        self.turn.acquire()
        return said


class FakeRanks:
    """`Ranks` by a Meeting."""

    def __init__(self, rank: int, world_size: int, meeting: Meeting) -> None:
        self.rank, self.world_size = rank, world_size
        self._meeting = meeting

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        return x.copy_(torch.stack(self._meeting.exchange(self.rank, x)).sum(0))

    def gather(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        assert x.shape[-1] == widths[self.rank]
        return torch.cat(self._meeting.exchange(self.rank, x), dim=-1)


@pytest.mark.parametrize("variant", ["gemma2", pytest.param("phi3", marks=pytest.mark.full)])
def test_two_ranks_have_the_logits_of_one(device: str, variant: str, tmp_path: Path) -> None:
    model = small(variant)
    model.save_pretrained(tmp_path)
    meeting = Meeting(2)
    found: dict[int, torch.Tensor] = {}
    held: dict[int, int] = {}

    def run(rank: int) -> None:
        ranks: Any = FakeRanks(rank, 2, meeting)
        with meeting.turn:
            own = load(
                tmp_path, torch.float32, torch.device(device), "fused", ranks,
                attention=TritonAttention,
            )  # fmt: skip
            cache = own.spec.cache_group.pool(N_ROWS * BLOCKS_PER_ROW, BLOCK_SIZE, device)
            rows = Rows(own, cache)
            rows.step((4, 0, 1, 0, 0))
            rows.step((1, 2, 0, 2, 0))
            found[rank] = torch.cat(rows.logits[0])
            held[rank] = own.weight_bytes

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    tokens = Rows(model, cache_of(model, device)).tokens[0][:5]
    assert (found[0] - reference(model, tokens)).abs().max() < MOST_DIFFERENCE
    assert sum(held.values()) < 1.2 * sum(x.nbytes for x in model.parameters())
