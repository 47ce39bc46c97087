"""The formats of DeepSeek."""

# ruff: noqa: RUF001 (its marks are written with letters of their own)

from __future__ import annotations

import re

from tgi_async.text.tools.format import TOOLS_AND_FORMAT, Format, Written
from tgi_async.text.tools.notation import KINDS
from tgi_async.text.tools.tags import Tags

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
    instructions=TOOLS_AND_FORMAT + "To call functions, write exactly this and nothing else:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n"
    "```json\n{ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Call none where none is needed.",
)
"""DeepSeek V3 and R1. V3.1's calls are read too."""

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
    instructions=TOOLS_AND_FORMAT + "To call functions, write exactly this and nothing else:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>"
    "{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n"
    "Call none where none is needed.",
)
"""DeepSeek V3.1: without a fence."""


_DSML = "｜DSML｜"


def _dsml(section: str) -> Format:
    """Return the format of calls in tags with a mark of their own, which some answers leave out."""
    return Format(
        name={"function_calls": "deepseek_v32", "tool_calls": "deepseek_v4"}[section],
        signs=((_DSML, f"{section}>"),),
        begin=(f"<{_DSML}{section}>", f"<{section}>"),
        end=(f"</{_DSML}{section}>", f"</{section}>"),
        header=re.compile(r'(?P<name>[^<>{}\s"]{1,256})">\s*'),
        notation=Tags(
            begin=f'<{_DSML}parameter name="',
            also_begin=('<parameter name="',),
            named=(
                ('" string="true">', ("string",)),
                ('" string="false">', tuple(kind for kind in KINDS if kind != "string")),
                ('">', ()),
            ),
            end=f"</{_DSML}parameter>\n",
            also_end=("</parameter>",),
            end_call=(f"</{_DSML}invoke>", "</invoke>"),
        ),
        begin_call=(f'<{_DSML}invoke name="', '<invoke name="'),
        written=Written(
            begin=f"<{_DSML}{section}>\n",
            call=f'<{_DSML}invoke name="{{name}}">\n',
            end_call=f"</{_DSML}invoke>\n",
            end=f"</{_DSML}{section}>",
        ),
    )


DEEPSEEK32 = _dsml("function_calls")
DEEPSEEK4 = _dsml("tool_calls")
"""DeepSeek V3.2 and V4."""
