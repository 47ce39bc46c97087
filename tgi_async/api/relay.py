"""Relay what a generation emits to the client."""

from __future__ import annotations

from collections.abc import Callable

from tgi_async.api.encoding import Events
from tgi_async.api.engine_client import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.generation import Emitted


async def relay(
    generation: Generation, exchange: Exchange, events_of: Callable[[Emitted], Events]
) -> Events:
    """Write what a generation emits, as it comes. Return its last events, which are not written.

    A client that keeps up is written to in the engine's own turn, with no task, future or queue for
    each token. One that does not is waited for here; what is emitted meanwhile comes in one piece.

    Raises:
        ServerError: the generation failed.
    """

    def take(emitted: Emitted) -> bool:
        if not exchange.keeps_up():
            return False
        exchange.write_now(events_of(emitted))
        return True

    generation.sink = take
    last: Events = ()
    try:
        async for emitted in generation:
            last = events_of(emitted)
            if last and emitted.finish_reason is None:
                await exchange.write(last)
    finally:
        generation.sink = None  # Its events may come to hold the generation.
    return last
