"""A model of a known shape with random weights, for machines without a real model.

    python -m benchmarks.made_model --shape llama-8b --out FOLDER

What a step costs does not depend on what the weights say. They are normal, with a deviation of one
over the root of what a weight is summed over, and norms are 1, so that activations stay near 1 and
logits are normal too: finite, none of them far above the others, the end of a text one of 128,000.
The vocabulary is byte-level, merges exactly the words of `load_works`, each of which is one token
when a space is before it, and is filled up with words that nobody writes, so that any id is a text.

A folder that holds the same shape already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from benchmarks.load_works import WORDS

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA_3_ROPE,
    },
    "llama-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA_3_ROPE | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "qwen3-4b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
}
"""The configs, by name; other settings have transformers' defaults."""

SHARD_BYTES = 4 << 30
SPARE_BYTES = 64 << 20
"""Bytes for everything but weights."""


class NotMade(Exception):
    """The model cannot be written there; the message says why."""


def config_of(shape: str) -> Any:
    fields = dict(SHAPES[shape])
    n = fields["vocab_size"]
    ends = {"bos_token_id": n - 2, "eos_token_id": n - 1}
    return AutoConfig.for_model(fields.pop("model_type"), **fields, **ends, dtype="bfloat16")


def on_meta(config: Any) -> Any:
    """Return the model on the meta device: its parameters are those of a checkpoint, each once."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Make the tokenizer. Raises ValueError for a vocabulary that is smaller than required."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        # From the front, letter by letter: no word's merges get in the way of another's.
        written = "Ġ" + word
        merges |= {(written[:end], written[end]): None for end in range(1, len(written))}
    tokens += ["".join(pair) for pair in merges]
    fill = vocab_size - 2 - len(tokens)
    if fill < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: {len(tokens) + 2} are needed")
    tokens += [f"Ġ{number}" for number in range(fill)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    return tokenizer


def make(shape: str, folder: Path) -> bool:
    """Write the model of a shape into `folder`; False if it is there already.

    Raises NotMade where the folder holds something else, or the disk has no room.
    """
    config = config_of(shape)
    model = on_meta(config)
    total = sum(one.nbytes for one in model.parameters())
    if folder.is_dir() and any(folder.iterdir()):
        if (found := _made_as(folder)) == shape:
            return False
        raise NotMade(f"{folder} holds {found or 'something else'}; give another --out")
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < total + SPARE_BYTES:
        raise NotMade(
            f"{shape} takes {total / 1e9:.1f} GB and {parent} has {free / 1e9:.1f} GB left; give "
            "an --out with more room"
        )
    partial = folder.absolute().with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut short
    partial.mkdir()
    try:
        _write(shape, config, model, partial)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return True


def _made_as(folder: Path) -> str | None:
    """Return the shape that `make` wrote there."""
    try:
        found = json.loads((folder / "made.json").read_bytes())["shape"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def _write(shape: str, config: Any, model: Any, folder: Path) -> None:
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    GenerationConfig(**ends).save_pretrained(folder)
    tokenizer_of(config.vocab_size).save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "model_max_length": config.max_position_embeddings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    shards = list(_shards(parameters))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(0)
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        made = {name: _numbers(parameters[name], draw).cpu() for name in names}
        save_file(made, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    total = sum(one.nbytes for one in parameters.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "made.json").write_text(json.dumps({"shape": shape}))


def _numbers(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    if like.dim() < 2:  # norms
        return torch.ones(like.shape, dtype=like.dtype, device=draw.device)
    made = torch.empty(like.shape, dtype=like.dtype, device=draw.device)
    return made.normal_(0, like.shape[-1] ** -0.5, generator=draw)


def _shards(parameters: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    """Yield names that go into one file, in order."""
    names: list[str] = []
    size = 0
    for name, one in parameters.items():
        if names and size + one.nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += one.nbytes
    yield names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A model with made-up weights.")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder, made if it is not there")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        new = make(given.shape, given.out)
    except NotMade as error:
        print(f"made_model: {error}", file=sys.stderr)
        return 2
    took = f"written in {time.perf_counter() - began:.0f} s" if new else "already there"
    print(f"{given.shape}: {given.out}, {took}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
