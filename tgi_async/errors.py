"""All errors that the server answers with, as one tree.

    ServerError
    ├── ValidationError            422 validation
    │   └── ContextLengthExceeded  422 validation
    ├── TemplateError              422 template_error
    ├── ToolError                  422 tool_error
    ├── Overloaded                 429 overloaded
    ├── TimedOut                   504 timeout
    │   └── TimedOutInQueue        503 timeout
    ├── GenerationError            424 generation
    ├── IncompleteGeneration       500 incomplete_generation
    ├── Unhealthy                  503 healthcheck
    ├── NotResumable               409 not_resumable
    ├── Unauthorized               401
    ├── NotFound                   404
    └── MethodNotAllowed           405

The statuses, `error_type`s and prefixes are TGI's; `api.error_reply` makes OpenAI's form of them.
Errors that end the start of the server are `StartError`s: they carry a message for the operator and
an exit status.
"""

from __future__ import annotations

import re
from typing import Literal

RETRY_AFTER_SECONDS = 5
_FIELD = re.compile(r"`([\w.\[\]-]{1,64})`")


class ServerError(Exception):
    """An error that only the client whose request caused it gets.

    `param` is the field of the body that it is about. A message about a field begins with its name
    in backticks, so it need not be given there.
    """

    status = 500
    error_type = "internal"
    prefix = ""
    failure = "generation"
    """The `err` label of `tgi_request_failure`."""
    code: str | None = None
    """OpenAI's code for it, where clients look for one."""
    tgi_body: Literal["json", "text", "none"] = "json"
    """The form of TGI's body: an object, the message alone, or nothing."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Further headers of the reply."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(f"{self.prefix}{message}")
        if param is None and (named := _FIELD.match(message)) is not None:
            param = named[1]
        self.param = param


class ValidationError(ServerError):
    """The request asks for something that is not allowed."""

    status = 422
    error_type = "validation"
    prefix = "Input validation error: "
    failure = "validation"


class ContextLengthExceeded(ValidationError):
    """Prompt and completion of an OpenAI route are longer than the server allows.

    Clients know it by how its message begins, so it has no prefix.
    """

    prefix = ""
    code = "context_length_exceeded"


class TemplateError(ServerError):
    """The chat template is missing or refused these messages."""

    status = 422
    error_type = "template_error"
    prefix = "Template error: "
    failure = "template"


class ToolError(ServerError):
    """The tools of the request cannot be used."""

    status = 422
    error_type = "tool_error"
    prefix = "Tool error: "
    failure = "validation"


class Overloaded(ServerError):
    """As many requests as allowed are already being served.

    `retry_after` are the seconds after which the same request may find room, as far as is known.
    """

    status = 429
    error_type = "overloaded"
    failure = "overloaded"
    code = "rate_limit_exceeded"

    def __init__(
        self, message: str = "Model is overloaded", *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.headers = ((b"retry-after", str(retry_after).encode()),)


class TimedOut(ServerError):
    """The request took longer than it may."""

    status = 504
    error_type = "timeout"
    failure = "timeout"
    code = "timeout"


class TimedOutInQueue(TimedOut):
    """It waited for as long as it may, and nothing was computed for it."""

    status = 503

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.headers = ((b"retry-after", str(retry_after).encode()),)


class GenerationError(ServerError):
    """The model failed on this request."""

    status = 424
    error_type = "generation"
    prefix = "Request failed during generation: Server error: "
    failure = "generation"


class IncompleteGeneration(ServerError):
    """The server stopped before this request was done."""

    error_type = "incomplete_generation"
    failure = "incomplete"

    def __init__(self, message: str = "Incomplete generation") -> None:
        super().__init__(message)


class Unhealthy(ServerError):
    """The server cannot serve now."""

    status = 503
    error_type = "healthcheck"
    failure = "generation"
    headers = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)

    def __init__(self, message: str = "unhealthy") -> None:
        super().__init__(message)


class NotResumable(ServerError):
    """A stream cannot go on where the client says that it ended."""

    status = 409
    error_type = "not_resumable"
    failure = "validation"
    code = "not_resumable"


class Unauthorized(ServerError):
    """The API key is missing or wrong."""

    status = 401
    failure = "validation"
    code = "invalid_api_key"
    tgi_body = "none"


class NotFound(ServerError):
    """There is no such route, or nothing of this name."""

    status = 404
    failure = "validation"
    tgi_body = "none"

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class MethodNotAllowed(ServerError):
    """The route has other methods."""

    status = 405
    failure = "validation"
    code = "method_not_allowed"
    tgi_body = "none"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = ((b"allow", allowed.encode()),)


class StartError(Exception):
    """The server cannot start; the message says what was given, what is allowed and what to do."""

    exit_status = 1
