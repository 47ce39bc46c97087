"""A tokenizer of one token a byte, with two special tokens."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tgi_async.text.tokenizer import Tokenizer


def tiny_inner() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: id for id, letter in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return inner


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(tiny_inner(), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
