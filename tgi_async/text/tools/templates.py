"""What a model's chat templates show of tools and reasoning.

Their source is searched as a text: untrusted programs run only in a process with limits. What it
renders there shows whether a format that its source suggests is the right one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tgi_async.text.tools.derived import Derived, Render, derived
from tgi_async.text.tools.format import Format, Marks, Turn
from tgi_async.text.tools.formats import JSON, format_of

THINKING_VARIABLES = frozenset(
    {"enable_thinking", "thinking", "reasoning_effort", "thinking_budget"}
)
"""Variables that clients send to any model, whether its template reads them or not."""

THOUGHTS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|channel>thought", "<channel|>"),
)
"""Marks of reasoning; the first whose end a template has is its model's."""

ANSWERS = (
    Marks("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    Marks("<|START_TEXT|>", "<|END_TEXT|>"),
)
"""Marks around a prose answer, likewise."""

_CODE = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_VARIABLE = re.compile(rf"(?<![\w.])(tools|xml_tools|{'|'.join(sorted(THINKING_VARIABLES))})\b")
_READS_THOUGHTS = re.compile(r"reasoning_content|\bthinking\b|\breasoning\b")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model's templates show.

    `turn` is what is in answers beside calls and prose. `tools_variable`: under which name they
    read tools; SmolLM3's has one of its own. None: nowhere. `shows_calls`: whether the calls of
    earlier messages are shown, alone or with the whole message. `thinking_variables`: those of
    `THINKING_VARIABLES` that they read.
    """

    format: Format
    turn: Turn
    tools_variable: Literal["tools", "xml_tools"] | None
    shows_calls: bool
    thinking_variables: frozenset[str]

    @classmethod
    def of(cls, sources: Collection[str], render: Render | None = None) -> Traits:
        """Return the traits of templates with these sources; `render` renders the one for tools."""
        read = {
            name
            for source in sources
            for code in _CODE.findall(source)
            for name in _VARIABLE.findall(_STRING.sub("''", code))
        }
        format, turn = format_of(sources), _turn_of(sources)
        found = Derived(None, Turn())
        if render is not None and _is_worth_a_look(turn, sources):
            found = derived(render, None if format is JSON else format)
        format = found.format or format
        return cls(
            format=format,
            turn=format.turn
            or Turn(
                turn.thoughts or found.turn.thoughts,
                turn.answer or found.turn.answer,
                turn.dropped or found.turn.dropped,
            ),
            tools_variable=(
                "tools" if "tools" in read else "xml_tools" if "xml_tools" in read else None
            ),
            shows_calls=any(
                "tool_calls" in source or "content" not in source for source in sources
            ),
            thinking_variables=THINKING_VARIABLES.intersection(read),
        )


def _turn_of(sources: Collection[str]) -> Turn:
    thoughts, answer = (
        next((one for one in marks if any(one.end in source for source in sources)), None)
        for marks in (THOUGHTS, ANSWERS)
    )
    return Turn(thoughts, answer.begin if answer else "", tuple(answer or ()))


def _is_worth_a_look(turn: Turn, sources: Collection[str]) -> bool:
    """Return whether the sources mention anything to derive."""
    calls = any("tool_calls" in source for source in sources)
    thinks = turn.thoughts is None and any(map(_READS_THOUGHTS.search, sources))
    return calls or thinks


def opens_thoughts(prompt: str, marks: Marks) -> bool:
    """Return whether the prompt ends where the model begins to reason."""
    return prompt.rstrip().endswith(marks.begin)
