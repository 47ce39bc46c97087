"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from tgi_async.api.chat.answer import ChatAnswer
from tgi_async.api.chat.functions import with_tools
from tgi_async.api.chat.like_tgi import LikeTGI
from tgi_async.api.chat.prompt import prompt_of
from tgi_async.api.chat.schema import ChatCompletion, ChatCompletionChunk, ChatRequest
from tgi_async.api.chat.thinking import unread_fields
from tgi_async.api.chat.tools import AnswerReader, Offer, offer_of
from tgi_async.api.dialect import Dialect
from tgi_async.api.engine_client import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import collect_all
from tgi_async.api.openai.answers import (
    body_type,
    early_errors,
    read_body,
    stream_choices,
    stream_error_type,
)
from tgi_async.api.openai.bad_words import banned_of
from tgi_async.api.openai.form import Form, form_of
from tgi_async.api.operation import Post
from tgi_async.api.parameters import GenerateParameters
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import EventStream, Reply
from tgi_async.api.service import PromptSource, Service
from tgi_async.api.timing import reply_headers
from tgi_async.generation import GenerationRequest


async def chat(
    service: Service, body: ChatRequest, context: RequestContext
) -> Reply[ChatCompletion] | EventStream:
    """Answer a chat, whole or as a stream."""
    if body.stream:
        return EventStream(partial(_stream, service, body, context))
    return await answer_whole(service, body, context)


async def answer_whole(
    service: Service, body: ChatRequest, context: RequestContext
) -> Reply[ChatCompletion]:
    """Answer a chat with one object."""
    question = _read(service, body, context)
    if question.offer is not None and service.limits.dialect.calls_tools_like_tgi:
        async with service.admission.take(context):
            return await _like_tgi(service, question, context).reply()
    async with _answering(service, question, context) as chat:
        finished = await collect_all(chat.generations)
    for one in finished:
        service.account(one.timings, len(one.tokens))
    n_generated = sum(len(one.tokens) for one in finished)
    drafts = service.gained(finished)
    headers = reply_headers(
        context,
        service.compute_type,
        len(chat.prompt),
        [chat.request],
        [one.timings for one in finished],
        n_generated,
        drafts,
    )
    choices = [
        chat.answer.choice(index, one.tokens, one.finish_reason)
        for index, one in enumerate(finished)
    ]
    return Reply(chat.answer.whole(choices, n_generated, finished[0].n_cached, drafts), headers)


async def _stream(
    service: Service, body: ChatRequest, context: RequestContext, exchange: Exchange
) -> None:
    async with early_errors(service, exchange):
        question = _read(service, body, context)
        if question.offer is not None and service.limits.dialect.calls_tools_like_tgi:
            async with service.admission.take(context):
                await _like_tgi(service, question, context).stream(exchange)
            return
        async with _answering(service, question, context) as chat:
            first = chat.generations[0]
            await stream_choices(
                service,
                exchange,
                chat.generations,
                len(chat.prompt),
                chat.answer.events,
                lambda: chat.answer.ending(first.n_cached, service.gained(chat.generations)),
            )


@dataclass(frozen=True, slots=True)
class _Question:
    """What a body asks for: `n` answers, constrained by `form` or with calls of the tools on
    `offer`."""

    body: ChatRequest
    offer: Offer | None
    form: Form | None
    parameters: GenerateParameters
    n: int


@dataclass(frozen=True, slots=True)
class _Chat:
    """A chat whose answers are being generated."""

    prompt: str
    request: GenerationRequest
    generations: list[Generation]
    answer: ChatAnswer


def _read(service: Service, body: ChatRequest, context: RequestContext) -> _Question:
    limits = service.limits
    body = with_tools(read_body(body, context, limits.dialect))
    offer = offer_of(body, limits.dialect)
    n = body.n_choices(limits)
    body.check_own(limits)
    form = form_of(body)
    if offer is not None and offer.forced is not None:
        form = None  # a text must follow it, and this answer is a call
    grammar = None if form is None else form.grammar
    parameters = body.parameters(limits, body.most_new_tokens, body.top_logprobs, grammar)
    return _Question(body, offer, form, parameters, n)


def _like_tgi(service: Service, question: _Question, context: RequestContext) -> LikeTGI:
    assert question.offer is not None
    return LikeTGI(service, question.body, question.offer, question.parameters, context)


@asynccontextmanager
async def _answering(
    service: Service, question: _Question, context: RequestContext
) -> AsyncIterator[_Chat]:
    """Reserve rows, and generate the answers."""
    body, offer, form, dialect = (
        question.body,
        question.offer,
        question.form,
        service.limits.dialect,
    )
    async with service.admission.take(context, question.n):
        prompt = await prompt_of(service, body, offer)
        if not dialect.reads_fields_of_tgi_only and service.chat_template is not None:
            context.ignore(unread_fields(service.chat_template, body))
        reader = None
        if not dialect.calls_tools_like_tgi:
            n_called = sum(len(message.tool_calls or ()) for message in body.messages)
            reader = AnswerReader(service, offer, prompt.text, form, n_called=n_called)
        banned = await banned_of(service, body)
        request = await service.request(
            PromptSource(
                prompt.content,
                add_special_tokens=prompt.add_special_tokens,
                truncated=lambda places: body.truncated(places, service.limits),
            ),
            question.parameters,
            context,
            logprobs=bool(body.logprobs),
            include_stop=dialect.shows_stop_sequences or body.includes_stop,
            names=body.names(service.limits, form and form.field),
            constraint=None if reader is None else reader.constraint,
            stop_token_ids=service.chat_stop_token_ids,
        )
        if reader is not None:
            request = body.completed(
                request,
                logprobs=bool(body.logprobs),
                banned=banned,
                special_texts=service.tokenizer.special_texts,
            )
            request = structs.replace(request, shown=reader.shown)
        generations = service.submit_choices(request, question.n)
        answer = ChatAnswer(service, body, request, reader, reply_name=context.reply_name)
        answer.scores = generations[0]
        yield _Chat(prompt.text, request, generations, answer)


def operation(dialect: Dialect) -> Post[ChatRequest]:
    """Return the operation of this file."""
    return Post(
        path="/v1/chat/completions",
        tag="openai",
        summary="Answer a chat, as a stream if `stream` is true; `[DONE]` ends it",
        handler=chat,
        body=body_type(ChatRequest, dialect),
        reply=(ChatCompletion,),
        events=(ChatCompletionChunk, stream_error_type(dialect)),
        openai=True,
        timed=True,
    )
