"""The interface of models: what a batch may ask for, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.helpers.loading import load
from tests.helpers.tiny_llama import save_tiny_llama
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.forward import CrossAttended, ForwardBatch, Inserted
from workers.models.loading import Loaded

CPU = torch.device("cpu")
BLOCK_SIZE, N_BLOCKS = 4, 8
TEXT = [3 + 7 * i % 90 for i in range(20)]
TABLE = torch.tensor([5, 2, 7, 0, 3], dtype=torch.int32)
NONE = torch.empty(0, dtype=torch.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["fused", "transformers"])
def model(request: pytest.FixtureRequest, folder: Path) -> Loaded:
    return load(folder, torch.float32, CPU, implementation=request.param)


def cache_of(model: Loaded) -> PagedCache:
    return model.spec.cache_group.pool(N_BLOCKS, BLOCK_SIZE)


def slots(positions: torch.Tensor) -> torch.Tensor:
    return TABLE.long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


def chunk(cache: PagedCache, begin: int, end: int, wanted: list[int]) -> ForwardBatch:
    """Tokens [begin, end) of the text as a chunk of a prompt, and the positions that are wanted."""
    at = torch.arange(begin, end)
    prefill = Prefill(0, end - begin, end, TABLE)
    attention = AttentionContext(cache, slots(at), 0, NONE.reshape(0, 0), NONE, [prefill])
    tokens = torch.tensor(TEXT[begin:end])
    return ForwardBatch(tokens, at, torch.tensor(wanted, dtype=torch.int64) - begin, attention)


def decodes(cache: PagedCache, *positions: int) -> ForwardBatch:
    """These tokens of the text as decode rows of one block table, as drafts are verified."""
    at = torch.tensor(positions)
    tables = TABLE.repeat(len(positions), 1)
    attention = AttentionContext(cache, slots(at), len(at), tables, (at + 1).int())
    return ForwardBatch(
        torch.tensor([TEXT[i] for i in positions]), at, torch.arange(len(at)), attention
    )


@torch.inference_mode()
def test_a_row_may_want_the_logits_of_several_positions(model: Loaded) -> None:
    alone = cache_of(model)
    expected = [
        model.forward(chunk(alone, 0, 18, [17])).logits[0],
        model.forward(decodes(alone, 18)).logits[0],
        model.forward(decodes(alone, 19)).logits[0],
    ]
    together = cache_of(model)
    (ninth, last) = model.forward(chunk(together, 0, 18, [8, 17])).logits
    torch.testing.assert_close(last, expected[0], atol=1e-5, rtol=0)
    of_nine = model.forward(chunk(cache_of(model), 0, 9, [8])).logits[0]
    torch.testing.assert_close(ninth, of_nine, atol=1e-5, rtol=0)
    # Two tokens of the row as one chunk, and as two decodes of the same blocks.
    for batch in (chunk(together, 18, 20, [18, 19]), decodes(together, 18, 19)):
        found = model.forward(batch).logits
        assert found.shape == (2, model.spec.vocab_size)
        torch.testing.assert_close(found, torch.stack(expected[1:]), atol=1e-5, rtol=0)
    assert (expected[1] - expected[2]).abs().max() > 0.1


@torch.inference_mode()
def test_hidden_states_come_where_they_are_asked_for(model: Loaded, folder: Path) -> None:
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = theirs(torch.tensor([TEXT]), output_hidden_states=True)
    cache, apart = cache_of(model), cache_of(model)

    logits, hidden = model.forward(replace(chunk(cache, 0, 18, [3, 17, 8]), hidden=True))
    assert hidden is not None
    assert model.spec.hidden_size == hidden.shape[1]
    torch.testing.assert_close(hidden, output.hidden_states[-1][0, [3, 17, 8]], atol=1e-4, rtol=0)
    plain = model.forward(chunk(apart, 0, 18, [3, 17, 8]))
    assert plain.hidden_states is None
    assert torch.equal(logits, plain.logits)
    torch.testing.assert_close(model.head(hidden), logits, atol=1e-4, rtol=0)
    assert torch.equal(model.head(hidden.double()), model.head(hidden))

    _, hidden = model.forward(replace(decodes(cache, 18, 19), hidden=True))
    torch.testing.assert_close(hidden, output.hidden_states[-1][0, 18:], atol=1e-4, rtol=0)
    _, hidden = model.forward(replace(chunk(apart, 18, 19, []), hidden=True))
    assert hidden is not None
    assert hidden.shape == (0, model.spec.hidden_size)


@pytest.mark.parametrize("implementation", ["fused", "transformers"])
@torch.inference_mode()
def test_a_quantized_head_is_the_one_of_the_logits(folder: Path, implementation: str) -> None:
    model = load(folder, torch.float32, CPU, implementation, quantize="int8")
    logits, hidden = model.forward(replace(chunk(cache_of(model), 0, 9, [2, 8]), hidden=True))
    assert hidden is not None
    torch.testing.assert_close(model.head(hidden), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"inserted": Inserted(torch.tensor([0]), torch.zeros(1, 64))},
            "was given what stands in the place of embeddings$",
        ),
        ({"positions": torch.zeros(3, 2, dtype=torch.int64)}, "positions of 2 dimensions$"),
        ({"adapters": torch.zeros(1, dtype=torch.int64)}, "was given adapters$"),
        ({"cross": [CrossAttended(0, 2, 0, [])]}, "was given images to attend to$"),
    ],
    ids=["inserted", "axes", "adapters", "images"],
)
def test_what_a_model_does_not_take_is_refused_and_named(
    model: Loaded, changed: dict[str, Any], said: str
) -> None:
    cache = cache_of(model)
    for pool in cache.keys:
        pool.fill_(7.0)
    batch = replace(chunk(cache, 0, 2, [1]), **changed)
    with pytest.raises(ValueError, match=f"takes tokens at one axis of positions, .*{said}"):
        model.forward(batch)
    assert all(bool((pool == 7.0).all()) for pool in cache.keys)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, "3 tokens at 2 positions"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, "2 tokens at 3 positions"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(
    model: Loaded, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        replace(chunk(cache_of(model), 0, 2, [1]), **changed)
