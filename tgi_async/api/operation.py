"""An operation of the API: a method of a path, declared once beside its handler.

The route (`routes`) and the entry in the OpenAPI document (`openapi`) are both made from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tgi_async.api.body import BodyType
from tgi_async.api.dialect import Dialect
from tgi_async.api.error_reply import ErrorForm, as_openai, as_tgi
from tgi_async.api.error_schema import ErrorBody, OpenAIErrorBody
from tgi_async.api.limits import Limits
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply, Result, TextReply
from tgi_async.api.service import Service

T = TypeVar("T")
PostHandler = Callable[[Service, T, RequestContext], Awaitable[Result]]
GetHandler = Callable[[Service, Mapping[str, str]], Reply[Any] | TextReply | None]
"""Takes the parameters of the path; None is an empty reply with status 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What all operations have. Several types of a field are alternatives."""

    path: str
    """With parameters in braces, as in Starlette."""
    tag: str
    """The group that the document lists it in."""
    summary: str
    reply: tuple[Any, ...] = ()
    """Types of a JSON body with status 200."""
    success: str = "Done."
    openai: bool = False
    """Whether errors are OpenAI's where the dialect has them: JSON always, and 400 for 422."""

    def openai_errors(self, dialect: Dialect) -> bool:
        """Return whether errors are OpenAI's objects."""
        return self.openai and dialect.answers_errors_like_openai

    def error_form(self, dialect: Dialect) -> ErrorForm:
        """Return the function that makes error replies."""
        return as_openai if self.openai_errors(dialect) else as_tgi

    def error_type(self, dialect: Dialect) -> Any:
        """Return the type of an error's body."""
        return OpenAIErrorBody if self.openai_errors(dialect) else ErrorBody

    def needs_key(self, limits: Limits) -> bool:
        """Return whether a request must have an API key."""
        return False

    @property
    def types(self) -> tuple[Any, ...]:
        """The types that the document describes, but for that of errors."""
        return self.reply

    @property
    def failures(self) -> tuple[str, ...]:
        """Statuses of errors that do not depend on the body, in JSON."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Get(Operation):
    """An operation without a body, which needs no key."""

    handler: GetHandler
    text: str = ""
    """Media type of a reply with status 200 that is not JSON."""
    failure: str = ""
    """Status of the error that the handler raises."""

    @property
    def failures(self) -> tuple[str, ...]:
        return (self.failure,) if self.failure else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Post(Operation, Generic[T]):
    """An operation on a JSON body."""

    handler: PostHandler[T]
    body: BodyType[T]
    parts: tuple[Any, ...] = ()
    """Types that the body refers to by name."""
    events: tuple[Any, ...] = ()
    """Types of an event's data; the OpenAI routes' last event is `[DONE]`."""
    generates: bool = True
    """Whether its requests are in `tgi_request_*`, and fail as generations do."""
    errors_are_events: bool = False
    """Whether errors after the body was read are events, with status 200."""
    timed: bool = False
    """Whether a reply has the `x-*` headers."""
    keyed: bool = True
    keyed_in_tgi: bool = True

    def needs_key(self, limits: Limits) -> bool:
        keyed = self.keyed and (self.keyed_in_tgi or limits.dialect.guards_all_work)
        return keyed and bool(limits.api_key or limits.key_file is not None)

    @property
    def types(self) -> tuple[Any, ...]:
        return (*self.body.types, *self.parts, *self.reply, *self.events)

    @property
    def failures(self) -> tuple[str, ...]:
        if self.errors_are_events:
            return ()
        return ("424", "429", "500", "503", "504") if self.generates else ("429", "500")
