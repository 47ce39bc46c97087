"""Shared by the OpenAI routes: reading a body, errors, and streams of several choices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from tgi_async.api.body import BodyType, JsonBody
from tgi_async.api.dialect import Dialect
from tgi_async.api.encoding import DONE, Events
from tgi_async.api.engine_client import Generation
from tgi_async.api.error_reply import openai_error
from tgi_async.api.error_schema import OpenAIErrorBody, StreamError, StreamFailure
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import together
from tgi_async.api.openai.numbers import RespelledJson
from tgi_async.api.openai.schema import OpenAIRequest
from tgi_async.api.relay import relay
from tgi_async.api.request_context import RequestContext
from tgi_async.api.service import Service
from tgi_async.api.timing import stream_headers
from tgi_async.api.unsupported import refuse_unsupported
from tgi_async.errors import Overloaded, ServerError, ValidationError
from tgi_async.generation import Emitted

B = TypeVar("B", bound=OpenAIRequest)
TGI_STREAM_STATUS = 422
"""The status in TGI's stream errors, whatever the error."""


@asynccontextmanager
async def early_errors(service: Service, exchange: Exchange) -> AsyncIterator[None]:
    """Have early errors of a stream request answered in the way of the dialect.

    Here it has its own status; TGI begins the stream, and sends the error in it.
    """
    try:
        yield
    except (ValidationError, Overloaded):
        if not service.limits.dialect.begins_streams_late and not exchange.streaming:
            await exchange.open_stream(stream_headers(service.compute_type, 0), tgi_error_events)
        raise


def body_type(of: type[B], dialect: Dialect) -> BodyType[B]:
    """Return the decoder of a route's bodies."""
    return RespelledJson(of) if dialect.reads_respelled_numbers else JsonBody(of)


def stream_error_type(dialect: Dialect) -> Any:
    """Return the type of an error within a stream."""
    return OpenAIErrorBody if dialect.begins_streams_late else StreamError


def read_body(body: B, context: RequestContext, dialect: Dialect) -> B:
    """Return the body with only the fields that the dialect reads.

    Raises:
        ValidationError: a field would change the text, and is not supported.
    """
    if not dialect.reads_fields_of_tgi_only:
        refuse_unsupported(context.unknown, context.ignored)
        return body
    context.ignore(body.ignored_by_tgi())
    return body.as_tgi_reads_it()


async def stream_choices(
    service: Service,
    exchange: Exchange,
    generations: Sequence[Generation],
    n_characters: int,
    events_of: Callable[[int, Emitted], Events],
    ending: Callable[[], Events],
) -> None:
    """Stream all generations at once, each as a choice, in chunks.

    `events_of` makes the events of what the generation of an index emitted, `ending` those that
    follow when all have ended. The first failure ends the stream and the other generations. What
    fails while all still wait has its own status; TGI begins its streams before.
    """
    n_left = len(generations)
    # With drafts several tokens come in one step, and each is an event, as without.
    apart = service.limits.max_drafts > 0
    last: Events = ()

    async def follow(index: int, generation: Generation) -> None:
        nonlocal n_left, last
        n_generated = 0

        def events(emitted: Emitted) -> Events:
            nonlocal n_generated
            n_generated += len(emitted.tokens)
            if not apart or len(emitted.tokens) < 2:
                return events_of(index, emitted)
            return [event for one in emitted.apart() for event in events_of(index, one)]

        numbered = exchange.numbered(events, index, len(generations), each=apart)
        ending_of_choice = await relay(generation, exchange, numbered)
        n_left -= 1
        if n_left:
            await exchange.write(ending_of_choice)
        else:
            last = ending_of_choice
        service.account(generation.timings, n_generated)

    late = service.limits.dialect.begins_streams_late
    error_events = openai_error_events if late else tgi_error_events
    head = stream_headers(service.compute_type, n_characters)
    try:
        await exchange.open_stream(head, error_events, late=late)
        await together([follow(*one) for one in enumerate(generations)])
    finally:
        for generation in generations:
            generation.cancel()
    await exchange.close([*last, *ending(), DONE])


def openai_error_events(error: ServerError) -> Events:
    """Return the last events of a stream that fails."""
    return [OpenAIErrorBody(openai_error(error, in_stream=True)), DONE]


def tgi_error_events(error: ServerError) -> Events:
    """Return the last events in TGI's form."""
    return [StreamError(StreamFailure(str(error), TGI_STREAM_STATUS)), DONE]
