"""The formats of DeepSeek."""

# ruff: noqa: RUF001 (its marks are written with letters of their own)

from __future__ import annotations

import re

from tgi_async.text.tools.format import TAGGED, Format, Written

_BEGIN_CALLS = (
    "tool▁calls▁begin",
    "tool_calls_begin",
    "tool calls begin",
    "tool\\_calls\\_begin",
    "tool▁calls",
)
_BEGIN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"

DEEPSEEK = Format(
    name="deepseek",
    signs=(("<｜tool▁calls▁begin｜>", "```json"),),
    # R1 spells its marks in several ways.
    begin=tuple(f"<｜{words}｜>" for words in _BEGIN_CALLS),
    end=("<｜tool▁calls▁end｜>",),
    header=re.compile(
        r"(?:function\s*<｜tool▁sep｜>)?\s*(?P<name>[^\s<{]+)"
        r"\s*(?:<｜tool▁sep｜>)?\s*(?:```(?:json)?)?\s*"
    ),
    begin_call=(_BEGIN,),
    end_call=("```" + _END, "```\n" + _END, _END, "```"),
    written=Written(
        begin="<｜tool▁calls▁begin｜>",
        call=_BEGIN + "function<｜tool▁sep｜>{name}\n```json\n",
        end_call="\n```" + _END,
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
    instructions=TAGGED + "To call functions, write exactly this and nothing else:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Call none where none is needed.",
)
"""DeepSeek V3 and R1. What V3.1 writes is understood too."""

DEEPSEEK31 = Format(
    name="deepseek_v31",
    signs=(("<｜tool▁calls▁begin｜>",),),
    begin=DEEPSEEK.begin,
    end=DEEPSEEK.end,
    header=DEEPSEEK.header,
    begin_call=DEEPSEEK.begin_call,
    end_call=DEEPSEEK.end_call,
    written=Written(
        begin="<｜tool▁calls▁begin｜>",
        call=_BEGIN + "{name}<｜tool▁sep｜>",
        end_call=_END,
        end="<｜tool▁calls▁end｜>",
    ),
    instructions=TAGGED + "To call functions, write exactly this and nothing else:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>"
    "{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Call none where none is needed.",
)
"""DeepSeek V3.1: without a fence."""
