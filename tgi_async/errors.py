"""Every error the server answers with, as one tree.

    ServerError
    ├── ValidationError        422 validation
    ├── TemplateError          422 template_error
    ├── ToolError              422 tool_error
    ├── Overloaded             429 overloaded
    ├── GenerationError        424 generation
    ├── IncompleteGeneration   500 incomplete_generation
    └── Unhealthy              503 healthcheck

The statuses, `error_type`s and prefixes are TGI's. Errors that end the start of the server are
`StartError`s: they carry a message for a person and an exit status.
"""

from __future__ import annotations


class ServerError(Exception):
    """An error that reaches exactly the client whose request caused it."""

    status = 500
    error_type = "internal"
    prefix = ""
    failure = "generation"
    """The `err` label of `tgi_request_failure`."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{self.prefix}{message}")


class ValidationError(ServerError):
    """The request asks for something that is not allowed."""

    status = 422
    error_type = "validation"
    prefix = "Input validation error: "
    failure = "validation"


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
    """As many requests as allowed are already being served."""

    status = 429
    error_type = "overloaded"
    failure = "overloaded"

    def __init__(
        self, message: str = "Model is overloaded", *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which the same request may find room, as far as anybody knows."""


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

    def __init__(self, message: str = "unhealthy") -> None:
        super().__init__(message)


class StartError(Exception):
    """The server cannot start; the message says what was given, what is allowed and what to do."""

    exit_status = 1
