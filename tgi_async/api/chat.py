"""`/v1/chat/completions`."""

from __future__ import annotations

from msgspec import structs

from tgi_async.api.chat_answer import ChatAnswer
from tgi_async.api.chat_like_tgi import call_like_tgi
from tgi_async.api.chat_prompt import prompt_of
from tgi_async.api.chat_tools import AnswerReader, offer_of
from tgi_async.api.exchange import Exchange, encode
from tgi_async.api.finished import collect_all
from tgi_async.api.openai import errors_told, stream_choices
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.grammar import grammar_of
from tgi_async.api.service import Service
from tgi_async.api.timing import reply_headers


async def chat(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    """Answers, whole or as a stream. What is wrong with the request is told before a stream."""
    async with errors_told(service, exchange, bool(body.stream)):
        await _answer(service, body, exchange)


async def _answer(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    strict = service.limits.strict_tgi
    if strict:
        body = body.as_tgi_reads_it()
    offer = offer_of(body, strict_tgi=strict)
    n = body.n_choices(service.limits)
    body.check_own()
    grammar = grammar_of(body.response_format)
    if offer is not None and offer.forced is not None:
        grammar = None  # it binds a text, and the answer is a call
    parameters = body.parameters(service.limits, body.most_new_tokens, body.top_logprobs, grammar)
    if strict and offer is not None:
        await call_like_tgi(service, body, offer, parameters, exchange)
        return
    with service.permits.take(n):
        prompt = await prompt_of(service, body, offer)
        n_called = sum(len(message.tool_calls or ()) for message in body.messages)
        reader = (
            None if strict else AnswerReader(service, offer, prompt, grammar, n_called=n_called)
        )
        request = await service.request(
            prompt,
            parameters,
            exchange,
            logprobs=bool(body.logprobs),
            include_stop=strict,
            add_special_tokens=False,
            grammar_field="response_format",
            constraint=None if reader is None else reader.constraint,
        )
        if reader is not None:
            request = body.completed(request, logprobs=bool(body.logprobs))
            request = structs.replace(request, shown=reader.shown)
        generations = service.submit_choices(request, n)
        answer = ChatAnswer(service, body, request, reader)
        if body.stream:
            await stream_choices(
                service, exchange, generations, len(prompt), answer.events, answer.ending
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
    await exchange.reply(encode(answer.whole(choices, n_generated)), headers=headers)
