"""`/generate`, `/generate_stream` and `/`, TGI's own routes."""

from __future__ import annotations

from functools import partial

from msgspec import UNSET, structs

from tgi_async.api.body import JsonBody
from tgi_async.api.encoding import Events
from tgi_async.api.error_schema import ErrorBody
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import collect_all
from tgi_async.api.generate.details import DetailsWriter
from tgi_async.api.generate.schema import (
    CompatGenerateRequest,
    GenerateRequest,
    GenerateResponse,
    PrefillToken,
    StreamDetails,
    StreamResponse,
)
from tgi_async.api.operation import Post
from tgi_async.api.parameters import (
    GenerateParameters,
    check_best_of,
    check_streamed,
    random_seed,
)
from tgi_async.api.relay import relay
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import EventStream, Reply
from tgi_async.api.service import PromptSource, Service
from tgi_async.api.timing import reply_headers, stream_headers
from tgi_async.errors import IncompleteGeneration, ServerError
from tgi_async.generation import Emitted, FinishReason, GenerationRequest, Token


async def generate(
    service: Service, body: GenerateRequest, context: RequestContext
) -> Reply[GenerateResponse]:
    """Answer with one object."""
    return await _whole(service, body.inputs, body.given, context)


async def generate_stream(
    service: Service, body: GenerateRequest, context: RequestContext
) -> EventStream:
    """Answer with an event for each token."""
    return EventStream(partial(_stream, service, body.inputs, body.given, context))


async def compat_generate(
    service: Service, body: CompatGenerateRequest, context: RequestContext
) -> Reply[list[GenerateResponse]] | EventStream:
    """Answer `/` with a stream, or a list of one object. The prompt is shown by default.

    Before a text that follows a grammar, which it would break, only TGI shows it.
    """
    parameters = body.given
    if parameters.return_full_text is None:
        tag = service.pipeline_tag
        follows = parameters.grammar is not None
        shown = not follows or service.limits.dialect.shows_prompt_before_grammar
        full = tag is None or tag == "text-generation"
        parameters = structs.replace(parameters, return_full_text=full and shown)
    if body.stream:
        return EventStream(partial(_stream, service, body.inputs, parameters, context))
    reply = await _whole(service, body.inputs, parameters, context)
    return Reply([reply.body], reply.headers)


async def _whole(
    service: Service, inputs: str, parameters: GenerateParameters, context: RequestContext
) -> Reply[GenerateResponse]:
    check_best_of(parameters, service.limits)
    best_of = parameters.best_of or 1
    wants_details = parameters.details or parameters.decoder_input_details
    prefill: list[PrefillToken] = []
    async with service.admission.take(context, best_of):
        request = await service.request(
            PromptSource(inputs),
            parameters,
            context,
            logprobs=wants_details or best_of > 1,
            include_stop=True,
        )
        writer = DetailsWriter(service.tokenizer, request)
        finished = await collect_all(service.submit_all(reseeded(request, best_of)))
        for one in finished:
            service.account(one.timings, len(one.tokens))
        if parameters.decoder_input_details:
            prefill = await service.in_pool(writer.prefill, finished[0])
    best, *others = sorted(finished, key=lambda one: one.mean_logprob, reverse=True)
    shown = inputs if parameters.return_full_text else ""
    response = GenerateResponse(shown + best.text)
    if wants_details:
        details = writer.details(best, others, prefill, shown)
        response = GenerateResponse(shown + best.text, details)
    headers = reply_headers(
        context,
        service.compute_type,
        len(inputs),
        [request],
        [best.timings],
        len(best.tokens),
        service.gained([best]),
    )
    return Reply(response, headers)


async def _stream(
    service: Service,
    inputs: str,
    parameters: GenerateParameters,
    context: RequestContext,
    exchange: Exchange,
) -> None:
    # TGI's streams begin before anything is checked: its clients look for errors in events.
    await exchange.open_stream(stream_headers(service.compute_type, len(inputs)), _error_events)
    check_streamed(parameters)
    async with service.admission.take(context):
        request = await service.request(
            PromptSource(inputs), parameters, context, logprobs=True, include_stop=True
        )
        generation = service.submit(request)
        events = _TokenEvents(service, request, parameters, inputs)
        try:
            last = await relay(generation, exchange, exchange.numbered(events.of, each=True))
        finally:
            generation.cancel()
        service.account(generation.timings, events.n_tokens)
    await exchange.close(last)


class _TokenEvents:
    """Turns what a generation emits into events, one for each token."""

    def __init__(
        self,
        service: Service,
        request: GenerationRequest,
        parameters: GenerateParameters,
        inputs: str,
    ) -> None:
        self._writer = DetailsWriter(service.tokenizer, request)
        self._request = request
        self._details = parameters.details
        self._with_top_tokens = bool(parameters.top_n_tokens)
        self._texts = [inputs] if parameters.return_full_text else []
        self.n_tokens = 0

    def of(self, emitted: Emitted) -> Events:
        """Return an event for each token of `emitted`."""
        tokens = emitted.tokens
        if emitted.finish_reason is None:
            return [self._event(token) for token in tokens]
        events = [self._event(token) for token in tokens[:-1]]
        events.append(self._event(tokens[-1], emitted.finish_reason))
        return events

    def _event(self, token: Token, reason: FinishReason | None = None) -> StreamResponse:
        """Return one event, the last one if there is a reason."""
        self._texts.append(token.text)
        self.n_tokens += 1
        return StreamResponse(
            index=self.n_tokens,
            token=self._writer.token(token),
            top_tokens=self._writer.top_tokens(token) if self._with_top_tokens else UNSET,
            generated_text="".join(self._texts) if reason else None,
            details=self._details_of_end(reason) if reason and self._details else None,
        )

    def _details_of_end(self, reason: FinishReason) -> StreamDetails:
        return StreamDetails(
            finish_reason=reason,
            generated_tokens=self.n_tokens,
            seed=self._writer.shown_seed(self._request.sampling.seed),
            input_length=len(self._request.prompt),
        )


def _error_events(error: ServerError) -> Events:
    if isinstance(error, IncompleteGeneration):
        return [ErrorBody(f"{error} stream", f"{error.error_type}_stream")]
    return [ErrorBody(str(error), error.error_type)]


def reseeded(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """Return the request, and `n` - 1 more of it with seeds of their own, which replies show."""
    others = [structs.replace(request.sampling, seed=random_seed()) for _ in range(n - 1)]
    return [request, *(structs.replace(request, sampling=sampling) for sampling in others)]


_TOKEN_EVENTS = (StreamResponse, ErrorBody)

OPERATIONS = (
    Post(
        path="/generate",
        tag="generate",
        summary="Generate tokens",
        handler=generate,
        body=JsonBody(GenerateRequest),
        reply=(GenerateResponse,),
        timed=True,
    ),
    Post(
        path="/generate_stream",
        tag="generate",
        summary="Generate a stream of tokens",
        handler=generate_stream,
        body=JsonBody(GenerateRequest),
        events=_TOKEN_EVENTS,
        success="A stream. It begins before anything is checked: an error is its last event.",
        errors_are_events=True,
        timed=True,
    ),
    Post(
        path="/",
        tag="generate",
        summary="Generate tokens, as a stream if `stream` is true",
        handler=compat_generate,
        body=JsonBody(CompatGenerateRequest),
        reply=(list[GenerateResponse],),
        events=_TOKEN_EVENTS,
        timed=True,
    ),
)
