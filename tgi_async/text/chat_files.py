"""The chat templates in a model's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tgi_async.errors import StartError
from tgi_async.text.tokenizer import read_config


def read_templates(folder: Path) -> dict[str, str]:
    """Return the sources by name; `default` is the ordinary one. Empty where the model has no
    template.

    The first place that has any is the only one, in transformers' order: `chat_template.jinja` with
    `additional_chat_templates/*.jinja`, `chat_template.json`, `tokenizer_config.json`; last
    `processor_config.json`, where TGI looks too.

    Raises:
        StartError: a file cannot be read.
    """
    found = _jinja_files(folder)
    if not found:
        found = _named(_json_file(folder / "chat_template.json"))
    if not found:
        found = _named(read_config(folder))
    if not found:
        found = _named(_json_file(folder / "processor_config.json"))
    return found


def read_template_config(file: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the templates in this file, which has the form of `tokenizer_config.json`, and its
    whole content.

    Raises:
        StartError: it cannot be read, or has no template.
    """
    if not file.is_file():
        raise StartError(f"--tokenizer-config-path must be a file. Given: {str(file)!r}.")
    config = _json_file(file)
    templates = _named(config)
    if not templates:
        raise StartError(f"{file} has no `chat_template`, which is all that is read of it.")
    return templates, config


def _jinja_files(folder: Path) -> dict[str, str]:
    default = folder / "chat_template.jinja"
    files = {"default": default} if default.is_file() else {}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        files[file.stem] = file
    return {name: _text(file) for name, file in files.items()}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name: a configuration has one as a text, or several as a list or an
    object."""
    given = config.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    pairs: list[tuple[object, object]] = []
    if isinstance(given, list):
        entries = [entry for entry in given if isinstance(entry, dict)]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    elif isinstance(given, dict):
        pairs = list(given.items())
    return {
        name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)
    }


def _json_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"{file} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{file} cannot be read: {error}") from error
