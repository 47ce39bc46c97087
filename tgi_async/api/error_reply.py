"""Errors as replies: in TGI's form, or on the routes below `/v1` in OpenAI's.

A client of OpenAI's looks for `error.message`, and at the status for what kind of error it is: what
TGI calls 422 is 400 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from tgi_async.api.error_schema import ErrorBody, OpenAIError, OpenAIErrorBody
from tgi_async.api.limits import Limits
from tgi_async.errors import ServerError

_encode = msgspec.json.Encoder().encode


class ErrorReply(NamedTuple):
    """`content_type` is empty where there is no body."""

    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def response(self) -> Response:
        """Return the same for Starlette."""
        response = Response(self.body, self.status)
        if self.content_type:
            response.raw_headers.append((b"content-type", self.content_type))
        response.raw_headers += self.headers
        return response


ErrorForm = Callable[[ServerError], ErrorReply]


def as_tgi(error: ServerError) -> ErrorReply:
    """Return an object, plain text or nothing, as TGI does for each kind of error."""
    if error.tgi_body == "none":
        return ErrorReply(error.status, b"", b"", error.headers)
    if error.tgi_body == "text":
        text = str(error).encode()
        return ErrorReply(error.status, b"text/plain; charset=utf-8", text, error.headers)
    body = _encode(ErrorBody(str(error), error.error_type))
    return ErrorReply(error.status, b"application/json", body, error.headers)


def as_openai(error: ServerError) -> ErrorReply:
    """Return OpenAI's object, for any error."""
    error_type = error.error_type if error.tgi_body == "json" else UNSET
    body = _encode(OpenAIErrorBody(openai_error(error), error_type))
    return ErrorReply(_status(error), b"application/json", body, error.headers)


def form_of(path: str, limits: Limits) -> ErrorForm:
    """Return the form of errors at a path without a route."""
    if path != "/v1" and not path.startswith("/v1/"):
        return as_tgi
    return as_openai if limits.dialect.answers_errors_like_openai else as_tgi


def openai_error(error: ServerError, *, in_stream: bool = False) -> OpenAIError:
    """Return OpenAI's object. In a stream, whose head was sent, it has the status too."""
    status = _status(error)
    return OpenAIError(
        message=str(error),
        type=openai_type(status),
        param=error.param,
        code=error.code,
        http_status_code=status if in_stream else UNSET,
    )


def _status(error: ServerError) -> int:
    return 400 if error.status == 422 else error.status


def openai_type(status: int) -> str:
    """Return OpenAI's name for the errors of a status."""
    if status == 429:
        return "rate_limit_error"
    # 424 is TGI's word for a failure of the model.
    return "server_error" if status >= 500 or status == 424 else "invalid_request_error"
