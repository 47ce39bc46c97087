"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence

from tgi_async.api.engine import Generation
from tgi_async.api.exchange import DONE, Exchange, encode, event
from tgi_async.api.finished import collect, text_of
from tgi_async.api.parameters import refuse_unbuilt
from tgi_async.api.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatRequest,
    ImageChunk,
    Logprobs,
    MessageBody,
    TokenLogprob,
    TopLogprob,
)
from tgi_async.api.schemas.openai import (
    Usage,
    error_event,
    finish_reason_of,
    now,
    unique_id,
)
from tgi_async.api.service import Service
from tgi_async.api.timing import reply_headers, stream_headers
from tgi_async.errors import TemplateError, ValidationError
from tgi_async.generation import GenerationRequest, Token
from tgi_async.text.chat import Message


async def chat(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    """One answer, whole or as a stream. What is wrong with the request is told before a stream."""
    _check_built(body)
    messages = [_message(place, message) for place, message in enumerate(body.messages)]
    if service.chat_template is None:
        raise TemplateError("template not found")
    max_new_tokens = (
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    )
    parameters = body.parameters(max_new_tokens, body.top_logprobs)
    with service.permits.take():
        prompt = await service.in_pool(service.chat_template.render, messages)
        request = await service.request(
            prompt,
            parameters,
            exchange,
            logprobs=bool(body.logprobs),
            include_stop=False,
            add_special_tokens=False,
        )
        generation = service.submit(request)
        answer = _Answer(service, body, request)
        if body.stream:
            head = stream_headers(service.compute_type, len(prompt))
            try:
                await exchange.open_stream(head, error_event)
                await _stream(service, exchange, generation, answer)
            finally:
                generation.cancel()
            return
        finished = await collect(generation)
    service.account(finished.timings, len(finished.tokens))
    headers = reply_headers(
        exchange,
        service.compute_type,
        len(prompt),
        [request],
        [finished.timings],
        len(finished.tokens),
    )
    reply = answer.whole(finished.tokens, finish_reason_of(finished.finish_reason))
    await exchange.reply(encode(reply), headers=headers)


async def _stream(
    service: Service, exchange: Exchange, generation: Generation, answer: _Answer
) -> None:
    n_generated = 0
    last = b""
    async for emitted in generation:
        n_generated += len(emitted.tokens)
        if emitted.finish_reason is None:
            await exchange.write(event(answer.chunk(emitted.tokens, None)))
        else:
            reason = finish_reason_of(emitted.finish_reason)
            last = event(answer.chunk(emitted.tokens, reason))
    service.account(generation.timings, n_generated)
    if answer.include_usage:
        last += event(answer.usage_chunk(n_generated))
    await exchange.close(last + DONE)


class _Answer:
    """Builds the reply, or the chunks of it, to one request."""

    def __init__(self, service: Service, body: ChatRequest, request: GenerationRequest) -> None:
        self._id = unique_id("chatcmpl")
        self._created = now()
        named = body.model not in (None, "", "tgi")
        self._model = body.model if named and body.model else service.limits.model_id
        self._fingerprint = service.fingerprint
        self._tokenizer = service.tokenizer
        self._n_prompt = len(request.prompt)
        self._with_logprobs = bool(body.logprobs)
        self.include_usage = body.include_usage

    def whole(self, tokens: Sequence[Token], finish_reason: str) -> ChatCompletion:
        """The whole reply."""
        choice = ChatChoice(
            message=AssistantMessage(text_of(tokens)),
            logprobs=self._logprobs(tokens),
            finish_reason=finish_reason,
        )
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=[choice],
            usage=Usage.of(self._n_prompt, len(tokens)),
        )

    def chunk(self, tokens: Sequence[Token], finish_reason: str | None) -> ChatCompletionChunk:
        """One chunk for all tokens that came together; each has the role, as in TGI."""
        delta = ChatDelta(
            delta=AssistantMessage(text_of(tokens)),
            logprobs=self._logprobs(tokens),
            finish_reason=finish_reason,
        )
        return self._chunk([delta], None)

    def usage_chunk(self, n_generated: int) -> ChatCompletionChunk:
        """The extra chunk that `stream_options.include_usage` asks for."""
        return self._chunk([], Usage.of(self._n_prompt, n_generated))

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
        return Logprobs(
            [
                TokenLogprob(
                    self._tokenizer.token_text(token.id) if token.special else token.text,
                    token.logprob,
                    [TopLogprob(top.text, top.logprob) for top in token.top],
                )
                for token in tokens
            ]
        )


def _check_built(body: ChatRequest) -> None:
    body.check_built()
    # tool_choice "none" asks for plain text, with tools in the body or without.
    refuse_unbuilt(tools=body.tools if body.tool_choice != "none" else None)
    if body.response_format != {"type": "text"}:
        refuse_unbuilt(response_format=body.response_format)


def _message(place: int, message: MessageBody) -> Message:
    """The message as a template sees it; the texts of a list of parts are joined."""
    refuse_unbuilt(**{f"messages[{place}].tool_calls": message.tool_calls})
    if message.content is None:
        raise ValidationError(
            f"`messages[{place}].content` must be a text or a list of text parts. Given: null"
        )
    parts = [message.content] if isinstance(message.content, str) else message.content
    texts: list[str] = []
    for part in parts:
        if isinstance(part, ImageChunk):
            raise ValidationError(
                f"`messages[{place}].content` holds an image, and this version of the server "
                "takes text only. Remove the image"
            )
        texts.append(part if isinstance(part, str) else part.text)
    rendered = {"role": message.role, "content": "".join(texts)}
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered
