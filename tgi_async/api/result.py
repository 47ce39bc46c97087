"""Results of handlers. Only `Endpoint` encodes and sends them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tgi_async.api.encoding import HeaderList
from tgi_async.api.exchange import Exchange

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Reply(Generic[T_co]):
    """A whole reply with status 200, whose body is sent as JSON."""

    body: T_co
    headers: HeaderList = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EventStream:
    """A reply as a stream of events, which `write` sends."""

    write: Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class TextReply:
    """A whole reply with status 200 that is not JSON."""

    text: bytes | str
    content_type: str


Result = Reply[Any] | EventStream
