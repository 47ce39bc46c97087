"""The answers of a chat, whole and in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from tgi_async.api.chat_tools import AnswerReader
from tgi_async.api.exchange import event
from tgi_async.api.finished import text_of
from tgi_async.api.openai import finish_reason_of
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
from tgi_async.api.schemas.openai import Usage, now, told_logprob, unique_id
from tgi_async.api.schemas.tools import (
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from tgi_async.api.service import Service
from tgi_async.generation import Emitted, FinishReason, GenerationRequest, Token
from tgi_async.text.tools.events import Arguments, CallBegun, Event, Prose, Thought


class ChatAnswer:
    """Builds the reply, or the chunks of it, to one request."""

    def __init__(
        self,
        service: Service,
        body: ChatRequest,
        request: GenerationRequest,
        reader: AnswerReader | None = None,
    ) -> None:
        self._id = unique_id("chatcmpl")
        self._created = now()
        named = body.model not in (None, "", "tgi")
        self._model = body.model if named and body.model else service.limits.model_id
        self._fingerprint = service.fingerprint
        self._strict = service.limits.strict_tgi
        self._tokenizer = service.tokenizer
        self._n_prompt = len(request.prompt)
        self.n_streamed = 0
        """Tokens of all choices so far."""
        self._reader = reader
        self._choices: dict[int, _Choice] = {}
        """Those of a stream, by their index."""
        self._with_logprobs = bool(body.logprobs)
        self._include_usage = body.include_usage

    def choice(self, index: int, tokens: Sequence[Token], reason: FinishReason) -> ChatChoice:
        """One whole answer."""
        choice = _Choice(self._reader)
        events = choice.read(text_of(tokens), reason)
        return ChatChoice(
            index=index,
            message=choice.message(events),
            logprobs=self.logprobs(tokens),
            finish_reason=self._reason(choice, reason),
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
        """One chunk for all tokens that came together; none where nothing of it can be told yet.

        The first of a choice has the role; in TGI all have.
        """
        self.n_streamed += len(emitted.tokens)
        choice = self._choices.setdefault(index, _Choice(self._reader))
        reason = emitted.finish_reason
        events = choice.read(text_of(emitted.tokens), reason)
        if not events and reason is None and not self._with_logprobs:
            return b""
        shows_role = self._strict or not choice.begun
        choice.begun = True
        delta = choice.delta(events, shows_role=shows_role)
        return self.chunk(index, delta, emitted.tokens, reason and self._reason(choice, reason))

    def chunk(
        self, index: int, delta: AssistantDelta, tokens: Sequence[Token], reason: str | None
    ) -> bytes:
        """The event of a chunk with this delta."""
        one = ChatDelta(
            index=index, delta=delta, logprobs=self.logprobs(tokens), finish_reason=reason
        )
        return event(self._chunk([one], None))

    def ending(self) -> bytes:
        """The extra chunk that `stream_options.include_usage` asks for."""
        if not self._include_usage:
            return b""
        return event(self._chunk([], Usage.of(self._n_prompt, self.n_streamed)))

    def _chunk(self, choices: list[ChatDelta], usage: Usage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )

    def _reason(self, choice: _Choice, reason: FinishReason) -> str:
        told = finish_reason_of(reason, strict_tgi=self._strict)
        return "tool_calls" if choice.n_calls and told == "stop" else told

    def logprobs(self, tokens: Sequence[Token]) -> Logprobs | None:
        """Those of the tokens, if they are wanted."""
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


class _Choice:
    """One answer as it is read."""

    def __init__(self, reader: AnswerReader | None) -> None:
        self._parser = None if reader is None else reader.parser()
        self._reader = reader
        self.n_calls = 0
        self.begun = False
        """Whether a chunk was sent of it."""

    def read(self, text: str, reason: FinishReason | None) -> list[Event]:
        """What the text says; where it ends for a reason, with what was held back."""
        if self._parser is None:
            return [Prose(text)]
        events = self._parser.feed(text)
        if reason is not None:
            events += self._parser.end(truncated=reason != "eos_token")
        self.n_calls += sum(isinstance(one, CallBegun) for one in events)
        return events

    def message(self, events: Sequence[Event]) -> AssistantMessage:
        """All of it."""
        calls: list[tuple[str, list[str]]] = []
        for one in events:
            if isinstance(one, CallBegun):
                calls.append((one.name, []))
            elif isinstance(one, Arguments):
                calls[-1][1].append(one.text)
        content = _text(events, Prose)
        in_call = bool(calls) or (self._parser is not None and self._parser.in_call)
        return AssistantMessage(
            content=None if in_call and not content else content,
            reasoning_content=_text(events, Thought) or UNSET,
            tool_calls=[
                ToolCall(
                    id=self._call_id(index, name),
                    function=FunctionCall(name=name, arguments="".join(arguments)),
                )
                for index, (name, arguments) in enumerate(calls)
            ]
            or UNSET,
        )

    def delta(self, events: Sequence[Event], *, shows_role: bool) -> AssistantDelta:
        """The next pieces of it, which `read` told last."""
        role: Literal["assistant"] | UnsetType = "assistant" if shows_role else UNSET
        if self._parser is None:
            return AssistantDelta(_text(events, Prose), role)
        index = self.n_calls - 1 - sum(isinstance(one, CallBegun) for one in events)
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for one in events:
            if isinstance(one, CallBegun):
                index += 1
                names[index] = one.name
                arguments[index] = ""
            elif isinstance(one, Arguments):
                arguments[index] = arguments.get(index, "") + one.text
        content, thoughts = _text(events, Prose), _text(events, Thought)
        return AssistantDelta(
            content=UNSET if (arguments or thoughts) and not content else content,
            role=role,
            reasoning_content=thoughts or UNSET,
            tool_calls=[
                ToolCallDelta(
                    index=place,
                    id=self._call_id(place, names[place]) if place in names else UNSET,
                    type="function" if place in names else UNSET,
                    function=FunctionCallDelta(name=names.get(place, UNSET), arguments=piece),
                )
                for place, piece in arguments.items()
            ]
            or UNSET,
        )

    def _call_id(self, index: int, name: str) -> str:
        assert self._reader is not None
        return self._reader.call_id(index, name)


def _text(events: Sequence[Event], kind: type[Prose] | type[Thought]) -> str:
    return "".join([one.text for one in events if isinstance(one, kind)])
