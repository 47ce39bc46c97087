"""Families whose layers attend to images, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.cross_rows import (
    BLOCK_SIZE,
    CASES_OF,
    TEXTS,
    Reference,
    Rows,
    arrays_of,
    prompt_of,
    row_of,
    rows_of,
)
from tests.families.vision_parity import serve
from tests.helpers.loading import load
from tests.helpers.tiny_vision_cross import save_vision

CPU = torch.device("cpu")
NEW_TOKENS = 12
MOST_DIFFERENCE = 5e-4
"""Between logits; transformers' own attention in another order of sums differs as much."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mllama": ("mllama", {}),
    "idefics": ("idefics", {}),
    "idefics without resampler": (
        "idefics",
        {"use_resampler": False, "qk_layer_norms": False, "alpha_type": "float"},
    ),
}
QUICK = "mllama"
CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.full] if name != QUICK else [])
    for name, case in KINDS.items()
]


def assert_like_transformers(rows: Rows, reference: Reference, which: list[int]) -> None:
    for r in which:
        row, tokens = rows.rows[r], rows.tokens[r]
        ours = torch.cat(rows.logits[r])
        theirs = reference.logits(row, tokens[:-1])[-len(ours) :]
        assert float(theirs.std()) > 0.2  # so that the difference below says something
        assert float((ours - theirs).abs().max()) < MOST_DIFFERENCE
        best = theirs[-NEW_TOKENS:].topk(2).values
        assert float((best[:, 0] - best[:, 1]).min()) > MOST_DIFFERENCE  # else it is luck
        assert tokens == reference.generate(row)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_texts_and_logits_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_vision(kind, tmp_path, **settings)
    rows = Rows(load(folder, torch.float32, CPU), rows_of(kind), chunk=5)
    rows.run(range(len(TEXTS)), NEW_TOKENS)
    reference = Reference(folder, NEW_TOKENS)
    assert_like_transformers(rows, reference, list(range(len(TEXTS))))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_a_prefix_that_was_computed_for_another_row_is_that_of_this_one(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_vision(kind, tmp_path, **settings)
    image = arrays_of(kind, 7)
    first, second = (
        row_of(kind, f"a text before it *and {behind}", [image]) for behind in ("this", "that more")
    )
    rows = Rows(load(folder, torch.float32, CPU), [first, second], chunk=16)
    rows.run([0], 2)
    rows.share(1, 0, 5 * BLOCK_SIZE)
    rows.run([1], NEW_TOKENS)
    assert_like_transformers(rows, Reference(folder, NEW_TOKENS), [1])


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_the_runner_computes_the_same_of_arrays_in_files(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Rows join one after the other; the last one is the first again, and shares its blocks."""
    folder = save_vision(kind, tmp_path, **settings)
    model = load(folder, torch.float32, CPU)
    rows = rows_of(kind)
    given = [prompt_of(row) for row in rows]
    served = serve(CASES_OF[kind], model, [*given, given[0]], tmp_path)
    assert served[-1].n_cached
    reference = Reference(folder, NEW_TOKENS)
    for row, (text, n_cached) in zip([*rows, rows[0]], served, strict=True):
        expected = reference.logits(row, text.tokens[:-1])[n_cached:]
        assert float((text.logits - expected).abs().max()) < MOST_DIFFERENCE


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_another_image_makes_another_text(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = load(save_vision(kind, tmp_path, **settings), torch.float32, CPU)
    given = [row_of(kind, "say what is on * this", [arrays_of(kind, seed)]) for seed in (1, 2)]
    rows = Rows(model, given, chunk=32)
    rows.run([0, 1], 1)
    one, other = (torch.cat(found) for found in rows.logits)
    assert float((one - other)[-1].abs().max()) > 100 * MOST_DIFFERENCE
