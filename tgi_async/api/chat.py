"""`/v1/chat/completions`."""

from __future__ import annotations

from msgspec import structs

from tgi_async.api.bad_words import banned_of
from tgi_async.api.chat_answer import ChatAnswer
from tgi_async.api.chat_functions import with_tools
from tgi_async.api.chat_like_tgi import call_like_tgi
from tgi_async.api.chat_prompt import prompt_of
from tgi_async.api.chat_thinking import unread_fields
from tgi_async.api.chat_tools import AnswerReader, offer_of
from tgi_async.api.exchange import Exchange, encode
from tgi_async.api.finished import collect_all
from tgi_async.api.form import form_of
from tgi_async.api.openai import errors_told, stream_choices
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.service import Service
from tgi_async.api.timing import reply_headers
from tgi_async.api.unsupported import refuse_unsupported


async def chat(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    """Answers, whole or as a stream. What is wrong with the request is told before a stream."""
    async with errors_told(service, exchange, bool(body.stream)):
        await _answer(service, body, exchange)


async def _answer(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    dialect = service.limits.dialect
    if dialect.reads_fields_of_tgi_only:
        exchange.ignore(body.ignored_by_tgi())
        body = body.as_tgi_reads_it()
    else:
        refuse_unsupported(exchange.unknown, exchange.ignored)
    body = with_tools(body)
    offer = offer_of(body, dialect)
    n = body.n_choices(service.limits)
    body.check_own(service.limits)
    form = form_of(body)
    if offer is not None and offer.forced is not None:
        form = None  # it binds a text, and the answer is a call
    grammar = None if form is None else form.grammar
    parameters = body.parameters(service.limits, body.most_new_tokens, body.top_logprobs, grammar)
    if dialect.calls_tools_like_tgi and offer is not None:
        await call_like_tgi(service, body, offer, parameters, exchange)
        return
    async with service.admission.take(exchange, n):
        prompt = await prompt_of(service, body, offer)
        if not dialect.reads_fields_of_tgi_only and service.chat_template is not None:
            exchange.ignore(unread_fields(service.chat_template, body))
        n_called = sum(len(message.tool_calls or ()) for message in body.messages)
        reader = None
        if not dialect.calls_tools_like_tgi:
            reader = AnswerReader(service, offer, prompt, form, n_called=n_called)
        banned = await banned_of(service, body)
        request = await service.request(
            prompt,
            parameters,
            exchange,
            logprobs=bool(body.logprobs),
            include_stop=dialect.shows_stop_sequences or body.includes_stop,
            add_special_tokens=bool(body.add_special_tokens),
            names=body.names(service.limits, form and form.field),
            constraint=None if reader is None else reader.constraint,
            truncated=lambda tokens: body.truncated(tokens, service.limits),
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
        generations = service.submit_choices(request, n)
        answer = ChatAnswer(service, body, request, reader)
        answer.scores = generations[0]
        if body.stream:
            await stream_choices(
                service,
                exchange,
                generations,
                len(prompt),
                answer.events,
                lambda: answer.ending(generations[0].n_cached),
            )
            return
        finished = await collect_all(generations)
    for one in finished:
        service.account(one.timings, len(one.tokens))
    n_generated = sum(len(one.tokens) for one in finished)
    headers = reply_headers(
        exchange,
        service.compute_type,
        len(prompt),
        [request],
        [one.timings for one in finished],
        n_generated,
    )
    choices = [
        answer.choice(index, one.tokens, one.finish_reason) for index, one in enumerate(finished)
    ]
    whole = answer.whole(choices, n_generated, finished[0].n_cached)
    await exchange.reply(encode(whole), headers=headers)
