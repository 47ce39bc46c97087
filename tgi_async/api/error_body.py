"""The body of an error, in the form of the API that a path belongs to."""

from __future__ import annotations

from typing import Any

from tgi_async.api.encoding import encode
from tgi_async.api.error_reply import openai_type
from tgi_async.api.error_schema import OpenAIError, OpenAIErrorBody

TGI_TYPES = {503: "healthcheck"}
"""Names of errors by status; any other status is the client's mistake."""


def error_body(
    path: str, status: int, message: str, *, code: str | None = None, **details: Any
) -> bytes:
    """Return JSON: OpenAI's error object below `/v1`, TGI's `error` and `error_type` elsewhere.

    `details` are further fields of TGI's form; `code` is in OpenAI's only.
    """
    if path.startswith("/v1/"):
        return encode(OpenAIErrorBody(OpenAIError(message, openai_type(status), None, code)))
    return encode({"error": message, "error_type": TGI_TYPES.get(status, "validation"), **details})
