"""The special tokens of a model folder, which several files may name.

`tokenizer.json` holds the tokens that are added to the vocabulary. `tokenizer_config.json`,
`special_tokens_map.json` and `added_tokens.json` may name others, which transformers adds when it
opens the folder; the rules here are its.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workers.json_object import read_object

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"

NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""Of an added token, as `tokenizers.AddedToken` takes them."""

Fields = dict[str, Any]


def eos_token_id(folder: Path) -> int | None:
    """Return the id of the tokenizer's `eos_token`, or None if it names none that it has."""
    eos = dict(_named(_configured(folder))).get("eos_token")
    if eos is None:
        return None
    return {one["content"]: one["id"] for one in _added(folder)}.get(eos["content"])


def lacking_tokens(folder: Path) -> list[Fields]:
    """Return the tokens that `tokenizer.json` lacks or has with other properties.

    In the order in which transformers adds them, on which the ids of new tokens depend.
    """
    there = {one["content"]: one for one in _added(folder)}
    config = _configured(folder)
    named = [mark for _, mark in _named(config)]
    extra = _extra(config)
    lacking: dict[str, Fields] = {}
    for token in _listed(folder, config, {mark["content"] for mark in named + extra}, there):
        found = there.get(token["content"], {})
        # What was special once stays so.
        token["special"] = token.get("special") or found.get("special", False)
        if any(found.get(name) != value for name, value in token.items()):
            lacking[token["content"]] = token
    for mark in named:
        found = lacking.get(mark["content"]) or there.get(mark["content"]) or {}
        if not found.get("special"):
            lacking[mark["content"]] = _fields({**mark, **found, "special": True})
    for mark in extra:
        if mark["content"] not in there:
            lacking.setdefault(mark["content"], mark)
    return list(lacking.values())


def _added(folder: Path) -> list[dict[str, Any]]:
    """The added tokens of `tokenizer.json`, none if there is no such file."""
    file = folder / TOKENIZER
    if not file.is_file():
        return []
    text = file.read_bytes().decode("utf-8-sig", "replace")
    # They are written before the vocabulary, which takes a hundred times as long to read.
    _, _, behind = text.partition('"added_tokens":')
    try:
        found, _ = json.JSONDecoder().raw_decode(behind.lstrip())
    except ValueError:
        found = read_object(file).get("added_tokens")
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("content"), str)]


def _configured(folder: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says, and `special_tokens_map.json` where it counts."""
    config = read_object(folder / CONFIG)
    return config if "added_tokens_decoder" in config else config | read_object(folder / MAP)


def _named(config: Mapping[str, Any]) -> list[tuple[str, Fields]]:
    """Tokens with a name; those that all models have come first."""
    others = [name for name in config if name.endswith("_token") and name not in NAMES]
    named = [(name, _mark(config.get(name))) for name in (*NAMES, *others)]
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named += [(name, _mark(value)) for name, value in extra.items()]
    return [(name, fields) for name, fields in named if fields is not None]


def _extra(config: Mapping[str, Any]) -> list[Fields]:
    """Special tokens without a name."""
    given = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    marks = [_mark(value) for value in given] if isinstance(given, list) else []
    return [fields for fields in marks if fields is not None]


def _listed(
    folder: Path, config: Mapping[str, Any], marks: set[str], there: Iterable[str]
) -> list[Fields]:
    """Added tokens that are listed with their ids, in the order of these."""
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        by_id = sorted((int(id), token) for id, token in decoder.items() if id.isdecimal())
        return [_fields(token) for _, token in by_id if isinstance(token, dict)]
    by_text = {text: id for text, id in read_object(folder / ADDED).items() if type(id) is int}
    return [
        {"content": text, "normalized": text not in marks, "special": text in marks}
        for text in sorted(by_text, key=lambda text: by_text[text])
        if text not in there
    ]


def _mark(value: Any) -> Fields | None:
    """A special token, which a file has as a text or as an added token's fields."""
    if isinstance(value, str):
        return {"content": value, "normalized": False, "special": True}
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return _fields({**value, "special": True})
    return None


def _fields(token: Mapping[str, Any]) -> Fields:
    return {name: token[name] for name in FIELDS if name in token}
