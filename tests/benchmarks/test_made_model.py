"""Models whose weights are made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import made_model
from benchmarks.load_works import WORDS, Work
from benchmarks.made_model import SHAPES, NotMade, config_of, main, make, on_meta, tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_model, "SHARD_BYTES", 1 << 18)
        assert make("tiny", path)
    return path


def test_logits_are_finite_and_no_token_is_far_above_the_others(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.randint(model.config.vocab_size, (4, 64), generator=torch.manual_seed(0))
    with torch.inference_mode():
        logits = model(ids).logits.float()
    assert logits.isfinite().all()
    assert 0.5 < logits.std() < 2
    assert len(logits.argmax(-1).unique()) > 64


def test_every_word_of_a_prompt_is_one_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (prompt,) = Work(1, 1, 1, prompt_words=100).prompts("seed")
    ids = tokenizer(prompt).input_ids
    assert len(ids) == 100
    assert str(tokenizer.decode(ids)).split() == prompt.split()
    assert all(len(tokenizer(word).input_ids) == 1 for word in WORDS)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_id_is_a_text(shape: str) -> None:
    config = config_of(shape)
    tokenizer = tokenizer_of(config.vocab_size)
    assert sorted(tokenizer.get_vocab().values()) == list(range(config.vocab_size))
    ends = [tokenizer.id_to_token(i) for i in (config.bos_token_id, config.eos_token_id)]
    assert ends == ["<|begin|>", "<|end|>"]
    assert all(tokenizer.decode_batch([[i] for i in range(config.vocab_size - 2)]))


@pytest.mark.parametrize(
    ("shape", "billions"), [("llama-8b", 8.03), ("llama-1b", 1.24), ("qwen3-4b", 4.02)]
)
def test_shapes_are_as_large_as_the_models_they_are_named_after(
    shape: str, billions: float
) -> None:
    n = sum(one.numel() for one in on_meta(config_of(shape)).parameters())
    assert n / 1e9 == pytest.approx(billions, rel=0.005)


def test_weights_are_in_shards_that_the_index_names(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 1


def test_what_was_made_is_left_as_it_is(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not make("tiny", folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_shape_is_not_written_over(folder: Path) -> None:
    with pytest.raises(NotMade, match="holds tiny; give another --out"):
        make("llama-1b", folder)


def test_a_folder_of_something_else_is_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    assert main(["--shape", "tiny", "--out", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16_000_000_000))
    with pytest.raises(NotMade, match=r"llama-8b takes 16\.1 GB and .* has 16\.0 GB left"):
        make("llama-8b", tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(made_model, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        make("tiny", tmp_path / "made")
    assert not list(tmp_path.iterdir())
