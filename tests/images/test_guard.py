from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_async.images.guard import Guard
from tgi_async.text.chat_renderer import Renderer

NAMES = ("<image>", "<|image_pad|>", "<image_soft>", "<row_1_col_1>")
ANY_NAME = re.compile("|".join(map(re.escape, NAMES)))


def test_no_text_of_a_value_keeps_a_name_and_each_gets_it_back() -> None:
    guard = Guard(NAMES)
    hidden = guard.hidden(
        {"a <image>": [{"b": "<|image_pad|>"}, ("<image_soft>", 1, None, True, 0.5)], "c": "plain"}
    )
    assert not ANY_NAME.search(str(hidden))
    ((name, (inner, values)), _) = hidden.items()
    assert guard.shown(name) == "a <image>"
    assert guard.shown(inner["b"]) == "<|image_pad|>"
    assert [guard.shown(values[0]), *values[1:]] == ["<image_soft>", 1, None, True, 0.5]
    assert hidden["c"] == "plain"


@given(st.lists(st.sampled_from([*NAMES, *"<image>_0123456789 \n"]), max_size=12))
def test_any_text_comes_back_as_it_was(pieces: list[str]) -> None:
    text, guard = "".join(pieces), Guard(NAMES)
    hidden = guard.hidden(text)
    assert not ANY_NAME.search(hidden)
    assert guard.shown(hidden) == text


FILTERED = (
    "c",
    "c | trim",
    "c | upper | lower",
    "c | title",
    "c | tojson",
    "c | tojson(ensure_ascii=true)",
    "[c]",
    "{'key': c}",
    "c.split('</think>')[-1].lstrip()",
)


@pytest.mark.parametrize("shown", FILTERED)
def test_it_goes_through_a_templates_filters(shown: str) -> None:
    guard = Guard(NAMES)
    template = f"{{% set c = messages[0].content %}}{{{{ {shown} }}}} <image>"
    renderer = Renderer({"default": template}, {})
    said = "5<image>7 <|image_pad|>_<row_1_col_1>"
    text = renderer.render([{"role": "user", "content": guard.hidden(said)}])
    assert text.count("<image>") == ANY_NAME.sub("", text).count("image") + 1 == 1
    back = guard.shown(text)
    assert "5<image>7 <|image_pad|>_<row_1_col_1>" in back
    assert back.endswith(" <image>")


def test_its_time_grows_with_the_text_alone() -> None:
    """Such texts took a pattern of many names seconds."""
    guard = Guard([f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)])
    began = time.process_time()
    for text in ("<" * 2_000_000, "<row_" * 400_000, "<row_1_col_" * 200_000):
        assert guard.hidden(text) == text
    assert time.process_time() - began < 2


def test_nobody_can_type_a_mark() -> None:
    mark: Any = Guard(NAMES).hidden("<image>")
    assert Guard(NAMES).hidden("<image>") != mark
    assert Guard(NAMES).shown(mark) == mark


def test_a_longer_name_is_not_taken_for_a_shorter_one() -> None:
    guard = Guard(("<a", "<a>"))
    assert guard.shown(guard.hidden("<a><a")) == "<a><a"
    assert guard.hidden("<a>") != guard.hidden("<a") + ">"


def test_without_names_nothing_changes() -> None:
    assert Guard(()).shown(Guard(()).hidden("<image>")) == "<image>"
