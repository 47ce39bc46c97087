"""From what a model folder has of a tokenizer to a `tokenizer.json` that says all of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from workers.json_object import read_object
from workers.models.folder import ModelFolder
from workers.models.special_tokens import CONFIG, TOKENIZER, lacking_tokens
from workers.progress import say

SAMPLES = ("Hello world", "one, two\n  three", "é 한국어")
"""What a converted tokenizer and its original should split alike."""

WARNING = ".warning"
"""A file beside the converted tokenizer, with the notes for every start."""


def convert_tokenizer(folder: ModelFolder, made: Path, *, trust_remote_code: bool) -> None:
    """Write `tokenizer.json` into `made`, which has the files of `folder`, and name its special
    tokens in `tokenizer_config.json`.

    Raises `ModelUnavailable` where transformers cannot make one.
    """
    # Else tiktoken reads what anybody may have put into a folder for temporary files.
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    import transformers
    from transformers import AutoTokenizer

    say(f"Converting the tokenizer of {folder.model_id} to tokenizer.json, once")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            made, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        # Each kind of tokenizer fails in its own way, and so does the code of a model.
        reason = " ".join(str(error).split())
        raise folder.problem(
            f"it has no tokenizer.json, and transformers cannot make one: {reason}"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise folder.problem(
            "it has no tokenizer.json, and transformers cannot make one: "
            f"{type(tokenizer).__name__} is written in Python. Give a model whose tokenizer is one "
            "of the library `tokenizers`"
        )
    tokenizer.backend_tokenizer.save(str(made / TOKENIZER))
    # Which of its tokens are special may be known to the class of the tokenizer alone.
    config = read_object(made / CONFIG) | tokenizer.special_tokens_map
    _replace(made / CONFIG, json.dumps(config, indent=2, ensure_ascii=False))
    if differs(tokenizer, made / "tokenizer.model"):
        _replace(
            made / WARNING,
            f"Warning: transformers {transformers.__version__} splits texts into other tokens than "
            "the tokenizer.model itself, with which the model was trained, so that it may answer "
            "worse. A tokenizer.json in the folder, of the model's makers or made with "
            "transformers 4, is used as it is",
        )


def differs(tokenizer: Any, original: Path) -> bool:
    """Whether a tokenizer of transformers and the SentencePiece model that it was made of split a
    text differently; False for a file that is no such model."""
    if not original.is_file():
        return False
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(original))
    except (RuntimeError, OSError):
        return False
    return any(
        model.encode(text) != tokenizer.encode(text, add_special_tokens=False) for text in SAMPLES
    )


def add_special_tokens(folder: ModelFolder, made: Path) -> None:
    """Write a `tokenizer.json` into `made` with the special tokens that other files name.

    Raises `ModelUnavailable` for one that cannot be read.
    """
    from tokenizers import AddedToken, Tokenizer

    say(f"Adding the special tokens of {folder.model_id} to tokenizer.json, once")
    try:
        tokenizer = Tokenizer.from_file(str(made / TOKENIZER))
        most = _vocabulary(read_object(made / "config.json"))
        for fields in lacking_tokens(made):
            text = fields["content"]
            # A text must not have tokens that the model cannot read.
            if tokenizer.token_to_id(text) is None and tokenizer.get_vocab_size() >= most:
                say(f"{text!r} is no token of the model, and stays text")
                continue
            tokenizer.add_tokens([AddedToken(**fields)])
    except Exception as error:  # the library raises bare Exception
        raise folder.problem(f"its tokenizer.json cannot be read: {error}") from error
    _replace(made / TOKENIZER, tokenizer.to_str(pretty=True))


def _vocabulary(config: dict[str, Any]) -> int:
    """How many tokens the model knows, as far as its config says."""
    text = config.get("text_config")
    sizes = [one.get("vocab_size") for one in (config, text) if isinstance(one, dict)]
    return next((size for size in sizes if isinstance(size, int)), sys.maxsize)


def _replace(file: Path, text: str) -> None:
    """Write a file in the place of a link to the original."""
    file.unlink(missing_ok=True)
    file.write_text(text, "utf-8")
