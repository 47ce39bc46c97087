"""A small Llama of random weights, laid out as transformers lays models out."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCABULARY = 97
EOS = (5, 7)


def save_tiny_llama(folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Write the model into `folder`: two layers, 97 tokens, 128 positions, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=5,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=list(EOS))
    model.save_pretrained(folder)
    return folder
