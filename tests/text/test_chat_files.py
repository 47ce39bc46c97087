from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tgi_async.errors import StartError
from tgi_async.text.chat_files import read_templates


def write(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


PLACES = [
    ("chat_template.jinja", "here"),
    ("chat_template.json", {"chat_template": "here"}),
    ("tokenizer_config.json", {"chat_template": "here"}),
    ("processor_config.json", {"chat_template": "here"}),
]


@pytest.mark.parametrize("first", range(len(PLACES)))
def test_the_first_place_that_has_one_is_taken(tmp_path: Path, first: int) -> None:
    name, content = PLACES[first]
    write(tmp_path, name, content)
    for name, _ in PLACES[first + 1 :]:
        write(tmp_path, name, {"chat_template": "elsewhere"})
    assert read_templates(tmp_path) == {"default": "here"}


def test_further_files_are_further_templates(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "one")
    write(tmp_path, "additional_chat_templates/tool_use.jinja", "two")
    write(tmp_path, "additional_chat_templates/notes.txt", "not one")
    assert read_templates(tmp_path) == {"default": "one", "tool_use": "two"}


@pytest.mark.parametrize(
    "several",
    [
        [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}],
        {"default": "one", "tool_use": "two"},
    ],
)
def test_a_configuration_may_have_several(
    tmp_path: Path, several: dict[str, Any] | list[dict[str, Any]]
) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": several})
    assert read_templates(tmp_path) == {"default": "one", "tool_use": "two"}


@pytest.mark.parametrize(
    "value", [None, 1, [], ["x"], [{"name": "a"}], [{"name": ["a"], "template": "x"}]]
)
def test_a_model_may_have_none(tmp_path: Path, value: Any) -> None:
    assert read_templates(tmp_path) == {}
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})
    assert read_templates(tmp_path) == {}


def test_a_file_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.json", "{")
    with pytest.raises(StartError, match=r"chat_template\.json cannot be read"):
        read_templates(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(StartError, match=r"chat_template\.jinja cannot be read"):
        read_templates(tmp_path)
