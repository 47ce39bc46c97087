"""Derive a tool format, and marks of reasoning, from a chat template.

The template renders a unique call and unique reasoning, and what it writes around them is the
format. A format is used only if it parses what the template wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tgi_async.text.tools.events import ArgumentsPiece, CallStart, ProsePiece
from tgi_async.text.tools.format import ID, NAME, Format, Marks, Turn, Written
from tgi_async.text.tools.literals import PYTHON
from tgi_async.text.tools.notation import Notation
from tgi_async.text.tools.parser import answer_parser
from tgi_async.text.tools.tags import Tags

Render = Callable[..., "str | None"]
"""Renders `(messages, *, tools, variables, add_generation_prompt)` to text, or None where that
fails."""

MAX_MARK = 80
"""Most characters of a mark."""

_QUESTION, _CONTENT, _THOUGHT = "zqquestion", "zqcontent", "zqthought"
_CALLS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "zqid0aaaa",
        "zqfirst",
        {
            "zqtext": "zqwords",
            "zqnumber": 27182,
            "zqflag": True,
            "zqlist": ["zqitem", 31415],
            "zqobject": {"zqinner": "zqdeep"},
        },
    ),
    ("zqid1bbbb", "zqsecond", {"zqother": "zqmore"}),
)
"""Id, name and arguments."""
_KINDS = ("string", "number", "boolean", "array", "object")
_UNIT = re.compile(r"<[^<>]*>|\d+|\w+|.", re.DOTALL)
_NO_THOUGHTS = re.compile(r"^\s*(<[^<>/]*>\s*)?</[^<>]*>")
"""Empty reasoning, or only its end."""
_TAG = re.compile(r"<[^<>]*>|\[/?[A-Z_ ]+\]")


class Derived(NamedTuple):
    """What a template shows."""

    format: Format | None
    """None: no calls, or calls that cannot be parsed."""
    turn: Turn


def derived(render: Render, known: Format | None = None) -> Derived:
    """Derive all that the template shows. Its format is `known` if that parses what it writes."""
    user = {"role": "user", "content": _QUESTION}

    tools = [_tool(name, arguments) for _, name, arguments in _CALLS]

    def after(message: dict[str, Any] | None, **settings: Any) -> str | None:
        messages = [user] if message is None else [user, {"role": "assistant", **message}]
        text = render(messages, tools=tools, **{"add_generation_prompt": False, **settings})
        found = -1 if text is None else text.rfind(_QUESTION)
        return None if text is None or found < 0 else text[found + len(_QUESTION) :]

    prompt = after(None, add_generation_prompt=True) or ""
    plain = after({"content": _CONTENT}) or ""
    if not prompt and not plain:
        return Derived(None, Turn())
    without = {"enable_thinking": False, "thinking": False}
    unthinking = after(None, variables=without, add_generation_prompt=True) or ""
    thinking = after({"content": _CONTENT, "reasoning_content": _THOUGHT}) or ""
    thoughts = None
    begun = _answer_begin(plain, prompt)
    if _THOUGHT in thinking and _CONTENT in thinking:
        thoughts = _thoughts(thinking, prompt, unthinking, begun)
    format, turn_end = None, ""
    for n_calls in (2, 1):
        calls = [_shown_call(*call) for call in _CALLS[:n_calls]]
        text = after({"content": "", "tool_calls": calls})
        if text is None or any(name not in text for _, name, _ in _CALLS[:n_calls]):
            continue
        start = len(_common_prefix(text, prompt))
        turn_end = _common_suffix(plain.partition(_CONTENT)[2], text[start:])
        written = text[start : len(text) - len(turn_end)]
        if thoughts and thoughts.end in written.partition(_CALLS[0][1])[0]:
            written = written.partition(thoughts.end)[2]
        else:
            written = _NO_THOUGHTS.sub("", written)
        if known is not None and _calls_in(known, written, n_calls) == _wanted(n_calls):
            format = known
        if format := format or _format(written, n_calls):
            break
    ended = plain.partition(_CONTENT)[2].removesuffix(turn_end).strip()
    answer = begun if _is_mark(begun) else ""
    dropped = (answer, ended if answer else "", turn_end.strip())
    return Derived(format, Turn(thoughts, answer, tuple(filter(_is_mark, dropped))))


def _tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": "A value."} for key in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": "A function.", "parameters": parameters}
    return {"type": "function", "function": function}


def _shown_call(id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


# -- thoughts and answers ---------------------------------------------------------------------


def _answer_begin(plain: str, prompt: str) -> str:
    """Return what the template writes before an answer and not in the prompt."""
    before = plain.partition(_CONTENT)[0]
    written = before[len(_common_prefix(before, prompt)) :]
    return _NO_THOUGHTS.sub("", written).strip()


def _thoughts(text: str, prompt: str, unthinking: str, answer: str) -> Marks | None:
    before, _, rest = text.partition(_THOUGHT)
    end = rest.partition(_CONTENT)[0].strip().removesuffix(answer).strip()
    shared = _common_prefix(before, prompt)
    begin = before[len(shared) :].strip() or prompt[len(shared) :].strip()
    if not begin or begin.startswith("</"):
        shared = _common_prefix(before, unthinking)
        begin = before[len(shared) :]
        if begin and begin[0] not in "<[":
            tags = _TAG.findall(shared)
            begin = (tags[-1] if tags else "") + begin
        begin = begin.strip() or next(iter(_TAG.findall(before)[-1:]), "")
    if _is_mark(end) and 0 < len(begin) <= MAX_MARK and begin != end:
        return Marks(begin, end)
    return None


def _is_mark(text: str) -> bool:
    return len(text) <= MAX_MARK and _TAG.search(text) is not None


# -- calls ------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """One call as the template wrote it, in pieces."""

    before: str
    """The text from the call before it, or from the beginning, to the name."""
    header: str
    """The text from the name to the arguments."""
    notation: Notation | None
    keys: tuple[str, str] | None
    """The keys of name and arguments, where the call is an object."""


def _format(text: str, n_calls: int) -> Format | None:
    """Return the format of calls that were written as `text`. None: it is not understood."""
    for index, (id, _, _) in enumerate(_CALLS):
        text = text.replace(id, str(index))  # what is a number may be any number
    for read in (_read_json, _read_tags, _read_python):
        found = read(text, n_calls)
        if found is None:
            continue
        format = _assembled(found)
        if format is not None and _reads(format, text, n_calls):
            return format
    return None


def _reads(format: Format, text: str, n_calls: int) -> bool:
    """Return whether the format parses the text, and what it writes itself, as the calls."""
    wanted = _wanted(n_calls)
    return all(
        _calls_in(format, written, n_calls, alone=True) == wanted
        for written in (text, format.text(wanted))
    )


def _wanted(n_calls: int) -> list[tuple[str, Any]]:
    return [(name, arguments) for _, name, arguments in _CALLS[:n_calls]]


def _calls_in(
    format: Format, text: str, n_calls: int, *, alone: bool = False
) -> list[tuple[str, Any]] | None:
    """Return the parsed calls. None: they cannot be parsed, or there is prose and they should be
    alone."""
    functions = {
        name: {"properties": {key: {"type": _kind(value)} for key, value in arguments.items()}}
        for name, arguments in _wanted(n_calls)
    }
    parser = answer_parser(format, functions)
    found: list[tuple[str, list[str]]] = []
    for event in parser.feed(text) + parser.end():
        if isinstance(event, CallStart):
            found.append((event.name, []))
        elif isinstance(event, ArgumentsPiece) and found:
            found[-1][1].append(event.text)
        elif alone and isinstance(event, ProsePiece) and event.text.strip():
            return None
    try:
        return [(name, json.loads("".join(arguments))) for name, arguments in found]
    except ValueError:
        return None


def _kind(value: Any) -> str:
    return _KINDS[[str, int, bool, list, dict].index(type(value))]


def _read_json(text: str, n_calls: int) -> list[_Read] | None:
    """Read calls whose arguments are JSON."""
    found: list[_Read] = []
    at = 0
    for _, name, arguments in _CALLS[:n_calls]:
        start = text.find(name, at)
        stop = start + len(name)
        span = _json_at(text, stop, arguments)
        if start < 0 or span is None:
            return None
        keys = None
        if (opened := text.rfind("{", at, start)) >= 0:
            whole, end = _decoded(text, opened)
            if isinstance(whole, dict):
                by_value = {json.dumps(value): key for key, value in whole.items()}
                name_key = by_value.get(json.dumps(name))
                arguments_key = by_value.get(json.dumps(arguments))
                if name_key and arguments_key:
                    keys = (name_key, arguments_key)
                    span = (span[0], end)
        found.append(_Read(text[at:start], text[stop : span[0]], None, keys))
        at = span[1]
    return [*found, _Read(text[at:], "", None, None)]


def _json_at(text: str, start: int, wanted: Any) -> tuple[int, int] | None:
    """Return where this value is in the text, in JSON."""
    at = text.find("{", start)
    value, end = _decoded(text, at)
    return (at, end) if value == wanted else None


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """Return the value at a place, and its end."""
    try:
        return json.JSONDecoder().raw_decode(text, at) if at >= 0 else (None, 0)
    except ValueError:
        return None, 0


def _read_python(text: str, n_calls: int) -> list[_Read] | None:
    """Read calls in Python's syntax; whether they are valid shows when they are parsed."""
    found: list[_Read] = []
    at = 0
    for _, name, arguments in _CALLS[:n_calls]:
        start = text.find(f"{name}(", at)
        last = list(arguments.values())[-1]
        deepest = last if isinstance(last, str) else "zqdeep"
        stop = text.find(")", text.find(deepest, start))
        if start < 0 or stop < 0:
            return None
        found.append(_Read(text[at:start], "", PYTHON, None))
        at = stop + 1
    return [*found, _Read(text[at:], "", None, None)]


def _read_tags(text: str, n_calls: int) -> list[_Read] | None:
    """Read calls whose arguments are in tags."""
    calls: list[tuple[str, list[str], list[str]]] = []
    at = 0
    for _, name, arguments in _CALLS[:n_calls]:
        start = text.find(name, at)
        if start < 0:
            return None
        before, at = text[at:start], start + len(name)
        gaps: list[str] = []  # before each key
        named: list[str] = []  # between a key and its value
        for key, value in arguments.items():
            place = text.find(key, at)
            span = _value_at(text, place + len(key), value)
            if place < 0 or span is None:
                return None
            gaps.append(text[at:place])
            named.append(text[place + len(key) : span[0]])
            at = span[1]
        calls.append((before, gaps, named))
    rest = text[at:]
    first, gaps, named = calls[0]
    begin = _common_suffix(gaps[0], gaps[1])
    end = _common_prefix(gaps[1].removesuffix(begin), calls[1][0] if n_calls > 1 else rest)
    between = gaps[1].removesuffix(begin).removeprefix(end)
    openings = [before_keys[0].removesuffix(begin) for _, before_keys, _ in calls]
    befores = [first, *(before.removeprefix(end) for before, _, _ in calls[1:])]
    rest = rest.removeprefix(end)
    if not begin.strip() or not end.strip() or between.strip() or not all(named):
        return None
    if between:  # white space that is not behind the last parameter
        begin = between + begin
    lines = all(one.endswith("\n") for one in named) and end.startswith("\n")
    closing = _common_prefix(befores[1] if n_calls > 1 else rest, rest)
    notation = Tags(
        begin=begin,
        named=_by_kind(named),
        end=end,
        end_call=(closing,) if closing.strip() else (),
        lines=lines,
    )
    found = [
        _Read(before, opening.replace(name, NAME), notation, None)
        for before, opening, (_, name, _) in zip(befores, openings, _CALLS, strict=False)
    ]
    return [*found, _Read(rest, "", None, None)]


def _by_kind(named: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if len(set(named)) == 1:
        return ((named[0], ()),)
    kinds: dict[str, list[str]] = {}
    for text, kind in zip(named, _KINDS, strict=True):
        kinds.setdefault(text, []).extend(["number", "integer"] if kind == "number" else [kind])
    if len(kinds) == 2:  # strings, and all others
        kinds[named[1]].append("null")
    return tuple((text, tuple(some)) for text, some in kinds.items())


def _value_at(text: str, start: int, value: Any) -> tuple[int, int] | None:
    """Return where a value is first after `start`, as it is, in JSON or in Python."""
    shapes = [value] if isinstance(value, str) else [json.dumps(value), str(value)]
    found = [(place, place + len(one)) for one in shapes if (place := text.find(one, start)) >= 0]
    return min(found, default=None)


def _assembled(pieces: list[_Read]) -> Format | None:
    """Return the format with these calls; the last piece is what comes after them."""
    *calls, last = pieces
    first, rest = calls[0], last.before
    if len(calls) == 1:
        begin, call, between, end = "", first.before, "", ""
        end_call, header = rest, first.header
    else:
        further = calls[1].before
        call = _merged_suffix(first.before, further)
        size = len(_common_suffix(first.before, further, numbers=True))
        begin = first.before[: len(first.before) - size]
        gap = further[: len(further) - len(_common_suffix(further, first.before, numbers=True))]
        end_call = _common_prefix(gap, rest)
        between, end = gap.removeprefix(end_call), rest.removeprefix(end_call)
        header = _merged_suffix(first.header, calls[1].header)
    if not call and not begin:
        return None
    if first.keys:  # what is behind the arguments in the object is left out
        end_call, closing = "}" + end_call, end_call.strip()
    else:
        closing = ""
    closing += end.strip().lstrip("]").strip()
    written = Written(
        call=call + NAME + header, end_call=end_call, begin=begin, between=between, end=end
    )
    if any(word in part for part in written for word in _words()):
        return None
    named = call.partition("{")[0] if first.keys else call.partition(ID)[0]
    section, opened = begin.strip().rstrip("[").rstrip(), named.strip()
    if section:
        mark = section
    else:
        mark = opened if first.keys else next(iter(opened.split()), "")
        opened = opened.removeprefix(mark).strip()
    readable = re.search(r"[^\w\s]", mark) if mark else first.keys
    if not readable or max(map(len, (mark, end, end_call, between))) > MAX_MARK:
        return None
    begin_call = () if first.keys or not opened else (opened,)
    behind = call[len(named) :] if not first.keys else ""
    pattern = None if first.keys else re.compile(f"{_lenient(behind)}{_NAME}{_lenient(header)}")
    return Format(
        name="derived",
        begin=(mark,) if mark else (),
        bare=not mark,
        end=(*filter(None, [closing]), *filter(_is_mark, [between.strip()])),
        header=pattern,
        notation=first.notation,
        begin_call=begin_call,
        end_call=(end_call.strip(),) if pattern and not first.notation and end_call.strip() else (),
        name_keys=frozenset({first.keys[0]}) if first.keys else frozenset(),
        arguments_keys=frozenset({first.keys[1]}) if first.keys else frozenset(),
        written=written,
        one_call=len(calls) == 1,
    )


_NAME = r"(?P<name>[^\s<>{}()\[\]\"]{1,256}?)"


def _lenient(text: str) -> str:
    """Return a pattern for a text, with any white space where it has some, and ids."""
    pattern = r"\s*".join(map(re.escape, text.split()))
    pattern = pattern.replace(re.escape(ID), r"[^\s<>{}\"]*?")
    return r"\s*" + pattern.replace(re.escape(NAME), "(?P=name)") + (r"\s*" if pattern else "")


def _words() -> list[str]:
    """Return all words that no format can contain."""
    keys = (key for _, _, arguments in _CALLS for key in arguments)
    return [*(name for _, name, _ in _CALLS), *keys]


# -- common ends ------------------------------------------------------------------------------


def _common_prefix(one: str, other: str) -> str:
    """Return the common prefix, in whole tags, numbers and words."""
    size = 0
    for a, b in zip(_UNIT.findall(one), _UNIT.findall(other), strict=False):
        if a != b:
            break
        size += len(a)
    return one[:size]


def _common_suffix(one: str, other: str, *, numbers: bool = False) -> str:
    """Return the common suffix, as `one` has it, where `numbers` may differ."""
    size = 0
    for a, b in zip(reversed(_UNIT.findall(one)), reversed(_UNIT.findall(other)), strict=False):
        if a != b and not (numbers and a.isdigit() and b.isdigit()):
            break
        size += len(a)
    return one[len(one) - size :]


def _merged_suffix(one: str, other: str) -> str:
    """Return the common end, with `ID` where numbers differ."""
    merged: list[str] = []
    for a, b in zip(reversed(_UNIT.findall(one)), reversed(_UNIT.findall(other)), strict=False):
        if a == b:
            merged.append(a)
        elif a.isdigit() and b.isdigit():
            merged.append(ID)
        else:
            break
    return "".join(reversed(merged))
