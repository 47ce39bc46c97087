"""How the OpenAI routes answer: errors and streams of several choices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from tgi_async.api.engine import Generation
from tgi_async.api.error_reply import openai_error
from tgi_async.api.exchange import DONE, Exchange, event
from tgi_async.api.finished import together
from tgi_async.api.relay import relay
from tgi_async.api.schemas.errors import OpenAIErrorBody, StreamError, StreamFailure
from tgi_async.api.service import Service
from tgi_async.api.timing import stream_headers
from tgi_async.errors import Overloaded, ServerError, ValidationError
from tgi_async.generation import Emitted

TGI_STREAM_STATUS = 422
"""What TGI says in a stream, whatever went wrong."""


@asynccontextmanager
async def errors_told(service: Service, exchange: Exchange, streamed: bool) -> AsyncIterator[None]:
    """What is wrong with a request has its status, also where a stream was asked for.

    TGI begins that stream, and tells it there.
    """
    try:
        yield
    except (ValidationError, Overloaded):
        if streamed and not service.limits.dialect.begins_streams_late and not exchange.streaming:
            await exchange.open_stream(stream_headers(service.compute_type, 0), tgi_error_event)
        raise


async def stream_choices(
    service: Service,
    exchange: Exchange,
    generations: Sequence[Generation],
    n_characters: int,
    events_of: Callable[[int, Emitted], bytes],
    ending: Callable[[], bytes],
) -> None:
    """Stream all generations at once, each as a choice, in chunks as they come.

    `events_of` makes the events of what the generation of an index emitted, `ending` those that
    follow when all have ended. The first failure ends the stream and the other generations. What
    fails while all still wait has its own status; TGI begins its streams before.
    """
    n_left = len(generations)
    last = b""

    async def follow(index: int, generation: Generation) -> None:
        nonlocal n_left, last
        n_generated = 0

        def events(emitted: Emitted) -> bytes:
            nonlocal n_generated
            n_generated += len(emitted.tokens)
            return events_of(index, emitted)

        ending_of_choice = await relay(generation, exchange, events)
        n_left -= 1
        if n_left:
            await exchange.write(ending_of_choice)
        else:
            last = ending_of_choice
        service.account(generation.timings, n_generated)

    late = service.limits.dialect.begins_streams_late
    told = error_event if late else tgi_error_event
    head = stream_headers(service.compute_type, n_characters)
    try:
        await exchange.open_stream(head, told, late=late)
        await together([follow(*one) for one in enumerate(generations)])
    finally:
        for generation in generations:
            generation.cancel()
    await exchange.close(last + ending() + DONE)


def error_event(error: ServerError) -> bytes:
    """The last events of a stream that fails."""
    return event(OpenAIErrorBody(openai_error(error, in_stream=True))) + DONE


def tgi_error_event(error: ServerError) -> bytes:
    """The same in TGI's form."""
    return event(StreamError(StreamFailure(str(error), TGI_STREAM_STATUS))) + DONE
