"""The tokenizer inside a GGUF file, as `tokenizer.json` and `tokenizer_config.json`.

GGUF names the pre-tokenizer by a word that stands for code in llama.cpp; each word read here is
given as the pre-tokenizer of the `tokenizers` library that the original model has.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from workers.models.gguf import GgufModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer


class TokenType(IntEnum):
    """`llama_token_type` of llama.cpp: what a vocabulary entry is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _smollm() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer]] = {"smollm": _smollm}


def build_tokenizer(model: GgufModel) -> Tokenizer:
    """The byte-level BPE tokenizer of the file.

    Raises `ModelUnavailable` for another kind of tokenizer or an unknown pre-tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind = model.require("tokenizer.ggml.model")
    if kind != "gpt2":
        raise model.unsupported(f"its tokenizer is {kind!r}; only byte-level BPE ('gpt2') is read")
    pre = model.require("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        raise model.unsupported(
            f"its pre-tokenizer is {pre!r}; read are {', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
        if model.get(key):
            raise model.unsupported(f"its tokenizer adds a token to every prompt ({key})")
    tokens: list[str] = model.require("tokenizer.ggml.tokens")
    types: list[int] = model.require("tokenizer.ggml.token_type")
    merges: list[str] = model.require("tokenizer.ggml.merges")

    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            # A byte-level token never holds a space: the space is written as another character.
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    # The order of the ids makes the library keep them: an added token that is in the
    # vocabulary keeps its id.
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == TokenType.CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == TokenType.USER_DEFINED
        ]
    )
    return tokenizer


def tokenizer_config(model: GgufModel) -> dict[str, object]:
    """What transformers keeps in `tokenizer_config.json`, the chat template included."""
    tokens: list[str] = model.require("tokenizer.ggml.tokens")
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: model.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    template = model.get("tokenizer.chat_template")
    return {
        # Not the original's class: transformers 5 would rebuild that one's own pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.require("llama.context_length"),
        **{f"{name}_token": tokens[id_] for name, id_ in ids.items() if id_ is not None},
        **({} if template is None else {"chat_template": template}),
    }
