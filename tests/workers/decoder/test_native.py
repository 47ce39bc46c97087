"""The fused decoder against transformers: every family, in chunks, decodes and mixed batches."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.loading import load
from tests.helpers.our_layers import replaced, tensors_of
from tests.helpers.tiny_families import VARIANTS, VOCABULARY, tiny
from tests.helpers.tiny_vision import save_vision
from workers import native
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.decoder.families import Block, Description, NotFused
from workers.decoder.native import NativeDecoder
from workers.forward import ForwardBatch, Inserted

BLOCK_SIZE = 4
N_ROWS = 3
BLOCKS_PER_ROW = 16
LENGTHS = (40, 23, 57)
"""Positions of each row; the last DECODES of them are decoded, the others come in chunks."""
DECODES = 6
CHUNK = 17
MOST_DIFFERENCE = 2e-4


@pytest.fixture(autouse=True)
def needs_kernels() -> None:
    try:
        native.kernels()
    except native.NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cache_of(model: Any, dtype: torch.dtype = torch.float32) -> PagedCache:
    attention = model.model.layers[0].self_attn
    return PagedCache(
        model.config.num_hidden_layers,
        N_ROWS * BLOCKS_PER_ROW,
        BLOCK_SIZE,
        model.config.num_key_value_heads,
        attention.head_dim,
        dtype,
    )


class Rows:
    """Sequences that are fed to a decoder chunk by chunk, their blocks scattered."""

    def __init__(self, decoder: NativeDecoder, cache: PagedCache) -> None:
        torch.manual_seed(1)
        self.decoder, self.cache = decoder, cache
        self.tokens = [torch.randint(VOCABULARY, (length,)) for length in LENGTHS]
        order = torch.randperm(cache.n_blocks).to(torch.int32)
        self.tables = order.reshape(N_ROWS, BLOCKS_PER_ROW)
        self.computed = [0] * N_ROWS
        self.logits: list[list[torch.Tensor]] = [[] for _ in range(N_ROWS)]
        self.hidden: list[list[torch.Tensor]] = [[] for _ in range(N_ROWS)]

    def step(self, decodes: list[int], chunks: list[tuple[int, int]]) -> None:
        """One token of each row of `decodes`, then (row, n) of `chunks`."""
        order = [(row, 1) for row in decodes] + chunks
        positions = [torch.arange(self.computed[r], self.computed[r] + n) for r, n in order]
        slots = [
            self.tables[r].long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
            for (r, _), at in zip(order, positions, strict=True)
        ]
        prefills, start = [], len(decodes)
        for r, n in chunks:
            prefills.append(Prefill(start, n, self.computed[r] + n, self.tables[r]))
            start += n
        context = AttentionContext(
            self.cache,
            torch.cat(slots),
            len(decodes),
            self.tables[decodes].contiguous(),
            torch.tensor([self.computed[r] + 1 for r in decodes], dtype=torch.int32),
            prefills,
        )
        ids = torch.cat([self.tokens[r][self.computed[r] :][:n] for r, n in order])
        asked = self.asked(order)
        batch = ForwardBatch(ids, torch.cat(positions), torch.cat(asked), context, hidden=True)
        logits, hidden = self.decoder.forward(batch)
        assert hidden is not None
        sizes = [len(some) for some in asked]
        for (r, n), part, states in zip(
            order, logits.split(sizes), hidden.split(sizes), strict=True
        ):
            self.logits[r].append(part)
            self.hidden[r].append(states)
            self.computed[r] += n

    def asked(self, order: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Which of the packed tokens are to have logits, of each part of a batch: all."""
        return list(torch.arange(sum(n for _, n in order)).split([n for _, n in order]))

    def run(self) -> list[torch.Tensor]:
        """Everything, in batches of all kinds; logits [length, vocabulary] of each row."""
        ends = [length - DECODES for length in LENGTHS]
        while any(self.computed[r] < LENGTHS[r] for r in range(N_ROWS)):
            decodes = [r for r in range(N_ROWS) if ends[r] <= self.computed[r] < LENGTHS[r]]
            chunks = [
                (r, min(CHUNK + r, ends[r] - self.computed[r]))
                for r in range(N_ROWS)
                if self.computed[r] < ends[r]
            ]
            self.step(decodes, chunks)
        return [torch.cat(parts) for parts in self.logits]


def reference(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(tokens[None], use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_position_has_the_logits_of_transformers(variant: str) -> None:
    model = tiny(variant)
    cache = cache_of(model)
    expected_of = copy.deepcopy(model)
    rows = Rows(NativeDecoder(Description(replaced(model))), cache)
    for tokens, logits in zip(rows.tokens, rows.run(), strict=True):
        expected = reference(expected_of, tokens)
        assert expected.std() > 0.3  # so that the difference below says something
        assert (logits - expected).abs().max() < MOST_DIFFERENCE


@pytest.mark.parametrize("variant", ["gemma2", "granite", "llama, heads of 48", "phi3"])
def test_hidden_states_are_those_of_transformers(variant: str) -> None:
    model = tiny(variant)
    expected_of = copy.deepcopy(model)
    cache = cache_of(model)
    decoder = NativeDecoder(Description(replaced(model)))
    rows = Rows(decoder, cache)
    rows.run()
    for tokens, parts, logits in zip(rows.tokens, rows.hidden, rows.logits, strict=True):
        hidden = torch.cat(parts)
        output = expected_of(tokens[None], use_cache=False, output_hidden_states=True)
        assert (hidden - output.hidden_states[-1][0]).abs().max() < 1e-4
        scores = decoder.head(hidden)
        assert (scores - expected_of.lm_head(hidden)).abs().max() < MOST_DIFFERENCE
        assert torch.equal(scores.argmax(-1), torch.cat(logits).argmax(-1))


def faults(block: Block) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a decoder could get wrong in a layer and still look right at a glance."""
    yield "window", {"window": block.window + 1 if block.window else 20}
    yield "rope", {"rope": None if block.rope is not None else 0}
    yield "input norm", {"input_norm": torch.ones_like(block.input_norm)}
    yield "mlp norm", {"mlp_norm": torch.ones_like(block.mlp_norm)}
    for name in ("query_norm", "key_norm", "attention_norm", "mlp_output_norm"):
        if (norm := getattr(block, name)) is not None:
            yield name, {name: torch.ones_like(norm)}
    if len(block.gate_up) == 2:
        yield "gate and up", {"gate_up": block.gate_up[::-1]}


@pytest.mark.parametrize("variant", ["gemma3", "qwen3", "llama"])
def test_a_fault_in_one_layer_would_be_seen(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Description.block
    names = [name for name, _ in faults(Description(replaced(tiny(variant))).block(2))]
    expected_of = tiny(variant)
    for name in names:

        def block(description: Description, at: int, name: str = name) -> Block:
            found = whole(description, at)
            changed = dict(faults(found))[name] if at == 2 else {}
            fields = {field: getattr(found, field) for field in Block.__dataclass_fields__}
            return Block(**(fields | changed))

        model = tiny(variant)
        cache = cache_of(model)
        with monkeypatch.context() as patched:
            patched.setattr(Description, "block", block)
            decoder = NativeDecoder(Description(replaced(model)))
        rows = Rows(decoder, cache)
        moved = [
            float((logits - reference(expected_of, tokens)).abs().max())
            for tokens, logits in zip(rows.tokens, rows.run(), strict=True)
        ]
        assert max(moved) > 100 * MOST_DIFFERENCE, name


@pytest.mark.parametrize("variant", ["gemma2", "llama", "phi3", "qwen3"])
def test_bfloat16_is_nearer_to_float32_than_transformers_bfloat16_is(variant: str) -> None:
    exact, rough = tiny(variant), tiny(variant, torch.bfloat16)
    exact.load_state_dict(rough.state_dict())
    decoder = NativeDecoder(Description(replaced(copy.deepcopy(rough))))
    rows = Rows(decoder, cache_of(exact, torch.bfloat16))
    ours, theirs = 0.0, 0.0
    for tokens, logits in zip(rows.tokens, rows.run(), strict=True):
        expected = reference(exact, tokens)
        ours += float((logits - expected).square().mean())
        theirs += float((reference(rough, tokens).float() - expected).square().mean())
    assert ours < theirs


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Bit for bit, but for the products of float32: they are torch's, which on processors without
    AVX512_BF16 sums in an order that depends on the number of rows."""
    if one.dtype is torch.float32 and not torch.cpu._is_avx512_bf16_supported():
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_a_token_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    model = tiny("qwen3", dtype)
    cache = cache_of(model, dtype)
    decoder = NativeDecoder(Description(replaced(model)))
    together = Rows(decoder, cache)
    logits = together.run()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        alone = Rows(decoder, cache)
        for row in range(N_ROWS):
            end = LENGTHS[row] - DECODES
            while alone.computed[row] < end:
                alone.step([], [(row, min(CHUNK + row, end - alone.computed[row]))])
            while alone.computed[row] < LENGTHS[row]:
                alone.step([row], [])
            assert_same(torch.cat(alone.logits[row]), logits[row])
            assert_same(torch.cat(alone.hidden[row]), torch.cat(together.hidden[row]))


class Sampled(Rows):
    """Those that ask only for what is sampled, as a worker does."""

    def asked(self, order: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Of each part the last token's, if all that is not decoded is computed with it."""
        parts = super().asked(order)
        return [
            part[-1:] if self.computed[r] + n >= LENGTHS[r] - DECODES else part[:0]
            for part, (r, n) in zip(parts, order, strict=True)
        ]


@pytest.mark.parametrize("variant", ["gemma2", "llama", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_which_others_are_wanted(variant: str, dtype: torch.dtype) -> None:
    model = tiny(variant, dtype)
    caches = cache_of(model, dtype), cache_of(model, dtype)
    decoder = NativeDecoder(Description(replaced(model)))
    everything, sampled = Rows(decoder, caches[0]), Sampled(decoder, caches[1])
    for all_of_them, some in zip(everything.run(), sampled.run(), strict=True):
        assert len(some) == DECODES + 1
        assert_same(all_of_them[-DECODES - 1 :], some)
    for states, some_states in zip(everything.hidden, sampled.hidden, strict=True):
        assert_same(torch.cat(states)[-DECODES - 1 :], torch.cat(some_states))


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    model = tiny("llama")
    cache = cache_of(model)
    rows = Rows(NativeDecoder(Description(replaced(model))), cache)
    for bad in (VOCABULARY, -1):
        rows.tokens[0][1] = bad
        with pytest.raises(ValueError, match=f"token ids are 0 to {VOCABULARY - 1}, got .*{bad}"):
            rows.step([], [(0, 5)])
    rows.tokens[0][1] = 3
    rows.step([], [(0, 5)])
    assert rows.logits[0][0].isfinite().all()


def test_the_weights_of_transformers_are_let_go() -> None:
    model = tiny("llama")
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    description = Description(replaced(model))
    decoder = NativeDecoder(description)
    assert not tensors_of(model.model.layers)
    assert n_bytes <= decoder.weight_bytes < 1.3 * n_bytes  # panels are padded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_of_the_weights_is_let_go(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny("llama", dtype).save_pretrained(tmp_path)
    model = load(tmp_path, dtype, torch.device("cpu"), implementation="fused")
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert model.weight_bytes > 0


def test_the_file_is_let_go_where_images_are_encoded_by_what_is_left(tmp_path: Path) -> None:
    save_vision("llava", tmp_path)
    model = load(tmp_path, torch.float32, torch.device("cpu"), implementation="fused")
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert model.vision is not None
    assert len(model.vision.encode({"pixel_values": torch.zeros(1, 3, 28, 28)})) == 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "opt"}, "opt is not among the fused families"),
        ({"hidden_act": "relu"}, "its activation relu is not one of silu"),
    ],
)
def test_what_is_not_fused_is_named(change: dict[str, str], reason: str) -> None:
    model = tiny("llama")
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(NotFused, match=reason):
        Description(replaced(model))


def test_ropes_that_depend_on_the_length_are_not_fused() -> None:
    model = tiny("llama")
    model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(NotFused, match="rotary embedding is of type dynamic"):
        Description(replaced(model))


@pytest.mark.usefixtures("no_kernels")
def test_without_a_compiler_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    before = reference(model, torch.arange(9))
    with pytest.raises(NotFused, match="no C compiler"):
        NativeDecoder(Description(replaced(model)))
    assert torch.equal(reference(model, torch.arange(9)), before)


def test_numbers_that_the_kernels_do_not_take_are_refused() -> None:
    with pytest.raises(NotFused, match=r"float32 and bfloat16, not torch\.float16"):
        NativeDecoder(Description(replaced(tiny("llama", torch.float16))))


@pytest.mark.parametrize(
    ("at", "shape", "said"),
    [
        ([0, 1], (1, 64), r"\[1, 64\] numbers do not fit in the place of 2 embeddings of 64"),
        ([0], (1, 32), r"\[1, 32\] numbers do not fit in the place of 1 embeddings of 64"),
        ([2], (1, 64), "embeddings of 2 tokens are 0 to 1"),
        ([-1], (1, 64), "embeddings of 2 tokens are 0 to 1"),
    ],
    ids=["fewer rows", "shorter rows", "behind", "before"],
)
def test_rows_that_do_not_fit_in_the_place_of_embeddings_are_refused(
    at: list[int], shape: tuple[int, int], said: str, tmp_path: Path
) -> None:
    model = load(save_vision("llava", tmp_path), torch.float32, torch.device("cpu"), "fused")
    table, none = torch.zeros(1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    context = AttentionContext(
        model.spec.cache_group.pool(1, BLOCK_SIZE),
        torch.arange(2),
        0,
        none.reshape(0, 0),
        none,
        [Prefill(0, 2, 2, table)],
    )
    inserted = Inserted(torch.tensor(at), torch.zeros(shape))
    two = torch.arange(2)
    with pytest.raises(ValueError, match=said):
        model.forward(ForwardBatch(two, two, two, context, inserted))
