"""Tools as in TGI: a grammar constrains each answer to one call, possibly of `no_tool`.

After `no_tool` a second generation answers with text.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from msgspec import UNSET

from tgi_async.api.chat.answer import ChatAnswer
from tgi_async.api.chat.prompt import prompt_of
from tgi_async.api.chat.schema import (
    AssistantDelta,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
)
from tgi_async.api.chat.tool_schema import (
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from tgi_async.api.chat.tools import Offer
from tgi_async.api.encoding import DONE
from tgi_async.api.engine_client import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import collect, text_of
from tgi_async.api.openai.answers import stream_choices, tgi_error_events
from tgi_async.api.parameters import GenerateParameters
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.service import PromptSource, Service
from tgi_async.api.timing import reply_headers, stream_headers
from tgi_async.errors import ToolError
from tgi_async.generation import GenerationRequest
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.events import ArgumentsPiece, CallStart, Event
from tgi_async.text.tools.tgi import (
    NO_TOOL,
    NO_TOOL_NAME,
    CallReader,
    call_of,
    call_of_one,
)


class LikeTGI:
    """One request, which is answered with one call or with text.

    It holds a row. In TGI its two generations have each their own prompt.
    """

    def __init__(
        self,
        service: Service,
        body: ChatRequest,
        offer: Offer,
        parameters: GenerateParameters,
        context: RequestContext,
    ) -> None:
        tools = [*offer.tools, NO_TOOL] if offer.forced is None else offer.forced
        self._service = service
        self._body = body
        self._offer = Offer(tools, tools, parallel=False)
        self._parameters = parameters
        self._context = context

    async def reply(self) -> Reply[ChatCompletion]:
        """Answer with one object."""
        service = self._service
        prompt, request = await self._request(self._offer)
        first = await collect(service.submit(request))
        service.account(first.timings, len(first.tokens))
        try:
            name, arguments = call_of(first.text)
        except ValueError as error:
            raise ToolError(f"Failed to parse generated text: {error}") from error
        answer = ChatAnswer(service, self._body, request)
        shown = first
        if name == NO_TOOL_NAME:
            prompt, request = await self._request(None)
            second = await collect(service.submit(request))
            service.account(second.timings, len(second.tokens))
            answer = ChatAnswer(service, self._body, request)
            shown = second
            message = AssistantMessage(second.text)
        else:
            function = FunctionCall(name=name, arguments=arguments, description=None)
            message = AssistantMessage(tool_calls=[ToolCall(id="0", function=function)])
        # TGI reports the first generation, whichever the message is from.
        choice = ChatChoice(
            message=message,
            logprobs=answer.logprobs(first.tokens),
            finish_reason=service.limits.dialect.finish_reason(first.finish_reason),
        )
        n_generated = len(first.tokens)
        headers = reply_headers(
            self._context,
            service.compute_type,
            len(prompt),
            [request],
            [shown.timings],
            n_generated,
            service.gained([shown]),
        )
        return Reply(answer.whole([choice], n_generated), headers)

    async def stream(self, exchange: Exchange) -> None:
        """Stream the answer."""
        service = self._service
        prompt, request = await self._request(self._offer)
        generation = service.submit(request)
        answer = ChatAnswer(service, self._body, request)
        try:
            called = await self._stream_call(exchange, generation, answer, len(prompt))
        finally:
            generation.cancel()
        if called:
            await exchange.close([*answer.ending(), DONE])
            return
        prompt, request = await self._request(None)
        answer = ChatAnswer(service, self._body, request, reply_name=self._context.reply_name)
        generations = service.submit_choices(request, 1)
        await stream_choices(
            service, exchange, generations, len(prompt), answer.events, answer.ending
        )

    async def _request(self, offer: Offer | None) -> tuple[str, GenerationRequest]:
        """Return the prompt and the request for a call or, without an offer, for text."""
        constraint: Grammar | None = None
        if offer is not None:
            constraint = call_of_one([tool["function"] for tool in offer.tools])
        prompt = await prompt_of(self._service, self._body, offer)
        request = await self._service.request(
            PromptSource(prompt.content, add_special_tokens=False),
            self._parameters,
            self._context,
            logprobs=bool(self._body.logprobs),
            include_stop=True,
            constraint=constraint,
            stop_token_ids=self._service.chat_stop_token_ids,
        )
        return prompt.text, request

    async def _stream_call(
        self, exchange: Exchange, generation: Generation, answer: ChatAnswer, n_characters: int
    ) -> bool:
        """Stream the call as it comes; return False as soon as it is `no_tool`.

        TGI sends no reason for the end, and nothing at all of a call whose name was cut off.
        """
        service = self._service
        reader = CallReader()
        call_id = _next_id(self._body)
        async for emitted in generation:
            answer.n_streamed += len(emitted.tokens)
            events = reader.feed(text_of(emitted.tokens))
            if any(event == CallStart(NO_TOOL_NAME) for event in events):
                return False
            if events and not exchange.streaming:
                headers = stream_headers(service.compute_type, n_characters)
                await exchange.open_stream(headers, tgi_error_events)
            tokens = emitted.tokens
            for piece in _apart(events):
                await exchange.write([answer.chunk(0, _delta(piece, call_id), tokens, None)])
                tokens = []
        service.account(generation.timings, answer.n_streamed)
        if not exchange.streaming:
            headers = stream_headers(service.compute_type, n_characters)
            await exchange.open_stream(headers, tgi_error_events)
        return True


def _apart(events: Sequence[Event]) -> list[tuple[str | None, str]]:
    """Return name and piece of arguments for each delta; the first has the name and a bracket."""
    pieces: list[tuple[str | None, str]] = []
    for event in events:
        if isinstance(event, CallStart):
            pieces.append((event.name, "{"))
        elif isinstance(event, ArgumentsPiece):
            text = event.text[1:] if pieces else event.text
            if text:
                pieces.append((None, text))
    return pieces


def _delta(piece: tuple[str | None, str], call_id: str) -> AssistantDelta:
    name, arguments = piece
    call = ToolCallDelta(
        index=0,
        id=call_id,
        type="function",
        function=FunctionCallDelta(name=name, arguments=arguments),
    )
    return AssistantDelta(content=UNSET, role="assistant", tool_calls=[call])


def _next_id(body: ChatRequest) -> str:
    """Return one above the highest number among the calls of the conversation."""
    calls = [call for message in body.messages for call in message.tool_calls or ()]
    ids = [call.get("id") or "" for call in calls]
    ids += [message.tool_call_id or "" for message in body.messages]
    numbers = [int(one) for one in ids if one.isascii() and one.isdecimal() and len(one) < 10]
    return str(max(numbers) + 1) if numbers else str(uuid.uuid4())
