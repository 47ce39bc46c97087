"""Replies of a chat, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType, structs

from tgi_async.api.chat.schema import (
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
from tgi_async.api.chat.tool_schema import (
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from tgi_async.api.chat.tools import AnswerReader
from tgi_async.api.encoding import Events
from tgi_async.api.finished import text_of
from tgi_async.api.limits import Limits
from tgi_async.api.openai.prompt_logprobs import RankedScores, prompt_logprobs_of
from tgi_async.api.openai.reply_schema import PromptLogprob, Usage, finite_logprob, now, unique_id
from tgi_async.api.service import Service
from tgi_async.generation import Drafts, Emitted, FinishReason, GenerationRequest, Token
from tgi_async.text.tools.events import ArgumentsPiece, CallStart, Event, ProsePiece, ThoughtPiece


class ChatAnswer:
    """Builds the reply, or the chunks of it, to one request."""

    def __init__(
        self,
        service: Service,
        body: ChatRequest,
        request: GenerationRequest,
        reader: AnswerReader | None = None,
        *,
        reply_name: str = "",
    ) -> None:
        self._id = unique_id("chatcmpl", reply_name)
        self._created = now()
        self._model = _model_of(body, service.limits)
        self._fingerprint = service.build.fingerprint
        self._dialect = service.limits.dialect
        self._tokenizer = service.tokenizer
        self._n_prompt = len(request.prompt)
        self.n_streamed = 0
        """Tokens of all choices so far."""
        self._n_thought = 0
        """Those of them that are reasoning tokens."""
        self._reader = reader
        self._older = body.functions is not None
        self._choices: dict[int, _Choice] = {}
        """The choices of a stream, by their index."""
        self._with_logprobs = bool(body.logprobs)
        self._include_usage = body.include_usage
        self._prompt = request.prompt
        self._n_scores = body.n_prompt_logprobs
        self._shows_thoughts = body.shows_thoughts
        self.scores: RankedScores | None = None
        """The prompt's scores, from the first choice's generation; None once they are in a
        reply."""

    def choice(self, index: int, tokens: Sequence[Token], reason: FinishReason) -> ChatChoice:
        """Return one whole answer."""
        choice = self._begun()
        events = self._read(choice, tokens, reason)
        return ChatChoice(
            index=index,
            message=choice.message(events),
            logprobs=self.logprobs(tokens),
            finish_reason=self._reason(choice, reason),
        )

    def whole(
        self,
        choices: list[ChatChoice],
        n_generated: int,
        n_cached: int = 0,
        drafts: Drafts | None = None,
    ) -> ChatCompletion:
        """Return the whole reply; `n_cached` tokens of the prompt were in the prefix cache."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=self._usage(n_generated, n_cached, drafts),
            prompt_logprobs=self._prompt_logprobs(),
        )

    def events(self, index: int, emitted: Emitted) -> Events:
        """Return one chunk for all tokens that came together; none where nothing can be shown yet.

        The first of a choice has the role; in TGI all have.
        """
        self.n_streamed += len(emitted.tokens)
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = self._begun()
        reason = emitted.finish_reason
        events = self._read(choice, emitted.tokens, reason)
        if not events and reason is None and not self._with_logprobs:
            return ()
        shows_role = not (choice.begun and self._dialect.shows_role_once)
        choice.begun = True
        delta = choice.delta(events, shows_role=shows_role)
        return [self.chunk(index, delta, emitted.tokens, reason and self._reason(choice, reason))]

    def chunk(
        self, index: int, delta: AssistantDelta, tokens: Sequence[Token], reason: str | None
    ) -> ChatCompletionChunk:
        """Return a chunk with this delta."""
        one = ChatDelta(
            index=index, delta=delta, logprobs=self.logprobs(tokens), finish_reason=reason
        )
        chunk = self._chunk([one], None)
        if index == 0:
            chunk = structs.replace(chunk, prompt_logprobs=self._prompt_logprobs())
        return chunk

    def ending(self, n_cached: int = 0, drafts: Drafts | None = None) -> Events:
        """Return the extra chunk that `stream_options.include_usage` asks for."""
        if not self._include_usage:
            return ()
        return [self._chunk([], self._usage(self.n_streamed, n_cached, drafts))]

    def _usage(self, n_generated: int, n_cached: int, drafts: Drafts | None) -> Usage:
        if not self._dialect.shows_usage_details:
            return Usage.of(self._n_prompt, n_generated)
        return Usage.of(
            self._n_prompt,
            n_generated,
            cached_tokens=n_cached,
            reasoning_tokens=self._n_thought,
            drafts=drafts,
        )

    def _read(
        self, choice: _Choice, tokens: Sequence[Token], reason: FinishReason | None
    ) -> list[Event]:
        events = choice.read(tokens, reason)
        self._n_thought += choice.n_thought
        choice.n_thought = 0
        return events

    def _begun(self) -> _Choice:
        return _Choice(self._reader, shows_thoughts=self._shows_thoughts, older=self._older)

    def _prompt_logprobs(self) -> list[dict[int, PromptLogprob] | None] | UnsetType:
        """Return the prompt's log-probabilities, once, if asked for."""
        scores, self.scores = self.scores, None
        if self._n_scores is None or scores is None:
            return UNSET
        return prompt_logprobs_of(self._tokenizer, self._prompt, scores, self._n_scores)

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
        name = self._dialect.finish_reason(reason)
        if choice.n_calls and name == "stop":
            return "function_call" if self._older else "tool_calls"
        return name

    def logprobs(self, tokens: Sequence[Token]) -> Logprobs | None:
        """Return the tokens' log-probabilities, if asked for."""
        if not self._with_logprobs:
            return None
        return Logprobs([self._token_logprob(token) for token in tokens])

    def _token_logprob(self, token: Token) -> TokenLogprob:
        text = self._tokenizer.token_text(token.id) if token.special else token.text
        top = [
            TopLogprob(one.text, finite_logprob(one.logprob), list(one.text.encode()))
            for one in token.top
        ]
        logprob = token.logprob and finite_logprob(token.logprob)
        return TokenLogprob(text, logprob, list(text.encode()), top)


def _model_of(body: ChatRequest, limits: Limits) -> str:
    """Return the name in replies: the model's first one, or the request's if it is not the
    model's."""
    own = ("", "tgi", *limits.model_names)
    return limits.model_names[0] if body.model is None or body.model in own else body.model


class _Choice:
    """One answer as its tokens come. `older`: its call is shown in OpenAI's older form."""

    def __init__(
        self, reader: AnswerReader | None, *, shows_thoughts: bool = True, older: bool
    ) -> None:
        self._shows_thoughts = shows_thoughts
        self._older = older
        self._parser = None if reader is None else reader.parser()
        self._reader = reader
        self.n_calls = 0
        self.n_thought = 0
        """Reasoning tokens since the count was last set back."""
        self.begun = False
        """Whether one of its chunks was sent."""

    def read(self, tokens: Sequence[Token], reason: FinishReason | None) -> list[Event]:
        """Parse tokens; with a reason to end, also what was held back."""
        if self._parser is None:
            return [ProsePiece(text_of(tokens))]
        parser, events, place = self._parser, list[Event](), 0
        # One by one only while reasoning tokens are to be counted.
        while place < len(tokens) and parser.thinking is not False:
            thinking = parser.thinking
            events += parser.feed(tokens[place].text)
            self.n_thought += bool(thinking or parser.thinking)
            place += 1
        events += parser.feed(text_of(tokens[place:]))
        if reason is not None:
            events += parser.end(truncated=reason != "eos_token")
        self.n_calls += sum(isinstance(one, CallStart) for one in events)
        if not self._shows_thoughts:
            return [one for one in events if not isinstance(one, ThoughtPiece)]
        return events

    def message(self, events: Sequence[Event]) -> AssistantMessage:
        """Return the whole message."""
        calls: list[tuple[str, list[str]]] = []
        for one in events:
            if isinstance(one, CallStart):
                calls.append((one.name, []))
            elif isinstance(one, ArgumentsPiece):
                calls[-1][1].append(one.text)
        content = _text(events, ProsePiece)
        in_call = bool(calls) or (self._parser is not None and self._parser.in_call)
        functions = [
            FunctionCall(name=name, arguments="".join(arguments)) for name, arguments in calls
        ]
        tool_calls = [
            ToolCall(id=self._call_id(index, one.name), function=one)
            for index, one in enumerate(functions)
        ]
        return AssistantMessage(
            content=None if in_call and not content else content,
            reasoning_content=_text(events, ThoughtPiece) or UNSET,
            tool_calls=UNSET if self._older else tool_calls or UNSET,
            function_call=functions[0] if self._older and functions else UNSET,
        )

    def delta(self, events: Sequence[Event], *, shows_role: bool) -> AssistantDelta:
        """Return the next pieces of the message, which `read` returned last."""
        role: Literal["assistant"] | UnsetType = "assistant" if shows_role else UNSET
        if self._parser is None:
            return AssistantDelta(_text(events, ProsePiece), role)
        index = self.n_calls - 1 - sum(isinstance(one, CallStart) for one in events)
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for one in events:
            if isinstance(one, CallStart):
                index += 1
                names[index] = one.name
                arguments[index] = ""
            elif isinstance(one, ArgumentsPiece):
                arguments[index] = arguments.get(index, "") + one.text
        content, thoughts = _text(events, ProsePiece), _text(events, ThoughtPiece)
        functions = {
            place: FunctionCallDelta(name=names.get(place, UNSET), arguments=piece)
            for place, piece in arguments.items()
        }
        tool_calls = [
            ToolCallDelta(
                index=place,
                id=self._call_id(place, names[place]) if place in names else UNSET,
                type="function" if place in names else UNSET,
                function=function,
            )
            for place, function in functions.items()
        ]
        return AssistantDelta(
            content=UNSET if (arguments or thoughts) and not content else content,
            role=role,
            reasoning_content=thoughts or UNSET,
            tool_calls=UNSET if self._older else tool_calls or UNSET,
            function_call=functions.get(0, UNSET) if self._older else UNSET,
        )

    def _call_id(self, index: int, name: str) -> str:
        assert self._reader is not None
        return self._reader.call_id(index, name)


def _text(events: Sequence[Event], kind: type[ProsePiece] | type[ThoughtPiece]) -> str:
    return "".join([one.text for one in events if isinstance(one, kind)])
