"""A whole model through the paged cache, chunk by chunk, against its own eager forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.layer import AttentionShape
from workers.attention.paged import NAME, PagedAttention
from workers.attention.registry import build, choose
from workers.models.layers import layers_of

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mistral_with_a_window() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=9))


def gemma2_with_window_and_softcap() -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(**SIZES, sliding_window=9, attn_logit_softcapping=5.0, query_pre_attn_scalar=8)
    )


@torch.inference_mode()
@pytest.mark.parametrize("make", [llama, mistral_with_a_window, gemma2_with_window_and_softcap])
def test_logits_equal_those_of_each_sequence_alone(make: type) -> None:
    torch.manual_seed(0)
    model = make().eval()
    texts = [torch.randint(97, (n,)) for n in (50, 23, 31)]
    model.set_attn_implementation("eager")
    expected = [model(text[None], use_cache=False).logits[0] for text in texts]

    backend, notes = choose("auto", torch.device("cpu"))
    served = build(backend, AttentionShape(4, 2, 16, torch.float32))
    assert notes + served.notes == []
    attention = PagedAttention(served, [layer.window for layer in layers_of(model)])
    model.set_attn_implementation(NAME)
    cache = PagedCache(3, 40, 4, 2, 16, torch.float32)
    blocks = torch.randperm(40).to(torch.int32)
    tables = [blocks[:13], blocks[13:20], blocks[20:28]]
    done = [0, 0, 0]
    # Sequence 0 decodes from its 21st token on; the others are still in their prompts.
    for step in ([20, 0, 0], [1, 23, 4], [1, 0, 13], *[[1, 0, 2]] * 7, *[[1, 0, 0]] * 21):
        rows = [i for i in range(3) if step[i]]
        decodes = [i for i in rows if step[i] == 1]
        order = decodes + [i for i in rows if step[i] > 1]
        ids = torch.cat([texts[i][done[i] : done[i] + step[i]] for i in order])
        positions = torch.cat([torch.arange(done[i], done[i] + step[i]) for i in order])
        slots = torch.cat(
            [
                tables[i].long()[at // 4] * 4 + at % 4
                for i in order
                for at in [torch.arange(done[i], done[i] + step[i])]
            ]
        )
        padded = torch.zeros(len(decodes), 13, dtype=torch.int32)
        for row, i in enumerate(decodes):
            padded[row, : len(tables[i])] = tables[i]
        prefills: list[Prefill] = []
        start = len(decodes)
        for i in order[len(decodes) :]:
            prefills.append(Prefill(start, step[i], done[i] + step[i], tables[i]))
            start += step[i]
        lengths = torch.tensor([done[i] + 1 for i in decodes], dtype=torch.int32)
        context = AttentionContext(cache, slots, len(decodes), padded, lengths, prefills)
        with attention.over(context):
            logits = model(ids[None], position_ids=positions[None], use_cache=False).logits[0]
        for i, part in zip(order, logits.split([step[i] for i in order]), strict=True):
            whole = expected[i][done[i] : done[i] + step[i]]
            torch.testing.assert_close(part, whole, atol=1e-5, rtol=0)
            done[i] += step[i]
    assert done == [50, 23, 31]


def test_a_device_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="for the devices cpu, cuda, not for xpu"):
        choose("auto", torch.device("xpu"))
