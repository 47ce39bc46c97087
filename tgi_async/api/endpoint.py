"""Endpoints decode requests, run their handlers and encode the results.

While the handler works, the connection is watched. A client that goes away, at whatever moment,
cancels the handler, and the handler's `finally` clauses give back permits and blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tgi_async.api.body import BodyRefused, read_json_body
from tgi_async.api.decoding_turns import LARGE_BODY
from tgi_async.api.encoding import encode
from tgi_async.api.exchange import Exchange
from tgi_async.api.operation import Get, Post
from tgi_async.api.result import EventStream, TextReply
from tgi_async.api.resume.exchange import ResumableExchange
from tgi_async.api.service import Service
from tgi_async.api.timeout import timeout_of
from tgi_async.api.unknown_fields import unknown_fields
from tgi_async.api.unsupported import ignored
from tgi_async.errors import ServerError
from tgi_async.fair_threads import CLIENT
from tgi_async.telemetry.metrics import Metrics

T = TypeVar("T")
log = logging.getLogger(__name__)


def get_endpoint(service: Service, operation: Get) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a route that takes no body."""
    error_form = operation.error_form(service.limits.dialect)

    async def endpoint(request: Request) -> Response:
        try:
            result = operation.handler(service, request.path_params)
        except ServerError as error:
            return error_form(error).response()
        if result is None:
            return Response()
        if isinstance(result, TextReply):
            return Response(result.text, headers={"content-type": result.content_type})
        return Response(encode(result.body), media_type="application/json")

    return endpoint


class Endpoint(Generic[T]):
    """An ASGI application for a route that takes JSON."""

    def __init__(self, service: Service, operation: Post[T]) -> None:
        self._service = service
        self._handler = operation.handler
        self._body = operation.body
        self._counted = operation.generates
        self._path = operation.path
        self._streams = bool(operation.events)
        self._error_form = operation.error_form(service.limits.dialect)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange(scope, send)
        try:
            raw = await read_json_body(scope, receive, self._service.limits)
            exchange.context.n_bytes = len(raw)
            if len(raw) <= LARGE_BODY:
                body = self._decode(raw, exchange)
            else:
                body = await self._decode_in_turn(raw, exchange, receive)
            if isinstance(exchange, ResumableExchange):
                exchange.asked(self._path, raw, self._service.reading)
            del raw  # which would stay as long as the request
        except ClientDisconnect:
            return
        except BodyRefused as refused:
            await exchange.fail(refused)
            return
        exchange.context.ignore(ignored(exchange.context.unknown))
        if isinstance(exchange, ResumableExchange):
            await self._serve_resumable(body, exchange, receive)
            return
        count = self._service.metrics if self._counted else None
        work = asyncio.create_task(self._work(body, exchange, count))
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
            await asyncio.wait((work, gone))
            for task in (work, gone):
                # It keeps the error that ended it, and so all of the request, until that is read.
                with suppress(asyncio.CancelledError, Exception):
                    task.result()

    def _decode(self, raw: bytes, exchange: Exchange) -> T:
        """Read a body. Raises BodyRefused."""
        body = self._body.decode(raw)
        exchange.context.unknown = unknown_fields(raw, type(body))
        return body

    async def _decode_in_turn(self, raw: bytes, exchange: Exchange, receive: Receive) -> T:
        """Read a large body when it is this client's turn. Raises BodyRefused, ClientDisconnect."""
        turns, seconds = self._service.decoding_turns, 0.0
        turn = turns.wait(exchange.context.client)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            began = time.monotonic()
            try:
                return self._decode(raw, exchange)
            finally:
                seconds = time.monotonic() - began
        finally:
            turns.leave(turn, seconds)
            gone.cancel()
            await asyncio.wait((gone,))

    def _exchange(self, scope: Scope, send: Send) -> Exchange:
        streams = self._service.streams
        if streams is None or not self._streams:
            return Exchange(scope, send, self._error_form)
        return ResumableExchange(scope, send, self._error_form, streams)

    async def _serve_resumable(
        self, body: T, exchange: ResumableExchange, receive: Receive
    ) -> None:
        """Answer at a line, which may be lost before the stream ends, or be another stream's."""
        line, count = exchange.line, self._service.metrics
        assert line is not None
        count.request_received()
        exchange.answer(self._work(body, exchange, None))
        pump = asyncio.create_task(line.pump())
        gone = asyncio.create_task(_disconnected(receive))
        try:
            while not pump.done():
                wait = max(line.stream.seconds_to_keep_alive(), 0.0)
                await asyncio.wait((pump, gone), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not pump.done():
                    await line.stream.keep_alive()
        finally:
            pump.cancel()
            gone.cancel()
            await asyncio.wait((pump, gone))
            for task in (pump, gone):
                with suppress(asyncio.CancelledError, Exception):
                    task.result()
            stream = line.stream
            await stream.detach(line)
            if stream.failure is not None:
                count.request_failed(stream.failure.failure, stream.failure)
            elif line.is_complete:
                count.request_succeeded(time.monotonic() - exchange.context.started)
            else:
                count.request_failed("dropped")

    async def _work(self, body: T, exchange: Exchange, count: Metrics | None) -> None:
        """Answer a request, and count it."""
        context = exchange.context
        CLIENT.set(context.client)
        if count:
            count.request_received()
        try:
            most = self._service.limits.request_timeout
            context.timeout = timeout_of(exchange.asked_timeouts, most)
            result = await self._handler(self._service, body, context)
            if isinstance(result, EventStream):
                await exchange.streamed(result.write)
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
            log.exception("a request failed by an error of the server's own: it gets a 500")
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
