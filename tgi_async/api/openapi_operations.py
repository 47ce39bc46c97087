"""What each route takes and answers, for the OpenAPI document.

A test holds that every route of the application is here, and another one that nothing is answered
that is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tgi_async.api.limits import Limits
from tgi_async.api.schemas import cloud
from tgi_async.api.schemas.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from tgi_async.api.schemas.chat_tokenize import ChatTokenizeResponse
from tgi_async.api.schemas.completions import Completion, CompletionRequest
from tgi_async.api.schemas.errors import ErrorBody, OpenAIErrorBody, StreamError
from tgi_async.api.schemas.generate import (
    CompatGenerateRequest,
    GenerateRequest,
    GenerateResponse,
    SimpleToken,
    StreamResponse,
)
from tgi_async.api.schemas.info import Info, ModelInfo, ModelsInfo
from tgi_async.api.schemas.tokenize import (
    ChatTokenizeRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    PromptTokenizeRequest,
    TokenizeResponse,
)

GENERATION_FAILURES = ("424", "429", "500", "503")


class Operation(NamedTuple):
    """One method of one path. Where there are several types, each is an alternative."""

    method: str
    path: str
    tag: str
    summary: str
    body: tuple[Any, ...] = ()
    parts: tuple[Any, ...] = ()
    """What a body refers to by name."""
    reply: tuple[Any, ...] = ()
    """JSON with status 200."""
    events: tuple[Any, ...] = ()
    """The data of one event with status 200; the OpenAI routes' last one is `[DONE]`."""
    text: str = ""
    """Media type of a reply with status 200 that is no JSON."""
    success: str = "Done."
    failures: tuple[str, ...] = ()
    """Statuses answered with an error in JSON, 422 apart."""
    refuses: bool = True
    """Whether a 422 may be JSON."""
    openai_errors: bool = False
    """Whether errors are OpenAI's: JSON always, and 400 for 422."""
    keyed: bool = False
    timed: bool = False
    """Whether a reply has the `x-*` headers."""

    @property
    def error(self) -> Any:
        """The body of an error."""
        return OpenAIErrorBody if self.openai_errors else ErrorBody

    @property
    def types(self) -> tuple[Any, ...]:
        return (*self.body, *self.parts, *self.reply, *self.events, self.error)


def operations(limits: Limits) -> list[Operation]:
    """All operations of a server with these settings, but for those that Vertex AI names."""
    kserve = _kserve(limits) if limits.kserve else ()
    return [
        *GENERATE,
        *_tokenize(limits),
        *_openai(limits),
        *_cloud(limits),
        *OPERATE,
        *kserve,
    ]


def _generation(path: str, tag: str, summary: str, **fields: Any) -> Operation:
    fields = {"keyed": True, "failures": GENERATION_FAILURES, **fields}
    return Operation("post", path, tag, summary, **fields)


_TOKENS = (StreamResponse, ErrorBody)

GENERATE = (
    _generation(
        "/generate",
        "generate",
        "Generate tokens",
        body=(GenerateRequest,),
        reply=(GenerateResponse,),
        timed=True,
    ),
    _generation(
        "/generate_stream",
        "generate",
        "Generate a stream of tokens",
        body=(GenerateRequest,),
        events=_TOKENS,
        success="A stream. It begins before anything is checked: an error is its last event.",
        refuses=False,
        failures=(),
        timed=True,
    ),
    _generation(
        "/",
        "generate",
        "Generate tokens, as a stream if `stream` is true",
        body=(CompatGenerateRequest,),
        reply=(list[GenerateResponse],),
        events=_TOKENS,
        timed=True,
    ),
)


def _tokenize(limits: Limits) -> tuple[Operation, ...]:
    dialect = limits.dialect
    more: dict[str, Any] = {
        "body": (GenerateRequest, PromptTokenizeRequest, ChatTokenizeRequest),
        "reply": (list[SimpleToken], TokenizeResponse),
    }
    own: dict[str, Any] = {"body": (GenerateRequest,), "reply": (list[SimpleToken],)}
    failures = ("429", "500")
    return (
        _generation(
            "/tokenize",
            "tokenize",
            "Tokenize a text"
            + (", in TGI's form or in vLLM's, or a chat" if dialect.tokenizes_chats else ""),
            **(more if dialect.tokenizes_chats else own),
            failures=failures,
        ),
        _generation(
            "/detokenize",
            "tokenize",
            "The text of tokens",
            body=(DetokenizeRequest,),
            reply=(DetokenizeResponse,),
            failures=failures,
        ),
        _generation(
            "/chat_tokenize",
            "tokenize",
            "The prompt of a chat, and its tokens",
            body=(ChatRequest,),
            reply=(ChatTokenizeResponse,),
            failures=failures,
            keyed=dialect.guards_all_work,
        ),
    )


def _stream_error(limits: Limits) -> Any:
    return OpenAIErrorBody if limits.dialect.begins_streams_late else StreamError


def _openai(limits: Limits) -> tuple[Operation, ...]:
    ours = limits.dialect.answers_errors_like_openai
    return (
        _generation(
            "/v1/chat/completions",
            "openai",
            "Answer a chat, as a stream if `stream` is true; `[DONE]` ends it",
            body=(ChatRequest,),
            reply=(ChatCompletion,),
            events=(ChatCompletionChunk, _stream_error(limits)),
            openai_errors=ours,
            timed=True,
        ),
        _generation(
            "/v1/completions",
            "openai",
            "Go on with one text or several, as a stream if `stream` is true; `[DONE]` ends it",
            body=(CompletionRequest,),
            reply=(Completion,),
            events=(Completion, _stream_error(limits)),
            openai_errors=ours,
            timed=True,
        ),
        Operation("get", "/v1/models", "openai", "The model's names", reply=(ModelsInfo,)),
        Operation(
            "get",
            "/v1/models/{model}",
            "openai",
            "The model under one name",
            reply=(ModelInfo,),
            openai_errors=ours,
            failures=("404",),
        ),
    )


def _cloud(limits: Limits) -> tuple[Operation, ...]:
    return (
        _generation(
            "/invocations",
            "cloud",
            "SageMaker's route: does what `/`, chat or completions does, by the body's shape",
            body=(CompatGenerateRequest, ChatRequest, CompletionRequest),
            reply=(list[GenerateResponse], ChatCompletion, Completion),
            events=(*_TOKENS, ChatCompletionChunk, Completion, _stream_error(limits)),
            timed=True,
        ),
        _generation(
            "/vertex",
            "cloud",
            "Vertex AI's route: a text for each instance",
            body=(cloud.VertexRequest,),
            parts=(cloud.VertexInstance, ChatRequest),
            reply=(cloud.VertexResponse,),
        ),
    )


_HEALTHY: dict[str, Any] = {"success": "There is a worker to serve.", "failures": ("503",)}
OPERATE = (
    Operation("get", "/", "operate", "Whether the server serves", **_HEALTHY),
    Operation("get", "/health", "operate", "Whether the server serves", **_HEALTHY),
    Operation("get", "/health/ready", "operate", "Whether the server serves", **_HEALTHY),
    Operation("get", "/health/live", "operate", "Whether the process answers"),
    Operation("get", "/ping", "operate", "Whether the server serves", **_HEALTHY),
    Operation("get", "/info", "operate", "The model and the limits", reply=(Info,)),
    Operation("get", "/metrics", "operate", "Prometheus metrics", text="text/plain"),
    Operation("get", "/docs", "operate", "This document, to be read", text="text/html"),
    Operation("get", "/docs/", "operate", "This document, to be read", text="text/html"),
    Operation("get", "/api-doc/openapi.json", "operate", "This document", reply=(dict[str, Any],)),
)


def _kserve(limits: Limits) -> tuple[Operation, ...]:
    model = "/v2/models/{model}/versions/{version}"
    ready: dict[str, Any] = {"reply": (cloud.Readiness,), **_HEALTHY}
    return (
        _generation(
            f"{model}/infer",
            "kserve",
            "A text for each input",
            body=(cloud.InferenceRequest,),
            reply=(cloud.InferenceResponse,),
            keyed=limits.dialect.guards_all_work,
        ),
        Operation("get", model, "kserve", "The model", reply=(cloud.Metadata,)),
        Operation("get", f"{model}/ready", "kserve", "Whether the model serves", **ready),
        Operation("get", "/v2/health/ready", "kserve", "Whether the server serves", **ready),
        Operation(
            "get",
            "/v2/health/live",
            "kserve",
            "Whether the process answers",
            reply=(cloud.Liveness,),
        ),
        Operation("get", "/v2", "kserve", "The server", reply=(cloud.Metadata,)),
    )
