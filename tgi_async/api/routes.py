"""Which route is whose, and who may call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import msgspec
from starlette.routing import Route
from starlette.types import ASGIApp

from tgi_async.api.auth import RequireKey
from tgi_async.api.body import BodyRefused, decode_json
from tgi_async.api.chat import chat
from tgi_async.api.chat_tokenize import chat_tokenize
from tgi_async.api.completions import completions
from tgi_async.api.docs import Docs
from tgi_async.api.endpoint import Endpoint, Handler
from tgi_async.api.error_reply import as_tgi, form_of
from tgi_async.api.generate import compat_generate, generate, generate_stream
from tgi_async.api.kserve import KServe, infer
from tgi_async.api.numbers import respelled
from tgi_async.api.operations import Operations
from tgi_async.api.sagemaker import SHAPES, invocations
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.cloud import InferenceRequest, VertexRequest
from tgi_async.api.schemas.completions import CompletionRequest
from tgi_async.api.schemas.generate import CompatGenerateRequest, GenerateRequest
from tgi_async.api.schemas.tokenize import DetokenizeRequest
from tgi_async.api.service import Service
from tgi_async.api.tokenize import SHAPES as SHAPES_OF_TOKENIZE
from tgi_async.api.tokenize import detokenize, tokenize
from tgi_async.api.vertex import vertex
from tgi_async.errors import StartError

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
MODEL = "/v2/models/{model}/versions/{version}"


def routes(service: Service, environment: Mapping[str, str]) -> list[Route]:
    """All routes of this server. `environment` has the names that Vertex AI gives to two of them.

    Raises:
        StartError: one of these names is no path.
    """
    keyed, open_to_all = _Post(service, keyed=True), _Post(service, keyed=False)
    dialect = service.limits.dialect
    # Open in TGI, though each costs as much as the routes that it guards.
    guarded = keyed if dialect.guards_all_work else open_to_all
    openais = _lenient_json if dialect.reads_respelled_numbers else _json
    operations = Operations(service)
    docs = Docs(service.limits, service.version)
    found = [
        keyed("/v1/chat/completions", chat, openais(ChatRequest)),
        keyed("/v1/completions", completions, openais(CompletionRequest)),
        keyed("/generate_stream", generate_stream, _json(GenerateRequest)),
        keyed("/generate", generate, _json(GenerateRequest)),
        keyed("/", compat_generate, _json(CompatGenerateRequest)),
        keyed("/invocations", invocations, SHAPES.decode),
        keyed("/vertex", vertex, _json(VertexRequest)),
        keyed(
            "/tokenize",
            tokenize,
            SHAPES_OF_TOKENIZE.decode if dialect.tokenizes_chats else _json(GenerateRequest),
            counted=False,
        ),
        keyed("/detokenize", detokenize, _json(DetokenizeRequest), counted=False),
        guarded("/chat_tokenize", chat_tokenize, _json(ChatRequest), counted=False),
        Route("/", operations.health),
        Route("/health", operations.health),
        Route("/health/ready", operations.health),
        Route("/health/live", operations.live),
        Route("/ping", operations.health),
        Route("/info", operations.info),
        Route("/v1/models", operations.models),
        Route("/v1/models/{model:path}", operations.model),
        Route("/metrics", operations.metrics),
        Route("/docs", docs.page),
        Route("/docs/", docs.page),
        Route("/api-doc/openapi.json", docs.document),
    ]
    if service.limits.kserve:
        kserve = KServe(service)
        found += [
            guarded(f"{MODEL}/infer", infer, _json(InferenceRequest)),
            Route(MODEL, kserve.model),
            Route(f"{MODEL}/ready", kserve.ready),
            Route("/v2/health/ready", kserve.ready),
            Route("/v2/health/live", kserve.live),
            Route("/v2", kserve.server),
        ]
    # Before the others: Vertex AI may name a route that is there, and cannot bear a key.
    if path := _path(environment, "AIP_PREDICT_ROUTE"):
        found.insert(0, open_to_all(path, vertex, _json(VertexRequest)))
    if path := _path(environment, "AIP_HEALTH_ROUTE"):
        found.insert(0, Route(path, operations.health))
    return found


class _Post:
    """Makes routes that take JSON."""

    def __init__(self, service: Service, *, keyed: bool) -> None:
        self._service = service
        self._api_key = service.limits.api_key if keyed else None

    def __call__(
        self,
        path: str,
        handler: Handler[T],
        decode: Callable[[bytes], T],
        *,
        counted: bool = True,
    ) -> Route:
        limits = self._service.limits
        # Vertex AI may name a route below /v1, which is TGI's all the same.
        form = as_tgi if handler is vertex else form_of(path, limits)
        app: ASGIApp = Endpoint(self._service, handler, decode, counted=counted, error_form=form)
        if self._api_key:
            app = RequireKey(
                app, self._api_key, any_case=limits.dialect.folds_case_of_key, error_form=form
            )
        return Route(path, app, methods=["POST"])


def _json(body_type: type[T]) -> Callable[[bytes], T]:
    return partial(decode_json, msgspec.json.Decoder(body_type))


def _lenient_json(body_type: type[S]) -> Callable[[bytes], S]:
    """The same for a body whose numbers may be spelled in other ways."""
    decode = _json(body_type)

    def decode_leniently(body: bytes) -> S:
        try:
            return decode(body)
        except BodyRefused as refused:
            other = respelled(body, body_type) if refused.status == 422 else None
            if other is None:
                raise
        return decode(other)

    return decode_leniently


def _path(environment: Mapping[str, str], name: str) -> str | None:
    path = environment.get(name)
    if path and not path.startswith("/"):
        raise StartError(
            f"The environment variable {name} must be a path that begins with a slash. "
            f"Given: {path!r}."
        )
    return path
