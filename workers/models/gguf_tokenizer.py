"""The tokenizer inside a GGUF file, as `tokenizer.json` and `tokenizer_config.json`.

Two kinds are read: byte-level BPE, which llama.cpp calls "gpt2", and SentencePiece's BPE, which it
calls "llama".
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from workers.models.gguf import GgufModel
from workers.models.gguf_pre_tokenizers import SPLITTINGS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""


class TokenType(IntEnum):
    """`llama_token_type` of llama.cpp: what a vocabulary entry is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Tokens after which a model has said what it had to say, whether or not the file names them as
ends; llama.cpp knows them as well."""


def build_tokenizer(model: GgufModel) -> Tokenizer:
    """The tokenizer of the file.

    Raises `ModelUnavailable` for another kind of tokenizer or an unknown pre-tokenizer.
    """
    kind = model.require("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(model)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(model), True
    else:
        raise model.unsupported(
            f"its tokenizer is {kind!r}; read are byte-level BPE ('gpt2') and SentencePiece "
            "('llama')"
        )
    _add_tokens(model, tokenizer)
    _add_ends(model, tokenizer, adds_bos)
    return tokenizer


def _byte_level(model: GgufModel) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether it begins each text with a token if the file does not say."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pre = model.require("tokenizer.ggml.pre")
    if pre not in SPLITTINGS:
        raise model.unsupported(
            f"its pre-tokenizer is {pre!r}; read are {', '.join(map(repr, SPLITTINGS))}. Use the "
            "model's safetensors, as its makers published it"
        )
    splitting = SPLITTINGS[pre]
    merges: list[str] = model.require("tokenizer.ggml.merges")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(_tokens(model))},
            # A byte-level token never holds a space: the space is written as another character.
            merges=[(left, right) for left, right in (merge.split(" ") for merge in merges)],
            fuse_unk=False,
            ignore_merges=splitting.whole_words,
        )
    )
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.adds_bos


def _sentencepiece(model: GgufModel) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = _spelled(model)
    types: list[int] = model.require("tokenizer.ggml.token_type")
    if model.name.startswith("gemma"):
        # Its scores do not follow the order of its merges; the order of its tokens does.
        scores = [-float(id_) for id_ in range(len(tokens))]
    else:
        scores = model.require("tokenizer.ggml.scores")
    unknown = model.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=_merges(tokens, types, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = model.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    prepend = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece has no merges: any two tokens that make a third are joined, best score first.

    Among those of one token, as transformers has them when it converts such a tokenizer.
    """
    ordinary = {
        token: id_
        for id_, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    found: list[tuple[float, int, int, int, int, str, str]] = []
    for token, id_ in ordinary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ordinary and right in ordinary:
                order = (-scores[id_], -len(left), -len(right), ordinary[left], ordinary[right])
                found.append((*order, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(model: GgufModel, tokenizer: Tokenizer) -> None:
    """Those that are matched whole in the text."""
    from tokenizers import AddedToken

    types: list[int] = model.require("tokenizer.ggml.token_type")
    typed = list(zip(_tokens(model), types, strict=True))
    vocabulary = tokenizer.get_vocab()
    # The order of the ids makes the library keep them: an added token that is in the
    # vocabulary keeps its id.
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, t in typed if t in SPECIAL]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, type_ in typed
            # Runs of spaces have another spelling in the vocabulary, and are merged there.
            if type_ == TokenType.USER_DEFINED and token in vocabulary
        ]
    )


def _add_ends(model: GgufModel, tokenizer: Tokenizer, adds_bos: bool) -> None:
    """The tokens that every text begins or ends with, if the file asks for them."""
    from tokenizers import processors

    tokens = _tokens(model)
    template, special = ["$A"], []
    for name, default, place in (("bos", adds_bos, 0), ("eos", False, 1)):
        if not model.get(f"tokenizer.ggml.add_{name}_token", default):
            continue
        id_ = model.get(f"tokenizer.ggml.{name}_token_id")
        if id_ is None:
            raise model.unsupported(f"its tokenizer adds a {name} token, and does not say which")
        template.insert(place * len(template), tokens[id_])
        special.append((tokens[id_], id_))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=[*template, "$B:1"], special_tokens=special
        )


def tokenizer_config(model: GgufModel) -> dict[str, object]:
    """What transformers keeps in `tokenizer_config.json`, the chat template included."""
    tokens = _tokens(model)
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: model.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    template = model.get("tokenizer.chat_template")
    return {
        # Not the original's class: transformers 5 would rebuild that one's own pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.require_setting("context_length"),
        **{f"{name}_token": tokens[id_] for name, id_ in ids.items() if id_ is not None},
        **({} if template is None else {"chat_template": template}),
    }


def end_token_ids(model: GgufModel) -> list[int]:
    """The tokens after which generation ends, the one that the file names first."""
    tokens = _tokens(model)
    types: list[int] = model.require("tokenizer.ggml.token_type")
    ids = [model.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids += [
        id_
        for id_, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if token in END_OF_TURN and type_ == TokenType.CONTROL
    ]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def _tokens(model: GgufModel) -> list[str]:
    tokens: list[str] = model.require("tokenizer.ggml.tokens")
    return tokens


def _spelled(model: GgufModel) -> list[str]:
    """The tokens, where runs of spaces are written as SentencePiece does."""
    return [
        SPACE * len(token) if token and not token.strip(" ") else token for token in _tokens(model)
    ]
