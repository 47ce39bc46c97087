"""What the source of a chat template says about tools and thoughts.

It is looked at as a text: compiling a stranger's program is for a process that can be ended.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tgi_async.text.tools.format import Format
from tgi_async.text.tools.formats import format_of
from tgi_async.text.tools.parser import Marks

THINKING_VARIABLES = frozenset(
    {"enable_thinking", "thinking", "reasoning_effort", "thinking_budget"}
)
"""Variables that clients send to any model, whether its template reads them or not."""

THOUGHTS = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]"))

_CODE = re.compile(r"\{[%{](.*?)[%}]\}", re.DOTALL)
_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_VARIABLE = re.compile(rf"(?<![\w.])(tools|xml_tools|{'|'.join(sorted(THINKING_VARIABLES))})\b")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a model's templates show.

    `tools_variable`: under which name they read tools; SmolLM3's has one of its own. None: nowhere.
    `shows_calls`: whether the calls of earlier messages are shown, be it with all of a message.
    `thinking_variables`: those of `THINKING_VARIABLES` that they read.
    """

    format: Format
    thoughts: Marks | None
    tools_variable: Literal["tools", "xml_tools"] | None
    shows_calls: bool
    thinking_variables: frozenset[str]

    @classmethod
    def of(cls, sources: Collection[str]) -> Traits:
        """Those of templates with these sources."""
        read = {
            name
            for source in sources
            for code in _CODE.findall(source)
            for name in _VARIABLE.findall(_STRING.sub("''", code))
        }
        return cls(
            format=format_of(sources),
            thoughts=next(
                (one for one in THOUGHTS if any(one.end in source for source in sources)), None
            ),
            tools_variable=(
                "tools" if "tools" in read else "xml_tools" if "xml_tools" in read else None
            ),
            shows_calls=any(
                "tool_calls" in source or "content" not in source for source in sources
            ),
            thinking_variables=THINKING_VARIABLES.intersection(read),
        )


def opens_thoughts(prompt: str, marks: Marks) -> bool:
    """Whether the prompt ends where the model is to think."""
    return prompt.rstrip().endswith(marks.begin)
