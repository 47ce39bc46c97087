"""Arguments in tags, as Qwen3-Coder writes them:

    <parameter=city>
    Seoul
    </parameter>

A string stands there as it is, any other value in JSON; so it takes the function's schema to tell
the two apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.reader import Reader, Reading

BEGIN_CALL, END_CALL = "<function=", "</function>"
BEGIN, END = "<parameter=", "</parameter>"
MARKS = frozenset({BEGIN_CALL, END_CALL, BEGIN, END})
MOST_NAME = 256
MOST_REFERENCES = 8

_ANNOTATIONS = {"type", "title", "description", "default", "examples", "$comment", "deprecated"}
_PLAIN = re.compile(r"[^\n<]+")
_KEPT = ("$defs", "definitions")
_PYTHON = {"True": "true", "False": "false", "None": "null"}


class NotForced(Exception):
    """Arguments of this schema cannot be forced in tags; the message says why."""


def parameters(reader: Reader, schema: Any, argue: Callable[[str], None]) -> Reading[None]:
    """Take parameters up to the mark that ends the call, and it; `argue` gets them as JSON.

    What is no parameter ends them too, and is left.
    """
    r = reader
    begun = "{"
    while True:
        r.kept = at = r.at
        yield from r.skip()
        mark = yield from r.literal([BEGIN, END_CALL])
        if mark != BEGIN:
            if mark is None:
                r.at = at
            break
        name = yield from tag_name(r)
        if name is None:
            r.at = at
            break
        argue(f"{begun}{json.dumps(name, ensure_ascii=False)}: ")
        begun = ", "
        yield from _value(r, _types(_property(schema, name), schema), argue)
    rest = yield from r.next()
    if mark == END_CALL or not r.truncated or (rest and not r.ran_out):
        argue("{}" if begun == "{" else "}")


def tag_name(reader: Reader) -> Reading[str | None]:
    """Take the rest of a tag; None if it has none."""
    start = reader.at
    while (c := (yield from reader.next())) and c not in ">\n" and reader.at - start < MOST_NAME:
        reader.at += 1
    if c != ">":
        return None
    name = reader.slice(start)
    reader.at += 1
    return name


def _value(r: Reader, types: set[str], argue: Callable[[str], None]) -> Reading[None]:
    yield from r.literal(["\n"])
    if types == {"string"}:
        yield from _string(r, argue)
        return
    r.kept = start = r.at
    yield from r.until([END, BEGIN, END_CALL])
    text = r.slice(start)
    if not r.truncated or (yield from r.next()):
        argue(_told(text.removesuffix("\n"), types))
    yield from r.literal([END])


def _string(r: Reader, argue: Callable[[str], None]) -> Reading[None]:
    """Strings may be whole files, so they are passed on as they come."""
    argue('"')
    r.ran_out = False
    while c := (yield from r.next()):
        if c in "\n<" and (yield from r.literal(["\n" + END, END])) is not None:
            argue('"')
            return
        if r.ran_out and r.truncated:
            return  # what is left begins like the mark
        start = r.at
        r.at += 1
        r.run(_PLAIN)
        r.kept = None
        argue(json.dumps(r.slice(start), ensure_ascii=False)[1:-1])
    if not r.truncated:
        argue('"')


def _told(text: str, types: set[str]) -> str:
    """A value of one of these types in JSON; what is none is told as a string."""
    written = _PYTHON.get(text.strip(), text.strip())
    try:
        value = json.loads(written, strict=False)
    except (ValueError, RecursionError):
        value = text
    if _type_of(value) in types or (types == {"number"} and _type_of(value) == "integer"):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False)


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "array"


def _property(schema: Any, name: str) -> Any:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties.get(name) if isinstance(properties, dict) else None


def _types(schema: Any, root: Any, depth: int = 0) -> set[str]:
    """What a value may be; a schema that does not say so is taken for a string's."""
    if not isinstance(schema, dict) or depth > MOST_REFERENCES:
        return {"string"}
    if isinstance(reference := schema.get("$ref"), str):
        found: Any = root
        for step in reference.removeprefix("#/").split("/"):
            found = found.get(step) if isinstance(found, dict) else None
        return _types(found, root, depth + 1)
    types = schema.get("type")
    if isinstance(types, str):
        return {types}
    if isinstance(types, list):
        return set(map(str, types))
    if isinstance(values := schema.get("enum"), list):
        return set(map(_type_of, values))
    if "const" in schema:
        return {_type_of(schema["const"])}
    for key in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list):
            return set().union(*(_types(branch, root, depth + 1) for branch in branches))
    return {"string"}


def written(arguments: Mapping[str, Any]) -> str:
    """Arguments in tags."""
    return "".join(
        f"{BEGIN}{name}>\n"
        f"{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n{END}\n"
        for name, value in arguments.items()
    )


Terms = Callable[[str], "list[Grammar]"]
"""A text as terms, its special tokens apart."""


def forced(schema: Any, text: Terms) -> Grammar:
    """Arguments that follow the schema, in tags. Raises NotForced."""
    if not isinstance(schema, dict):
        return terms.Text("")
    allowed = {*_ANNOTATIONS, "properties", "required", "additionalProperties", *_KEPT}
    if unknown := schema.keys() - allowed:
        raise NotForced(f"`{min(unknown)}` of the parameters")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise NotForced("`properties` or `required` that is none")
    parts: list[Grammar] = []
    for name, given in properties.items():
        part = terms.Sequence([*text(f"{BEGIN}{name}>\n"), *_forced(name, given, schema, text)])
        parts.append(part if name in required else terms.Repeat(part, 0, 1))
    return terms.Sequence(parts)


def any_arguments(text: Terms) -> Grammar:
    """Any arguments, in tags."""
    name = terms.Regex(rf"[^>\n]{{1,{MOST_NAME}}}")
    value = _any_text("(?s:.*)", text(f"\n{END}\n"))
    return terms.Repeat(terms.Sequence([*text(BEGIN), name, *text(">\n"), *value]))


def _forced(name: str, given: Any, root: dict[str, Any], text: Terms) -> list[Grammar]:
    """The value of one parameter, and the mark that ends it."""
    end = text(f"\n{END}\n")
    types = _types(given, root)
    if "string" not in types:
        return [terms.Json({**given, **{key: root[key] for key in _KEPT if key in root}}), *end]
    if types != {"string"}:
        raise NotForced(f"`{name}`, which is a string or something else")
    plain = given if isinstance(given, dict) else {}
    rest = plain.keys() - _ANNOTATIONS
    if not rest:
        return _any_text("(?s:.*)", end)
    if rest == {"enum"} or rest == {"const"}:
        values = plain.get("enum", [plain.get("const")])
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise NotForced(f"`{name}`, a string whose values are others")
        return [terms.Choice([terms.Text(value) for value in values]), *end]
    if rest <= {"minLength", "maxLength"}:
        least, most = plain.get("minLength", 0), plain.get("maxLength", "")
        return _any_text(f"[^<]{{{least},{most}}}", end)
    raise NotForced(f"`{name}`, a string with `{min(rest)}`")


def _any_text(pattern: str, end: list[Grammar]) -> list[Grammar]:
    """A text and what follows, up to a mark: an engine gives a pattern of its own all it can have,
    so the line break before the mark belongs to the pattern.
    """
    if len(end) > 1:  # the mark is a special token, which no pattern can take
        return [terms.Regex(pattern + r"\n"), *end[1:]]
    if pattern == "(?s:.*)":
        return [terms.Prose(f"\n{END}\n")]
    return [terms.Regex(pattern + rf"\n{END}\n")]
