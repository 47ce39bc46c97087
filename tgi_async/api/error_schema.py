"""Bodies of errors: TGI's and OpenAI's objects."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class ErrorBody(Struct, frozen=True):
    """TGI's error object."""

    error: str
    error_type: str


class OpenAIError(Struct, frozen=True):
    """`param` is the field that the error is about, `code` an identifier.

    `http_status_code` is TGI's: the status of an error within a stream, whose reply has begun with
    200 by then.
    """

    message: str
    type: str
    param: str | None
    code: str | None
    http_status_code: int | UnsetType = UNSET


class OpenAIErrorBody(Struct, frozen=True):
    """OpenAI's error object. `error_type` is TGI's, for its clients of these routes."""

    error: OpenAIError
    error_type: str | UnsetType = UNSET


class StreamFailure(Struct, frozen=True):
    message: str
    http_status_code: int


class StreamError(Struct, frozen=True):
    """TGI's error within a stream of its OpenAI routes."""

    error: StreamFailure
