"""Real templates render to the same text here as in transformers."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.api.tiny_tokenizer import tiny_inner
from tests.helpers.published import CHAT_TEMPLATES, needs_published
from tgi_async.errors import ServerError
from tgi_async.text.chat_forms import Forms, all_shaped
from tgi_async.text.chat_renderer import Renderer

FURTHER = os.environ.get("TGI_ASYNC_CHAT_TEMPLATES")
"""A folder of further templates to try, such as models/templates of llama.cpp."""
FILES = sorted(CHAT_TEMPLATES.glob("*.jinja"))
if FURTHER:
    FILES += sorted(Path(FURTHER).glob("*.jinja"))
SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}

pytestmark = needs_published

HELLO = {"role": "user", "content": "Hello, <b>world</b> & “you”!"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
TURNS = [HELLO, {"role": "assistant", "content": "Hi! "}, {"role": "user", "content": "More"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Name of a town"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["place"],
        },
    },
}
ARGUMENTS = {"place": "Zürich", "days": [1, 2]}
THOUGHT = {"role": "assistant", "content": "Hi!", "reasoning_content": "They greet me."}


def called(arguments: Any) -> list[dict[str, Any]]:
    """A tool's call and its result."""
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "abc123def", "type": "function", "function": function}
    result = {"role": "tool", "name": "weather", "tool_call_id": "abc123def", "content": "12 °C"}
    return [HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}, result]


CASES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [HELLO]},
    "system": {"messages": [SYSTEM, HELLO]},
    "turns": {"messages": TURNS},
    "system and turns": {"messages": [SYSTEM, *TURNS]},
    "tools": {"messages": [HELLO], "tools": [TOOL]},
    "tools and system": {"messages": [SYSTEM, HELLO], "tools": [TOOL, TOOL]},
    "tool result": {"messages": called(ARGUMENTS), "tools": [TOOL]},
    "tool result and turn": {"messages": [*called(ARGUMENTS), *TURNS[1:]], "tools": [TOOL]},
    "reasoning": {"messages": [HELLO, THOUGHT, HELLO]},
    "documents": {"messages": [HELLO], "documents": [{"title": "A", "text": "B"}]},
    "no generation prompt": {"messages": TURNS, "add_generation_prompt": False},
    "continued": {"messages": TURNS[:2], "continue_final_message": True},
    "continued after thought": {"messages": [HELLO, THOUGHT], "continue_final_message": True},
    "thinking": {"messages": [HELLO], "variables": {"enable_thinking": True}},
    "no thinking": {"messages": TURNS, "variables": {"enable_thinking": False}},
}


@pytest.fixture(scope="module")
def reference() -> Any:
    """A tokenizer of transformers with our special tokens."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_inner(), **SPECIAL_TOKENS)


def expected(reference: Any, source: str, case: dict[str, Any]) -> str | None:
    """What transformers makes of it, in the forms that the template takes; None where it, or the
    template, refuses."""
    given = {"add_generation_prompt": not case.get("continue_final_message"), **case}
    given |= given.pop("variables", {})
    messages = all_shaped(given.pop("messages"), forms(source))
    try:
        text: str = reference.apply_chat_template(
            messages, chat_template=source, tokenize=False, **given
        )
    except Exception:
        return None
    return text


@cache
def renderer(source: str) -> Renderer:
    """Compiled once for all tests."""
    return Renderer({"default": source}, SPECIAL_TOKENS)


def forms(source: str) -> Forms:
    return renderer(source)._templates["default"].forms


def rendered(source: str, case: dict[str, Any]) -> str | None:
    """What is made of it here."""
    given = {"continue_final_message": False, **case}
    try:
        return renderer(source).render(given.pop("messages"), **given)
    except ServerError:
        return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_text_is_the_same(reference: Any, file: Path) -> None:
    source = file.read_text("utf-8")
    n_compared = 0
    only_null = forms(source).silences == ("null",)
    for name, case in CASES.items():
        if only_null and any("tool_calls" in message for message in case["messages"]):
            continue  # transformers leaves out what is null, and this template shows no calls then
        text = expected(reference, source, case)
        assert rendered(source, case) == text, name
        n_compared += text is not None
    assert n_compared >= 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_arguments_of_calls_may_be_text_as_in_openai(file: Path) -> None:
    source = file.read_text("utf-8")
    as_object = {"messages": called(ARGUMENTS), "tools": [TOOL]}
    as_text = {"messages": called(json.dumps(ARGUMENTS, ensure_ascii=False)), "tools": [TOOL]}
    assert rendered(source, as_text) == rendered(source, as_object)
