"""How a model folder may lie, and where its chat templates are."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello world"},
    {"role": "assistant", "content": "Two  spaces."},
    {"role": "user", "content": "x + 1"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


def _plain(folder: Path) -> Path:
    return folder


def _snapshot(folder: Path) -> Path:
    """As in the cache of huggingface_hub: relative links to blobs, and one that leads nowhere."""
    blobs, snapshot = folder.parent / "hub" / "blobs", folder.parent / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes() + file.name.encode()).hexdigest()
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot / "training_args.bin").symlink_to(os.path.relpath(blobs / "lost", snapshot))
    return snapshot


def _odd_name(folder: Path) -> Path:
    return folder.rename(folder.parent / "ein Modell: größer, 模型 (1)")


def _linked(folder: Path) -> Path:
    link = folder.parent / "link"
    link.symlink_to(folder)
    return link


def _marked(folder: Path) -> Path:
    """Every JSON file begins with a byte order mark, as some editors write it."""
    for file in folder.glob("*.json"):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    return folder


PLACES: dict[str, Callable[[Path], Path]] = {
    "a folder": _plain,
    "a snapshot": _snapshot,
    "an odd name": _odd_name,
    "a link": _linked,
    "byte order marks": _marked,
}


def _in_jinja(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _in_config(folder: Path) -> None:
    _configure(folder, TEMPLATE)


def _named(folder: Path) -> None:
    named = {"tool_use": OTHER, "default": TEMPLATE}
    _configure(folder, [{"name": name, "template": text} for name, text in named.items()])


def _additional(folder: Path) -> None:
    _configure(folder, "never read")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(OTHER)


def _configure(folder: Path, template: object) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps(config | {"chat_template": template}), "utf-8")


TEMPLATES: dict[str, Callable[[Path], None]] = {
    "no template": lambda folder: None,
    "chat_template.jinja": _in_jinja,
    "in tokenizer_config.json": _in_config,
    "several in tokenizer_config.json": _named,
    "additional_chat_templates": _additional,
}
