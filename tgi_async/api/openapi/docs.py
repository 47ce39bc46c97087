"""`/api-doc/openapi.json`, and `/docs`: the same as a page without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from msgspec import Raw

from tgi_async.api.encoding import encode
from tgi_async.api.openapi.document import Json
from tgi_async.api.operation import Get, Operation
from tgi_async.api.result import Reply, TextReply
from tgi_async.api.service import Service

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "code{background:#8882;padding:0 .3em;border-radius:3px}"
    "table{border-collapse:collapse}td,th{text-align:left;padding:.2em .8em .2em 0;"
    "border-bottom:1px solid #8884;vertical-align:top}"
)


class Docs:
    """Holds both replies, made once, before the first request."""

    def __init__(self) -> None:
        self._document = Raw()
        self._page = ""

    def write(self, found: Json, root_path: str = "") -> None:
        """Serve this document, below `root_path`."""
        self._document = Raw(encode(found))
        self._page = page(found, root_path)

    def document(self, service: Service, path: Mapping[str, str]) -> Reply[Raw]:
        """Return the OpenAPI document."""
        return Reply(self._document)

    def page(self, service: Service, path: Mapping[str, str]) -> TextReply:
        """Return the document as an HTML page."""
        return TextReply(self._page, "text/html; charset=utf-8")

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations of this file."""
        to_read: dict[str, Any] = {
            "tag": "operate",
            "summary": "This document, to be read",
            "handler": self.page,
            "text": "text/html",
        }
        return (
            Get(path="/docs", **to_read),
            Get(path="/docs/", **to_read),
            Get(
                path="/api-doc/openapi.json",
                tag="operate",
                summary="This document",
                handler=self.document,
                reply=(Json,),
            ),
        )


def page(found: Json, root_path: str = "") -> str:
    """Return the document as HTML: every operation, then every schema. Links begin with
    `root_path`."""
    title = f"{found['info']['title']} {found['info']['version']}"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{escape(found['info']['description'])} For programs: "
        f'<a href="{escape(root_path)}/api-doc/openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method, path, operation)
    parts.append("<h2>Schemas</h2>")
    for name, schema in sorted(found["components"]["schemas"].items()):
        parts += _schema(name, schema)
    return "\n".join([*parts, "</html>"])


def _operation(method: str, path: str, operation: Json) -> list[str]:
    parts = [
        f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation['summary'])}."
    ]
    if body := operation.get("requestBody"):
        parts.append(f" Takes {_content(body['content'])}.")
    if "security" in operation:
        parts.append(" Needs the key.")
    parts.append("</p><table>")
    parts += [
        f"<tr><td>{status}<td>{escape(one['description'])}<td>{_content(one.get('content', {}))}"
        for status, one in sorted(operation["responses"].items())
    ]
    return [*parts, "</table>"]


def _content(content: Json) -> str:
    return "<br>".join(
        f"<code>{escape(media)}</code> {_type(one['schema'])}" for media, one in content.items()
    )


def _schema(name: str, schema: Json) -> list[str]:
    parts = [f'<h3 id="{escape(name)}">{escape(name)}</h3>']
    if "description" in schema:
        parts.append(f"<p>{escape(schema['description'])}</p>")
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else ' (optional)'}"
        f"<td>{_type(one)}"
        for field, one in schema.get("properties", {}).items()
    ]
    return [*parts, "<table>", *rows, "</table>"]


def _type(schema: Json) -> str:
    """Return a schema in one line; another one is linked."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_limits(schema)}"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    return escape(str(schema.get("type", "anything"))) + _limits(schema)


def _limits(schema: Json) -> str:
    words: dict[str, Any] = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
        "minLength": "at least this long:",
        "maxItems": "at most this many:",
    }
    found = [f"{text} {schema[word]}" for word, text in words.items() if word in schema]
    return f" ({', '.join(found)})" if found else ""
