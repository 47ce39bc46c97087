"""The OpenAPI document, from the schemas by which bodies are decoded and replies encoded.

It describes one server: its routes, its limits, whether it wants a key. What the data of an event
holds is the `schema` of `text/event-stream`, as in TGI's document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tgi_async.api.limits import Limits
from tgi_async.api.openapi.bounds import set_bounds
from tgi_async.api.operation import Get, Operation, Post

Json = dict[str, Any]
_PARAMETER = re.compile(r"{(\w+)")
REFERENCE = "#/components/schemas/{name}"

REFUSALS = {
    "400": "The body is not JSON.",
    "408": "The body did not arrive in time.",
    "413": "The body is longer than the server allows.",
    "415": "The body is not declared as JSON.",
}
FAILURES = {
    "404": "The model has other names.",
    "424": "The model failed on this request.",
    "429": "As many requests as allowed are being served and wait, or the client has its share.",
    "500": "The server failed.",
    "503": "The server is stopping, or the request waited for as long as it may.",
    "504": "The request took longer than it may.",
}
SECONDS, MILLISECONDS, COUNT, TEXT = "number", "integer", "integer", "string"
STREAM_HEADERS = {
    "x-compute-type": (TEXT, "What the model runs on."),
    "x-compute-characters": (COUNT, "Unicode characters of the prompts."),
}
BODY_HEADERS = {"x-tgi-ignored": (TEXT, "Fields of the request that have no effect here.")}
REPLY_HEADERS = {
    "x-compute-time": (SECONDS, "From the arrival of the request to the reply, in seconds."),
    "x-total-time": (MILLISECONDS, "The same in milliseconds."),
    "x-validation-time": (MILLISECONDS, "Until the request was found valid, in milliseconds."),
    "x-queue-time": (MILLISECONDS, "From there to the first step, in milliseconds."),
    "x-inference-time": (MILLISECONDS, "From there to the end, in milliseconds."),
    "x-time-per-token": (MILLISECONDS, "Inference time by generated tokens, in milliseconds."),
    "x-prompt-tokens": (COUNT, "Tokens of the prompts."),
    "x-generated-tokens": (COUNT, "Generated tokens."),
}


def document(operations: Sequence[Operation], limits: Limits, version: str) -> Json:
    """Return the whole document, as JSON values."""
    dialect = limits.dialect
    types = [
        one for operation in operations for one in (*operation.types, operation.error_type(dialect))
    ]
    types = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(types, schemas, strict=True))
    set_bounds(components, limits)
    whole: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "tgi-async",
            "description": "Text generation, with the routes of Text Generation Inference.",
            "version": version,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "paths": {},
        "components": {"schemas": components},
    }
    if limits.root_path:
        whole["servers"] = [{"url": limits.root_path}]
    if limits.api_key or limits.key_file is not None:
        whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for operation in operations:
        kind = _DescribedPost if isinstance(operation, Post) else _Described
        one = kind(operation, schema_of, limits)
        path = operation.path.replace(":path}", "}")
        whole["paths"].setdefault(path, {})[one.method] = one.json()
    return whole


class _Described:
    """One operation in OpenAPI's terms."""

    method = "get"

    def __init__(self, operation: Operation, schema_of: dict[Any, Json], limits: Limits) -> None:
        self._operation = operation
        self._schema_of = schema_of
        dialect = limits.dialect
        self._openai_errors = operation.openai_errors(dialect)
        error_type = operation.error_type(dialect)
        self._error = {"application/json": {"schema": self._schema((error_type,))}}
        self._keyed = operation.needs_key(limits)

    def json(self) -> Json:
        operation = self._operation
        found: Json = {
            "tags": [operation.tag],
            "summary": operation.summary,
            "responses": {"200": self._success(), **dict(self._refusals()), **dict(self._others())},
        }
        names = _PARAMETER.findall(operation.path)
        if names:
            found["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        return found

    def _success(self) -> Json:
        found: Json = {"description": self._operation.success}
        if content := self._content():
            found["content"] = content
        return found

    def _content(self) -> Json:
        """Return the bodies of replies with status 200, by media type."""
        operation = self._operation
        content: Json = {}
        if operation.reply:
            content["application/json"] = {"schema": self._schema(operation.reply)}
        if isinstance(operation, Get) and operation.text:
            content[operation.text] = {"schema": {"type": "string"}}
        return content

    def _refusals(self) -> Iterator[tuple[str, Json]]:
        """Yield the error replies to a wrong body, by status."""
        return iter(())

    def _others(self) -> Iterator[tuple[str, Json]]:
        if self._keyed:
            unauthorized: Json = {"description": "The key is missing or wrong."}
            if self._openai_errors:
                unauthorized["content"] = self._error
            yield "401", unauthorized
        for status in self._operation.failures:
            one: Json = {"description": FAILURES[status]}
            if status in ("429", "503"):
                schema = {"type": "integer"}
                one["headers"] = {"retry-after": {"description": "In seconds.", "schema": schema}}
            # A missing name stands for TGI's empty reply of a route that does not exist.
            if status != "404" or self._openai_errors:
                one["content"] = self._error
            yield status, one

    def _schema(self, types: tuple[Any, ...]) -> Json:
        schemas = [self._schema_of[one] for one in types]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


class _DescribedPost(_Described):
    """An operation with a body."""

    method = "post"
    _operation: Post[Any]

    def json(self) -> Json:
        found = super().json()
        content = {"application/json": {"schema": self._schema(self._operation.body.types)}}
        found["requestBody"] = {"required": True, "content": content}
        if self._keyed:
            found["security"] = [{"key": []}]
        return found

    def _success(self) -> Json:
        operation = self._operation
        found = super()._success()
        found["headers"] = {
            name: {"description": text, "schema": {"type": kind}}
            for name, (kind, text) in BODY_HEADERS.items()
        }
        if operation.timed:
            # A stream begins before most of them are known.
            known = STREAM_HEADERS if operation.events else STREAM_HEADERS | REPLY_HEADERS
            found["headers"] |= {
                name: {"description": text, "required": name in known, "schema": {"type": kind}}
                for name, (kind, text) in (STREAM_HEADERS | REPLY_HEADERS).items()
                if name in known or operation.reply
            }
        return found

    def _content(self) -> Json:
        content = super()._content()
        if events := self._operation.events:
            content["text/event-stream"] = {"schema": self._schema(events)}
        return content

    def _refusals(self) -> Iterator[tuple[str, Json]]:
        if self._openai_errors:
            wrong = f"{REFUSALS['400'][:-1]}, not what the route takes, or breaks a rule."
            for status, text in (REFUSALS | {"400": wrong}).items():
                yield status, {"description": text, "content": self._error}
            return
        for status, text in REFUSALS.items():
            yield status, {"description": text, "content": _plain()}
        text, content = "The body is not what the route takes (plain text)", _plain()
        if self._operation.errors_are_events:
            yield "422", {"description": f"{text}.", "content": content}
        else:
            text += ", or breaks a rule (JSON)."
            yield "422", {"description": text, "content": content | self._error}


def _plain() -> Json:
    return {"text/plain": {"schema": {"type": "string"}}}
