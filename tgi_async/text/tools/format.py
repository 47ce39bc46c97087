"""What a format of calls is: the marks that a parser looks for, and how calls are written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tgi_async.text.tools import tagged


class Written(NamedTuple):
    """How calls are written; the arguments come between `call` and `end_call`.

    `{name}` in `call` stands for the function's name.
    """

    call: str
    end_call: str
    begin: str = ""
    """Before the first call."""
    between: str = ""
    end: str = ""
    """After the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a family of models writes calls.

    A call is an object with the function's name and its arguments, or, where `header` is set, what
    `header` matches followed by an object of arguments. Objects may be in a list.
    """

    name: str
    signs: tuple[tuple[str, ...], ...] = ()
    """A chat template that has all texts of one of these shows this format."""
    begin: tuple[str, ...] = ()
    """Marks before a call, or before several."""
    bare: bool = False
    """Whether objects in the text are calls also without a mark, if they name a function on offer
    and have arguments."""
    fences: tuple[str, ...] = ()
    """What may be before such calls, and say nothing by itself."""
    end: tuple[str, ...] = ()
    """Marks after the calls."""
    header: re.Pattern[str] | None = None
    """Everything between `begin` or `begin_call` and the arguments; its group `name` is the
    function's name."""
    tagged: bool = False
    """Whether the arguments are in tags, behind the name in a tag of its own; see `tagged`."""
    begin_call: tuple[str, ...] = ()
    end_call: tuple[str, ...] = ()
    """Marks around one of several calls with a header."""
    written: Written
    instructions: str = ""
    """What a model is told whose template does not show tools; `{tools}` stands for these."""
    short_ids: bool = False
    """Whether the template takes ids of nine letters and digits only."""

    @property
    def marks(self) -> frozenset[str]:
        """All that may be a special token of a tokenizer."""
        marks = {*self.begin, *self.end, *self.begin_call, *self.end_call, *_INNER}
        return frozenset(marks | tagged.MARKS if self.tagged else marks)

    def matches(self, template: str) -> bool:
        """Whether the source of a chat template shows this format."""
        return any(all(text in template for text in sign) for sign in self.signs)

    def call(self, name: str) -> str:
        """What is written before the arguments of a call of this function."""
        shown = name if self.header or self.tagged else json.dumps(name, ensure_ascii=False)[1:-1]
        return self.written.call.replace("{name}", shown)

    def text(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Calls, names with arguments, as the model would write them."""
        w = self.written
        written = [
            self.call(name) + self._arguments(arguments) + w.end_call for name, arguments in calls
        ]
        return w.begin + w.between.join(written) + w.end

    def _arguments(self, arguments: Any) -> str:
        if self.tagged and isinstance(arguments, dict):
            return tagged.written(arguments)
        return json.dumps(arguments, ensure_ascii=False)

    def described(self, tools: Sequence[Any]) -> str:
        """The instructions, with the tools in them."""
        shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return self.instructions.replace("{tools}", shown)


_INNER = ("<｜tool▁sep｜>", "[ARGS]", "[CALL_ID]")  # noqa: RUF001
"""Marks within a header."""

TAGGED = """\
You may call functions to answer. These are their signatures, one a line:
<tools>
{tools}
</tools>
"""
"""Instructions begin with this; how calls are written follows."""
