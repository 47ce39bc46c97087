"""The edge of a route that takes JSON: body in, handler run, result out, client watched.

While the handler works, the connection is watched. A client that goes away, at whatever moment,
cancels the handler, and the handler's `finally` clauses give back permits and blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tgi_async.api.body import BodyRefused, read_json_body
from tgi_async.api.encoding import encode
from tgi_async.api.error_reply import ErrorForm, as_tgi
from tgi_async.api.exchange import Exchange
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import EventStream, Result
from tgi_async.api.service import Service
from tgi_async.api.unknown_fields import unknown_fields
from tgi_async.api.unsupported import ignored
from tgi_async.errors import ServerError
from tgi_async.fair_threads import CLIENT

T = TypeVar("T")
Handler = Callable[[Service, T, RequestContext], Awaitable[Result]]
log = logging.getLogger(__name__)


class Endpoint(Generic[T]):
    """An ASGI application for one route.

    `decode` makes the handler's input of a body, or raises BodyRefused. `counted`: whether its
    requests are in `tgi_request_*` (the generating routes are). `error_form`: how errors are told.
    """

    def __init__(
        self,
        service: Service,
        handler: Handler[T],
        decode: Callable[[bytes], T],
        *,
        counted: bool = True,
        error_form: ErrorForm = as_tgi,
    ) -> None:
        self._service = service
        self._handler = handler
        self._decode = decode
        self._counted = counted
        self._error_form = error_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, send, self._error_form)
        try:
            raw = await read_json_body(scope, receive, self._service.limits)
            exchange.context.n_bytes = len(raw)
            body = self._decode(raw)
            exchange.context.unknown = unknown_fields(raw, type(body))
            del raw  # which would stay as long as the request
        except ClientDisconnect:
            return
        except BodyRefused as refused:
            await exchange.fail(refused)
            return
        exchange.context.ignore(ignored(exchange.context.unknown))
        work = asyncio.create_task(self._work(body, exchange))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            while not work.done():
                wait = max(exchange.seconds_to_keep_alive(), 0.0)
                await asyncio.wait((work, gone), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not exchange.finished:
                    return
                if exchange.finished:
                    await work
                else:
                    await exchange.keep_alive()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _work(self, body: T, exchange: Exchange) -> None:
        context = exchange.context
        CLIENT.set(context.peer)
        count = self._service.metrics if self._counted else None
        if count:
            count.request_received()
        try:
            result = await self._handler(self._service, body, context)
            if isinstance(result, EventStream):
                await result.write(exchange)
            else:
                await exchange.reply(encode(result.body), headers=result.headers)
            if count:
                count.request_succeeded(time.monotonic() - context.started)
        except asyncio.CancelledError:
            if count:
                count.request_failed("dropped")
            raise
        except ServerError as error:
            if count:
                count.request_failed(error.failure, error)
            await exchange.fail(error)
        except Exception as error:
            log.exception("A request failed because of an error in the server")
            internal = ServerError("Internal server error")
            internal.__cause__ = error
            if count:
                count.request_failed("generation", internal)
            await exchange.fail(internal)
        finally:
            self._service.ignored_fields.note(context.ignored)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
