"""Every family that takes images, loaded from its files, against transformers in float32."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.parity import CPU
from tests.families.test_cross_parity import KINDS as CROSS
from tests.families.vision_cases import CASES, picture, prompt, prompts, words
from tests.families.vision_parity import Outcome, Reference, Served, compare, serve
from tests.helpers.loading import load
from tests.helpers.tiny_vision import save_vision
from tests.helpers.vision_tokens import token_id
from workers.models.loading import FusedModel, Loaded
from workers.models.quantize import Method, choose, quantize
from workers.models.tested_families import TESTED_WITH_IMAGES
from workers.models.weight_files import SINGLE
from workers.quantization.compressed_tensors import PACKED
from workers.vision.families import FAMILIES

QUICK = ("gemma3", "llava", "qwen2_vl", "qwen3_vl_moe")
"""Images that attend in both directions, none of that, positions of three axes, and rows for
several layers."""
LONG = [pytest.param(kind, marks=pytest.mark.full) for kind in CASES if kind not in QUICK]
FUSED = (
    "deepseek_vl",
    "gemma3",
    "got_ocr2",
    "idefics2",
    "idefics3",
    "internvl",
    "lighton_ocr",
    "llava",
    "llava, granite",
    "llava, pixtral",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "qianfan_ocr",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
    "video_llama_3",
    "vipllava",
)
"""Those whose text a fused decoder runs."""
LONG_FUSED = [pytest.param(kind, marks=pytest.mark.full) for kind in FUSED if kind not in QUICK]
UNREAD = ("llava_next", "llava_next_video", "llava_onevision", "qianfan_ocr")
"""Those whose quantized checkpoints transformers fails to run, or to load."""
QUANTIZED = [
    pytest.param(kind, marks=[] if kind == "llava" else pytest.mark.full)
    for kind in CASES
    if kind not in UNREAD
]
MOST_DIFFERENCE = 1e-3


def expect_equal(outcome: Outcome) -> None:
    assert outcome.spread > 0.2  # so that the difference below says something
    assert outcome.difference < MOST_DIFFERENCE
    assert outcome.wrong == 0


@pytest.mark.parametrize("kind", [*QUICK, *LONG])
def test_texts_and_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = load(save_vision(kind, tmp_path), torch.float32, CPU, "transformers")
    assert not any("held to transformers" in note for note in model.notes)
    serve_and_compare(kind, model, tmp_path)


@pytest.mark.parametrize("kind", [*(kind for kind in QUICK if kind in FUSED), *LONG_FUSED])
def test_fused_decoders_write_the_same(kind: str, tmp_path: Path) -> None:
    serve_and_compare(
        kind, load(save_vision(kind, tmp_path), torch.float32, CPU, "fused"), tmp_path
    )


def serve_and_compare(kind: str, model: Loaded, folder: Path) -> None:
    case = CASES[kind]
    reference = Reference(case, folder)
    given = prompts(case, reference.n_rows)
    served = serve(case, model, given, folder)
    expect_equal(compare(given, served, reference, token_id(case.image_token)))
    assert case.bidirectional == "prompt" or any(one.n_cached for one in served)


@pytest.mark.full
@pytest.mark.parametrize("kind", CASES)
def test_bfloat16_is_about_as_near_as_that_of_transformers(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    model = load(save_vision(kind, tmp_path), torch.bfloat16, CPU)
    exact, rough = Reference(case, tmp_path), Reference(case, tmp_path, torch.bfloat16)
    given = prompts(case, exact.n_rows)[:3]
    ours, theirs = 0.0, 0.0
    for one, (text, n_cached) in zip(given, serve(case, model, given, tmp_path), strict=True):
        assert not n_cached
        expected = exact.logits(one, text.tokens[:-1])
        ours += float((text.logits.float() - expected).square().mean())
        theirs += float((rough.logits(one, text.tokens[:-1]).float() - expected).square().mean())
    # A token that goes to another expert makes much of little, on either side.
    assert ours < 5 * theirs + 1e-3


@pytest.mark.full
@pytest.mark.parametrize("kind", CASES)
def test_the_text_of_most_families_is_run_by_a_fused_decoder(kind: str, tmp_path: Path) -> None:
    model = load(save_vision(kind, tmp_path), torch.float32, CPU)
    assert isinstance(model, FusedModel) == (kind in FUSED)
    assert any("runs through transformers' code" in note for note in model.notes) != (kind in FUSED)


def test_what_encodes_images_is_counted_beside_the_fused_decoder(tmp_path: Path) -> None:
    save_vision("llava", tmp_path)
    fused, other = (load(tmp_path, torch.float32, CPU, one) for one in ("fused", "transformers"))
    # Rotary frequencies, and what is kept in another form, are little.
    assert fused.weight_bytes == pytest.approx(other.weight_bytes, rel=0.02)


@pytest.mark.parametrize("kind", [*QUICK, *LONG])
def test_an_image_changes_what_follows(kind: str, tmp_path: Path) -> None:
    """Or the test above would say nothing about images."""
    case = CASES[kind]
    reference = Reference(case, save_vision(kind, tmp_path))
    one, other = (
        prompt(words(1, 5), picture(case, reference.n_rows, seed, 0), words(2, 5))
        for seed in (1, 2)
    )
    apart = reference.logits(one, one.tokens)[-5:] - reference.logits(other, other.tokens)[-5:]
    assert float(apart.abs().max()) > 100 * MOST_DIFFERENCE


def ranks_serve(kinds: list[str], folder: Path, implementation: str) -> None:
    given = {}
    references = {}
    for kind in kinds:
        references[kind] = Reference(CASES[kind], save_vision(kind, folder / kind))
        given[kind] = prompts(CASES[kind], references[kind].n_rows)
        (folder / kind / "prompts").write_bytes(pickle.dumps(given[kind]))
    command = [sys.executable, "-m", "tests.families.vision_two_ranks"]
    about = [str(folder), implementation, *kinds]
    ranks = [subprocess.Popen([*command, str(rank), *about]) for rank in range(2)]
    try:
        assert [one.wait(600) for one in ranks] == [0, 0]
    finally:
        for one in ranks:
            one.kill()
            one.wait()
    for kind in kinds:
        served: list[Served] = pickle.loads((folder / kind / "served").read_bytes())
        banned = token_id(CASES[kind].image_token)
        expect_equal(compare(given[kind], served, references[kind], banned))


def test_two_ranks_of_a_family(tmp_path: Path) -> None:
    ranks_serve(["qwen2_vl"], tmp_path, "fused")


@pytest.mark.full
def test_two_ranks(tmp_path: Path) -> None:
    ranks_serve(list(CASES), tmp_path, "transformers")


@pytest.mark.full
def test_two_ranks_of_fused_decoders(tmp_path: Path) -> None:
    ranks_serve([kind for kind in FUSED if kind != "qwen2_vl"], tmp_path, "fused")


@pytest.mark.full
@pytest.mark.parametrize("kind", CASES)
def test_tensors_have_their_present_names(kind: str, tmp_path: Path) -> None:
    old = load(save_vision(kind, tmp_path / "old"), torch.float32, CPU)
    new = load(save_vision(kind, tmp_path / "new", old_names=False), torch.float32, CPU)
    assert old.weight_bytes == new.weight_bytes
    assert old.vision is not None
    assert new.vision is not None
    reference = Reference(CASES[kind], tmp_path / "old")
    arrays = picture(CASES[kind], reference.n_rows, 1, 0).arrays
    given = {name: torch.from_numpy(one) for name, one in arrays.items()}
    assert torch.equal(old.vision.encode(given), new.vision.encode(given))


@pytest.mark.parametrize("kind", [*QUICK, *LONG])
def test_rounding_weights_leaves_the_encoder_as_it_is(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    folder = save_vision(kind, tmp_path)
    plain, rounded = (load(folder, torch.float32, CPU, quantize=way) for way in ("", "int8"))
    assert rounded.weight_bytes < plain.weight_bytes
    reference = Reference(case, folder)
    given = prompts(case, reference.n_rows)[:1]
    _, made = given[0].pictures[0]
    arrays = {name: torch.from_numpy(one) for name, one in made.arrays.items()}
    assert plain.vision is not None
    assert rounded.vision is not None
    assert torch.equal(plain.vision.encode(arrays), rounded.vision.encode(arrays))
    outcome = compare(given, serve(case, rounded, given, tmp_path), reference, 0)
    # Of logits that have nothing to do with each other it is eight times the spread.
    assert MOST_DIFFERENCE < outcome.difference < 2 * outcome.spread


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_checkpoint_is_read_as_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    plain, folder = save_vision(kind, tmp_path / "plain"), tmp_path / "quantized"
    tensors = load_file(plain / SINGLE)
    save_file({name: one.bfloat16() for name, one in tensors.items()}, plain / SINGLE)
    nearest = Method("rtn", 0.01, False, "", 0)
    quantize(plain, folder, nearest, lambda model: choose(PACKED, 8, -1, model))
    reference = Reference(case, folder)
    given = prompts(case, reference.n_rows)[:2]
    model = load(folder, torch.float32, CPU)
    assert "int of 8 bits" in model.quantization
    expect_equal(
        compare(given, serve(case, model, given, tmp_path), reference, token_id(case.image_token))
    )
    # Of an encoder that no list names, or one by another name, the tensors say that it is plain.
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head", "re:^visual.*"]
    (folder / "config.json").write_text(json.dumps(config))
    unnamed = load(folder, torch.float32, CPU)
    arrays = {name: torch.from_numpy(one) for name, one in given[0].pictures[0][1].arrays.items()}
    assert model.vision is not None
    assert unnamed.vision is not None
    assert torch.equal(model.vision.encode(arrays), unnamed.vision.encode(arrays))


def test_every_family_that_is_served_is_here() -> None:
    by_cross_attention = {kind for kind, _ in CROSS.values()}
    found = {kind.partition(",")[0] for kind in CASES} | by_cross_attention
    assert found == TESTED_WITH_IMAGES == FAMILIES.keys()
