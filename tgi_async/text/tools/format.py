"""Tool formats: the marks that a parser looks for, and how calls are written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tgi_async.text.tools.notation import Notation

ID = "{id}"
"""Stands for the id of a call in `Written`, which may be any."""
NAME = "{name}"
"""Stands for the function's name in `Written`."""


class Marks(NamedTuple):
    """Marks around a part of an answer, such as the model's reasoning."""

    begin: str
    end: str


class Turn(NamedTuple):
    """What an answer has beside calls and prose."""

    thoughts: Marks | None = None
    """Marks around the model's reasoning."""
    answer: str = ""
    """What the model writes before an answer in prose."""
    dropped: tuple[str, ...] = ()
    """Marks without content: those around such an answer, and at the end of the turn."""


class Written(NamedTuple):
    """How calls are written; the arguments come between `call` and `end_call`."""

    call: str
    end_call: str
    begin: str = ""
    """Text before the first call."""
    between: str = ""
    end: str = ""
    """Text after the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a family of models writes calls.

    A call is an object with the function's name and its arguments, or, where `header` is set, what
    `header` matches followed by the arguments. Either may be in a list.
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
    """What may be before such calls, and is ignored."""
    end: tuple[str, ...] = ()
    """Marks after the calls."""
    header: re.Pattern[str] | None = None
    """Everything between `begin` or `begin_call` and the arguments; its group `name` is the
    function's name."""
    notation: Notation | None = None
    """How arguments after a header are written. None: as a JSON object."""
    begin_call: tuple[str, ...] = ()
    end_call: tuple[str, ...] = ()
    """Marks around one of several calls with a header."""
    name_keys: frozenset[str] = frozenset({"name", "function", "tool_name"})
    arguments_keys: frozenset[str] = frozenset({"arguments", "parameters"})
    """Names of the arguments in a call object."""
    written: Written
    instructions: str = ""
    """Prompt for a model whose template does not show tools; `{tools}` stands for these."""
    turn: Turn | None = None
    """What else is in answers of these models. None: derived from their templates."""
    one_call: bool = False
    """Whether an answer ends with its first call."""
    channels: bool = False
    """Whether each part of an answer has a header with its kind; see `harmony`."""
    ids: Literal["any", "short", "numbered"] = "any"
    """Call ids that the template takes: nine letters and digits, or those that the model itself
    writes, which have the function's name and count the calls of a conversation."""

    @property
    def literals(self) -> tuple[str, ...]:
        """All texts of the format that special tokens may be in."""
        notation = self.notation.literals if self.notation else ()
        marks = (*self.begin, *self.end, *self.begin_call, *self.end_call)
        return (*marks, *self.written, *notation)

    def matches(self, template: str) -> bool:
        """Return whether the source of a chat template shows this format."""
        return any(all(text in template for text in sign) for sign in self.signs)

    def opening(self, name: str) -> str:
        """Return what is written before the arguments of a call of this function, with `ID` in
        it."""
        shown = name if self.header else json.dumps(name, ensure_ascii=False)[1:-1]
        return self.written.call.replace(NAME, shown)

    def text(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Return calls, names with arguments, as the model would write them."""
        w = self.written
        written = [
            self.opening(name).replace(ID, str(index)) + self._arguments(arguments) + w.end_call
            for index, (name, arguments) in enumerate(calls)
        ]
        return w.begin + w.between.join(written) + w.end

    def _arguments(self, arguments: Any) -> str:
        if self.notation and isinstance(arguments, dict):
            return self.notation.write(arguments)
        return json.dumps(arguments, ensure_ascii=False)

    def described(self, tools: Sequence[Any]) -> str:
        """Return the instructions, with the tools in them."""
        shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return self.instructions.replace("{tools}", shown)


TOOLS_AND_FORMAT = """\
You may call functions to answer. These are their signatures, one a line:
<tools>
{tools}
</tools>
"""
"""The beginning of instructions; how calls are written follows."""
