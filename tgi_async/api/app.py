"""The HTTP application: which route is whose, who may call it, from where."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tgi_async.api.auth import RequireKey
from tgi_async.api.chat import chat
from tgi_async.api.completions import completions
from tgi_async.api.endpoint import Endpoint, Handler
from tgi_async.api.engine import Engine
from tgi_async.api.generate import compat_generate, generate, generate_stream
from tgi_async.api.limits import Limits
from tgi_async.api.operations import Operations
from tgi_async.api.permits import Permits
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.completions import CompletionRequest
from tgi_async.api.schemas.generate import CompatGenerateRequest, GenerateRequest
from tgi_async.api.service import Service
from tgi_async.api.tokenize import tokenize
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

T = TypeVar("T")


def create_app(
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    limits: Limits,
    metrics: Metrics,
    compute_type: str | None = None,
) -> Starlette:
    """The ASGI application.

    `compute_type` is what `x-compute-type` says, e.g. `1-nvidia-h200`; by default the environment
    variable COMPUTE_TYPE, or `cpu`.
    """
    service = Service(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        limits=limits,
        metrics=metrics,
        compute_type=compute_type or os.environ.get("COMPUTE_TYPE", "cpu"),
        permits=Permits(limits.max_concurrent_requests),
        tokenize_permits=Permits(limits.max_concurrent_requests),
        pool=ThreadPoolExecutor(limits.validation_workers, thread_name_prefix="text"),
    )

    def endpoint(handler: Handler[T], body_type: type[T], *, counted: bool = True) -> ASGIApp:
        inner = Endpoint(service, handler, body_type, counted=counted)
        return RequireKey(inner, limits.api_key) if limits.api_key else inner

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.pool.shutdown(wait=False, cancel_futures=True)

    operations = Operations(service)
    app = Starlette(
        routes=[
            _post("/v1/chat/completions", endpoint(chat, ChatRequest)),
            _post("/v1/completions", endpoint(completions, CompletionRequest)),
            _post("/generate_stream", endpoint(generate_stream, GenerateRequest)),
            _post("/generate", endpoint(generate, GenerateRequest)),
            _post("/", endpoint(compat_generate, CompatGenerateRequest)),
            _post("/tokenize", endpoint(tokenize, GenerateRequest, counted=False)),
            Route("/", operations.health),
            Route("/health", operations.health),
            Route("/info", operations.info),
            Route("/v1/models", operations.models),
            Route("/metrics", operations.metrics),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=limits.cors_allow_origin or ("*",),
                allow_methods=("GET", "POST"),
                # TGI allows content-type only, with which a browser cannot send the API key.
                allow_headers=("authorization", "content-type"),
            )
        ],
        exception_handlers={HTTPException: _empty},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _post(path: str, app: ASGIApp) -> Route:
    return Route(path, app, methods=["POST"])


async def _empty(request: Request, error: Exception) -> Response:
    """404 and 405 have no body."""
    if not isinstance(error, HTTPException):
        raise error
    return Response(status_code=error.status_code, headers=error.headers)
