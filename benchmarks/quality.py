"""The quality of bfloat16: each way of running a model against transformers in float32.

    python -m benchmarks.quality [--model-id FOLDER] [--tokens 8192] [--quantize int8 int4 ...]
        [--kv-cache-dtype fp8_e4m3fn int8 ...]
        [--checkpoints FOLDER ...]

The text is English that every Python carries, its language reference (pydoc_data), cut to
sequences of 512 tokens. Shown are the perplexity, the share of positions whose likeliest token is
the reference's, and the mean of the Kullback-Leibler divergence from the reference.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tgi_async.wire.messages import ModelConfig
from workers.attention.context import AttentionContext, Prefill
from workers.forward import ForwardBatch
from workers.models.embedded import prepare_embedded
from workers.models.loading import Loaded, load

CPU = torch.device("cpu")
LENGTH = 512
BLOCK_SIZE = 16

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Returns the logits of one sequence: ids [LENGTH] -> float32 [LENGTH, vocabulary]."""


def served(model: Loaded, dtype: torch.dtype) -> Logits:
    """As a worker computes them: a prompt in one chunk, in a paged cache."""
    n_blocks = LENGTH // BLOCK_SIZE
    cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
    table = torch.arange(n_blocks, dtype=torch.int32)
    everywhere = torch.arange(LENGTH)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        none = torch.empty(0, dtype=torch.int32)
        chunk = Prefill(0, LENGTH, LENGTH, table)
        context = AttentionContext(cache, everywhere, 0, none.reshape(0, 0), none, [chunk])
        return model.forward(ForwardBatch(ids, everywhere, everywhere, context)).logits.float()

    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model-id", type=Path, help="a folder; default: the embedded model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--quantize", nargs="*", default=[], help="methods to look at too")
    parser.add_argument("--kv-cache-dtype", nargs="*", default=[], help="caches to look at too")
    parser.add_argument(
        "--checkpoints", nargs="*", default=[], help="quantized ones of the model to look at too"
    )
    given = parser.parse_args()
    folder = given.model_id or prepare_embedded()
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    sequences = ids[: given.tokens // LENGTH * LENGTH].reshape(-1, LENGTH)

    def theirs(dtype: torch.dtype) -> Logits:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return lambda ids: model(ids[None]).logits[0].float()

    bf16 = torch.bfloat16
    exact = theirs(torch.float32)
    ways = {
        "transformers, bfloat16": theirs(bf16),
        "fused decoder, bfloat16": served(
            load(ModelConfig(str(folder), implementation="fused"), bf16, CPU), bf16
        ),
        "transformers' code served, bfloat16": served(
            load(ModelConfig(str(folder), implementation="transformers"), bf16, CPU), bf16
        ),
    }
    for method in given.quantize:
        config = ModelConfig(str(folder), implementation="fused", quantize=method)
        ways[f"fused decoder, bfloat16, {method}"] = served(load(config, bf16, CPU), bf16)
    for name in given.kv_cache_dtype:
        config = ModelConfig(str(folder), implementation="fused", kv_cache_dtype=name)
        ways[f"fused decoder, bfloat16, cache in {name}"] = served(load(config, bf16, CPU), bf16)
    for path in given.checkpoints:
        config = ModelConfig(path, implementation="fused")
        ways[f"fused decoder, bfloat16, {Path(path).name}"] = served(load(config, bf16, CPU), bf16)
    names = ["transformers, float32", *ways]
    losses = dict.fromkeys(names, 0.0)
    agreements = dict.fromkeys(names, 0.0)
    divergences = dict.fromkeys(names, 0.0)
    with torch.inference_mode():
        for sequence in sequences:
            expected = exact(sequence).log_softmax(-1)
            for name in names:
                found = ways[name](sequence).log_softmax(-1) if name in ways else expected
                following = found[:-1].gather(1, sequence[1:, None])
                losses[name] -= float(following.mean())
                agreements[name] += float((found.argmax(1) == expected.argmax(1)).float().mean())
                apart = (expected.exp() * (expected - found)).sum(1)
                divergences[name] += float(apart.mean())
    n = len(sequences)
    print(f"{n * LENGTH} tokens\n{'':46}{'perplexity':>11}{'agrees':>9}{'divergence':>12}")
    for name in names:
        perplexity = float(torch.tensor(losses[name] / n).exp())
        agrees, divergence = agreements[name] / n, divergences[name] / n
        print(f"{name:46}{perplexity:11.4f}{agrees:9.2%}{divergence:12.2e}")


if __name__ == "__main__":
    main()
