"""The HTTP application: its routes, CORS, and replies where no route fits."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from tgi_async.api.admission import Admission
from tgi_async.api.cors import Cors
from tgi_async.api.engine_client import EngineClient
from tgi_async.api.error_reply import form_of
from tgi_async.api.limits import Limits
from tgi_async.api.permits import Permits
from tgi_async.api.request_id import RequestIds
from tgi_async.api.resume.streams import Streams
from tgi_async.api.routes import routes
from tgi_async.api.service import Service
from tgi_async.errors import MethodNotAllowed, NotFound, ServerError
from tgi_async.fair_threads import FairThreads
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.images.images import Images
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

OPENAI_ROUTES = "/v1/chat/completions, /v1/completions and /v1/models"
"""Named in the error for other paths, such as /v1/responses: the OpenAI routes that there are."""
OPENAI_NAMES = ("/chat/completions", "/completions", "/models", "/responses", "/embeddings")
"""Ends of the paths of OpenAI's routes, whatever the client's base URL is."""


def create_app(
    *,
    engine: EngineClient,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    limits: Limits,
    metrics: Metrics,
    checker: GrammarChecker | None = None,
    chat_stop_token_ids: tuple[int, ...] = (),
    images: Images | None = None,
) -> Starlette:
    """Return the ASGI application. Without `checker`, requests for a grammar are refused, and
    without `images` those with images.

    `chat_stop_token_ids` end the answers of a chat, besides the model's own ends.

    `x-compute-type` says what the environment variable COMPUTE_TYPE does, e.g. `1-nvidia-h200`; by
    default `cpu`.

    Raises:
        StartError: an environment variable that names a route does not hold a path. Its lifespan
            raises it where the tokenizer cannot do without the names of image tokens.
    """
    service = Service(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        limits=limits,
        metrics=metrics,
        compute_type=os.environ.get("COMPUTE_TYPE") or "cpu",
        admission=Admission(engine, limits),
        tokenize_permits=Permits(limits.max_concurrent_requests),
        pool=FairThreads(limits.validation_workers, "text"),
        checker=checker,
        chat_stop_token_ids=chat_stop_token_ids,
        images=images,
        streams=Streams(limits.resume_window, metrics) if limits.resume_window else None,
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if checker is not None:
            service.pool.submit(checker.prepare)
        if service.image_prompts is not None:
            await service.in_pool(service.image_prompts.prepare)
        yield
        if service.streams is not None:
            await service.streams.close()
        service.pool.shutdown(wait=False, cancel_futures=True)
        if chat_template is not None:
            chat_template.close()
        if checker is not None:
            checker.close()

    app = Starlette(
        routes=routes(service, os.environ),
        middleware=[Middleware(RequestIds), Middleware(Cors, limits.cors_allow_origin)],
        exception_handlers={HTTPException: _unrouted(limits)},
        lifespan=lifespan,
    )
    app.state.streams = service.streams
    app.router.redirect_slashes = False
    return app


def _unrouted(limits: Limits) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return the handler for requests without a route; a 405 names all methods of the path.

    OPTIONS asks for that list, so it is not an error.
    """

    async def answer(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        path, method = request.scope["path"], request.method
        if method == "OPTIONS" and path == "*":
            return Response(headers={"allow": "GET, HEAD, OPTIONS, POST"})
        here, form = "", form_of(path, limits)
        if path.startswith("/v1/"):
            here = f". Here are {OPENAI_ROUTES}"
        elif path.rstrip("/").endswith(OPENAI_NAMES):
            here = f". Here are {OPENAI_ROUTES}: the base URL of a client of OpenAI's ends in /v1"
            form = form_of("/v1", limits)
        refused: ServerError = NotFound(f"There is no {path[:200]} here{here}", code="unknown_url")
        if error.status_code == 405:
            allowed = ", ".join(sorted({*_methods(request), "OPTIONS"}))
            if method == "OPTIONS":
                return Response(headers={"allow": allowed})
            refused = MethodNotAllowed(
                f"{path[:200]} does not take {method[:20]}. Allowed: {allowed}", allowed
            )
        return form(refused).response()

    return answer


def _methods(request: Request) -> Iterator[str]:
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            yield from route.methods
