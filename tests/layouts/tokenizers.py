"""Tokenizers in every layout that transformers opens: each writes its files into a folder."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AddedToken,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "Hello world, hello there!  Two  spaces.",
    "def f(x):\n    return x + 1",
    "가나다라 마바사 é ü",
    "user assistant system 0123456789",
)
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}

Write = Callable[[Path], None]
LAYOUTS: dict[str, Write] = {}
CHEAP = ("tokenizer.json", "marks in the map only", "sentencepiece, bpe", "sentencepiece, alone")


def layout(name: str) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        LAYOUTS[name] = write
        return write

    return register


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def added(content: str, **changed: Any) -> dict[str, Any]:
    """An added token as files have it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": True, **changed}


@cache
def _byte_level_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        # The last four are in the vocabulary, and no added tokens in the end.
        special_tokens=["<s>", "</s>", "<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 4, trainer)
    return tokenizer.to_str()


def byte_level(*marks: str, bos: bool = False) -> Tokenizer:
    """A byte-level tokenizer that has `<s>`, `</s>`, `<|im_start|>` and `<|im_end|>` in its
    vocabulary, of which only `marks` are special tokens; with `bos`, a text begins with `<s>`."""
    document = json.loads(_byte_level_json())
    document["added_tokens"] = [one for one in document["added_tokens"] if one["content"] in marks]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return tokenizer


ALL = ("<s>", "</s>", "<|im_end|>", "<|im_start|>")


@cache
def sentencepiece_model(kind: str, **options: Any) -> bytes:
    """A model as Llama's, trained on a few lines."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 10),
        model_writer=written,
        model_type=kind,
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


# -- with tokenizer.json ----------------------------------------------------------------------


@layout("tokenizer.json")
def _saved(folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=byte_level(*ALL, bos=True),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=["<|im_end|>", "<|im_start|>"],
    ).save_pretrained(folder)


@layout("tokenizer.json alone")
def _alone(folder: Path) -> None:
    byte_level(*ALL, bos=True).save(str(folder / "tokenizer.json"))


@layout("marks in the config only")
def _config_only(folder: Path) -> None:
    byte_level("<s>").save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {**FAST, "bos_token": "<s>", "eos_token": "</s>"})


@layout("marks in the map only")
def _map_only(folder: Path) -> None:
    byte_level("<s>").save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", FAST)
    named = {"bos_token": "<s>", "eos_token": added("<|im_end|>")}
    write_json(folder, "special_tokens_map.json", named | {"pad_token": "</s>"})


@layout("marks in the map only, without a config")
def _map_alone(folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    write_json(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})


@layout("marks in the decoder only")
def _decoder_only(folder: Path) -> None:
    byte_level("<s>").save(str(folder / "tokenizer.json"))
    listed = {"1": added("</s>"), "2": added("<|im_end|>"), "330": added("<x>", special=False)}
    config = {**FAST, "added_tokens_decoder": listed, "eos_token": "<|im_end|>"}
    write_json(folder, "tokenizer_config.json", config)
    # Does not count beside the decoder.
    write_json(folder, "special_tokens_map.json", {"eos_token": "<|im_start|>"})


@layout("a decoder that knows better")
def _decoder_differs(folder: Path) -> None:
    tokenizer = byte_level(*ALL)
    tokenizer.add_tokens(["<x>", "<y>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    listed = {
        "1": added("</s>", special=False),
        "330": added("<x>"),
        "331": added("<y>", special=False, lstrip=True, rstrip=True),
    }
    config = {**FAST, "added_tokens_decoder": listed, "eos_token": "<|im_end|>"}
    write_json(folder, "tokenizer_config.json", config)


@layout("added_tokens.json")
def _added_tokens(folder: Path) -> None:
    byte_level("<s>", "</s>").save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {**FAST, "eos_token": "<end>"})
    write_json(folder, "added_tokens.json", {"<y>": 332, "<end>": 330, "<x>": 331})


@layout("marks without a name")
def _extra(folder: Path) -> None:
    byte_level("<s>").save(str(folder / "tokenizer.json"))
    extra = ["<|im_start|>", "<x>", added("<y>") | {"__type": "AddedToken"}]
    config = {**FAST, "additional_special_tokens": extra, "eos_token": "<|im_end|>"}
    write_json(folder, "tokenizer_config.json", config)


@layout("marks with names of their own")
def _model_specific(folder: Path) -> None:
    byte_level("<s>").save(str(folder / "tokenizer.json"))
    config = {**FAST, "eos_token": "</s>", "image_token": "<image>", "boi_token": "<|im_start|>"}
    write_json(folder, "tokenizer_config.json", config)


@layout("a pad and an end that are one, by a flag")
def _plain_end(folder: Path) -> None:
    tokenizer = byte_level("<s>")
    tokenizer.add_tokens(["<end>"])  # not special there
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder, "tokenizer_config.json", {**FAST, "eos_token": "<end>", "pad_token": "<end>"}
    )


@layout("null and odd values")
def _odd_values(folder: Path) -> None:
    byte_level(*ALL).save(str(folder / "tokenizer.json"))
    text = json.dumps({**FAST, "eos_token": "</s>", "pad_token": None, "bos_token": None})
    odd = ', "model_max_length": 1000000000000000019884624838656, "note": NaN, "more": -Infinity}'
    (folder / "tokenizer_config.json").write_text(text[:-1] + odd)


# -- older forms ------------------------------------------------------------------------------


@layout("vocab.json and merges.txt")
def _vocabulary(folder: Path) -> None:
    document = json.loads(_byte_level_json())["model"]
    write_json(folder, "vocab.json", document["vocab"] | {"<|endoftext|>": 330})
    merges = [" ".join(pair) for pair in document["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})


@layout("vocab.json and merges.txt, with marks in the map")
def _vocabulary_map(folder: Path) -> None:
    _vocabulary(folder)
    write_json(folder, "special_tokens_map.json", {"eos_token": "</s>", "bos_token": "<s>"})
    write_json(folder, "added_tokens.json", {"<x>": 331})


@layout("vocab.json and merges.txt of Qwen")
def _qwen(folder: Path) -> None:
    _vocabulary(folder)
    listed = {"330": added("<|endoftext|>"), "3": added("<|im_start|>"), "2": added("<|im_end|>")}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": listed}
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    write_json(folder, "tokenizer_config.json", config | named)


@layout("sentencepiece, bpe")
def _bpe(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    named = {"bos_token": added("<s>"), "eos_token": added("</s>"), "unk_token": added("<unk>")}
    for token in named.values():
        token["__type"] = "AddedToken"
        del token["special"]
    write_json(folder, "tokenizer_config.json", {**config, **named, "add_bos_token": True})
    write_json(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})


@layout("sentencepiece, alone")
def _sentencepiece_alone(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))


@layout("sentencepiece, unigram")
def _unigram(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("unigram"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})


@layout("sentencepiece, with a decoder and marks of a chat")
def _decoder(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))
    listed = {"1": added("<s>"), "2": added("</s>"), "340": added("<|im_end|>")}
    listed |= {"341": added("<|im_start|>")}
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": listed}
    write_json(
        folder, "tokenizer_config.json", {**config, "legacy": False, "eos_token": "<|im_end|>"}
    )


@layout("sentencepiece, added_tokens.json")
def _sentencepiece_added(folder: Path) -> None:
    _bpe(folder)
    write_json(folder, "added_tokens.json", {"<pad>": 340})


@layout("sentencepiece, marks of the user")
def _user_symbols(folder: Path) -> None:
    symbols = ["<start_of_turn>", "<end_of_turn>"]
    model = sentencepiece_model("bpe", user_defined_symbols=",".join(symbols))
    (folder / "tokenizer.model").write_bytes(model)
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"})


@layout("sentencepiece under another name")
def _bpe_model(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model("unigram"))
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "XGLMTokenizer"})


@layout("a tokenizer.model of tiktoken")
def _tiktoken(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(_ranks())
    n = len(_ranks().splitlines())
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    listed = {str(n + i): added(mark) for i, mark in enumerate(marks)}
    config = {**FAST, "added_tokens_decoder": listed, "eos_token": "<|end_of_text|>"}
    write_json(folder, "tokenizer_config.json", {**config, "bos_token": "<|begin_of_text|>"})


@layout("tekken.json")
def _tekken(folder: Path) -> None:
    lines = [line.split() for line in _ranks().decode().splitlines()]
    vocabulary = [
        {"rank": int(rank), "token_bytes": text, "token_str": None} for text, rank in lines
    ]
    marks = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    special = [
        {"rank": rank, "token_str": mark, "is_control": True} for rank, mark in enumerate(marks)
    ]
    config = {
        "pattern": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": len(lines),
        "default_vocab_size": len(lines) + len(marks),
        "default_num_special_tokens": len(marks),
        "version": "v7",
    }
    document = {"config": config, "vocab": vocabulary, "special_tokens": special}
    write_json(folder, "tekken.json", document)
    changed = json.loads((folder / "config.json").read_text()) | {"model_type": "mistral"}
    write_json(folder, "config.json", changed)


@cache
def _ranks() -> bytes:
    """A vocabulary of tiktoken: bytes, and pairs of them."""
    tokens = [bytes([one]) for one in range(256)]
    tokens += [pair.encode() for pair in ("he", "ll", "th", " t", "in", "er", "  ", "hell")]
    return b"".join(base64.b64encode(one) + b" %d\n" % rank for rank, one in enumerate(tokens))


@layout("vocab.txt")
def _word_pieces(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})


# -- as transformers saves them ---------------------------------------------------------------


def _resaved(name: str, write: Write, kind: type[Any]) -> None:
    @layout(name)
    def _(folder: Path) -> None:
        write(folder)
        tokenizer = kind.from_pretrained(folder)
        tokenizer.add_tokens([AddedToken("<|new|>", special=True, normalized=False)])
        for entry in folder.iterdir():
            if entry.name.startswith(("tokenizer", "vocab", "merges", "special", "added")):
                entry.unlink()
        tokenizer.save_pretrained(folder)


_resaved("saved by LlamaTokenizer", _decoder, LlamaTokenizer)
_resaved("saved by GemmaTokenizer", _user_symbols, GemmaTokenizer)
_resaved("saved by GPT2Tokenizer", _vocabulary, GPT2Tokenizer)
_resaved("saved by Qwen2Tokenizer", _qwen, Qwen2Tokenizer)
