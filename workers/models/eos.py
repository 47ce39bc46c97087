"""The tokens that end a text, by all that a model folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workers.json_object import read_object
from workers.models.special_tokens import eos_token_id


def eos_token_ids(folder: Path, config: Any) -> list[int]:
    """Return the ids that `generation_config.json`, `config.json` and the tokenizer's `eos_token`
    name: each may lack what the others have.

    `config` is the model's, of transformers; what its class has as a default counts only where no
    file says anything. Ids that the model cannot produce are left out.
    """
    text = config.get_text_config()
    said = read_object(folder / "config.json")
    nested = said.get("text_config")
    found = _ids(read_object(folder / "generation_config.json").get("eos_token_id"))
    found += _ids(said.get("eos_token_id"))
    found += _ids(nested.get("eos_token_id")) if isinstance(nested, dict) else []
    found += _ids(eos_token_id(folder))
    found = [id for id in found if id < text.vocab_size]
    if not found:
        found = [id for id in _ids(getattr(text, "eos_token_id", None)) if id < text.vocab_size]
    return list(dict.fromkeys(found))


def _ids(value: Any) -> list[int]:
    """Files have one id, a list of them, null, or -1 for none."""
    given = value if isinstance(value, list) else [value]
    return [id for id in given if type(id) is int and id >= 0]
