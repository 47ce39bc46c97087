"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from tgi_async.api.chat_prompt import prompt_of
from tgi_async.api.exchange import Exchange, encode, event
from tgi_async.api.finished import collect_all, text_of
from tgi_async.api.openai import errors_told, finish_reason_of, stream_choices
from tgi_async.api.parameters import refuse_unbuilt
from tgi_async.api.schemas.chat import (
    AssistantDelta,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatRequest,
    Logprobs,
    TokenLogprob,
    TopLogprob,
)
from tgi_async.api.schemas.grammar import grammar_of
from tgi_async.api.schemas.openai import Usage, now, told_logprob, unique_id
from tgi_async.api.service import Service
from tgi_async.api.timing import reply_headers
from tgi_async.generation import Emitted, FinishReason, GenerationRequest, Token


async def chat(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    """Answers, whole or as a stream. What is wrong with the request is told before a stream."""
    async with errors_told(service, exchange, bool(body.stream)):
        await _answer(service, body, exchange)


async def _answer(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    strict = service.limits.strict_tgi
    if strict:
        body = body.as_tgi_reads_it()
    # tool_choice "none" asks for plain text, with tools in the body or without.
    refuse_unbuilt(tools=body.tools if body.tool_choice != "none" else None)
    n = body.n_choices(service.limits)
    body.check_own()
    max_new_tokens = (
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    )
    parameters = body.parameters(
        service.limits, max_new_tokens, body.top_logprobs, grammar_of(body.response_format)
    )
    with service.permits.take(n):
        prompt = await prompt_of(service, body)
        request = await service.request(
            prompt,
            parameters,
            exchange,
            logprobs=bool(body.logprobs),
            include_stop=strict,
            add_special_tokens=False,
            grammar_field="response_format",
        )
        if not strict:
            request = body.completed(request, logprobs=bool(body.logprobs))
        generations = service.submit_choices(request, n)
        answer = _Answer(service, body, request)
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


class _Answer:
    """Builds the reply, or the chunks of it, to one request."""

    def __init__(self, service: Service, body: ChatRequest, request: GenerationRequest) -> None:
        self._id = unique_id("chatcmpl")
        self._created = now()
        named = body.model not in (None, "", "tgi")
        self._model = body.model if named and body.model else service.limits.model_id
        self._fingerprint = service.fingerprint
        self._strict = service.limits.strict_tgi
        self._tokenizer = service.tokenizer
        self._n_prompt = len(request.prompt)
        self._n_streamed = 0
        self._begun: set[int] = set()
        """Choices that a chunk was sent of."""
        self._with_logprobs = bool(body.logprobs)
        self._include_usage = body.include_usage

    def choice(self, index: int, tokens: Sequence[Token], reason: FinishReason) -> ChatChoice:
        """One whole answer."""
        return ChatChoice(
            index=index,
            message=AssistantMessage(text_of(tokens)),
            logprobs=self._logprobs(tokens),
            finish_reason=finish_reason_of(reason, strict_tgi=self._strict),
        )

    def whole(self, choices: list[ChatChoice], n_generated: int) -> ChatCompletion:
        """The whole reply."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=Usage.of(self._n_prompt, n_generated),
        )

    def events(self, index: int, emitted: Emitted) -> bytes:
        """One chunk for all tokens that came together. The first has the role; in TGI all have."""
        self._n_streamed += len(emitted.tokens)
        shows_role = self._strict or index not in self._begun
        self._begun.add(index)
        reason = emitted.finish_reason
        delta = ChatDelta(
            index=index,
            delta=AssistantDelta(text_of(emitted.tokens), "assistant" if shows_role else UNSET),
            logprobs=self._logprobs(emitted.tokens),
            finish_reason=reason and finish_reason_of(reason, strict_tgi=self._strict),
        )
        return event(self._chunk([delta], None))

    def ending(self) -> bytes:
        """The extra chunk that `stream_options.include_usage` asks for."""
        if not self._include_usage:
            return b""
        return event(self._chunk([], Usage.of(self._n_prompt, self._n_streamed)))

    def _chunk(self, choices: list[ChatDelta], usage: Usage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )

    def _logprobs(self, tokens: Sequence[Token]) -> Logprobs | None:
        if not self._with_logprobs:
            return None
        return Logprobs([self._token_logprob(token) for token in tokens])

    def _token_logprob(self, token: Token) -> TokenLogprob:
        text = self._tokenizer.token_text(token.id) if token.special else token.text
        top = [
            TopLogprob(one.text, told_logprob(one.logprob), list(one.text.encode()))
            for one in token.top
        ]
        logprob = token.logprob and told_logprob(token.logprob)
        return TokenLogprob(text, logprob, list(text.encode()), top)
