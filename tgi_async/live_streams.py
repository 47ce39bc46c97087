"""The streams of all live requests, which deliver a step's tokens to the clients."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from tgi_async.errors import GenerationError, ServerError
from tgi_async.generation import FinishReason
from tgi_async.generation_stream import GenerationStream
from tgi_async.scheduler.request import Event, PromptEvent, Request, TokenEvent

log = logging.getLogger(__name__)


class LiveStreams:
    """Streams by request. An error in the text of one of them ends that one alone."""

    def __init__(self) -> None:
        self._by_id: dict[int, GenerationStream] = {}
        self._due: list[GenerationStream] = []
        """The streams that emitted something which was not delivered."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[GenerationStream]:
        return iter(list(self._by_id.values()))

    def add(self, stream: GenerationStream) -> None:
        self._by_id[stream.request.id] = stream

    def remove(self, request: Request) -> GenerationStream | None:
        """Return the stream of a request that is over; None if it was not there."""
        return self._by_id.pop(request.id, None)

    def started(self, requests: list[Request], now: float) -> None:
        """Note that these requests begin to run at `now` of the monotonic clock."""
        for request in requests:
            if (stream := self._by_id.get(request.id)) is not None:
                stream.started(now)

    def take(self, events: list[Event], finish: Callable[[Request], None]) -> bool:
        """Add the tokens of a step to their streams. Return whether one of them is a first token.

        `finish` is called with a request whose text ended where the core knows of no end.
        """
        begun = False
        for event in events:
            stream = self._by_id.get(event.request.id)
            if stream is None:
                continue
            reason: FinishReason | None = None
            try:
                if isinstance(event, TokenEvent):
                    reason = stream.emit(event.token, event.finish_reason, event.logprob, event.top)
                elif isinstance(event, PromptEvent):
                    stream.add_prompt_logprobs(event)
                    continue
                else:
                    del self._by_id[event.request.id]
                    stream.fail(GenerationError(event.message))
                    continue
            except Exception as error:
                log.error(
                    "the tokens of request %s cannot be decoded: it fails, the others go on",
                    stream.request_id or event.request.id,
                    exc_info=error,
                )
                del self._by_id[event.request.id]
                stream.fail(GenerationError("its tokens cannot be decoded"))
                finish(event.request)
                continue
            if not stream.due:
                stream.due = True
                self._due.append(stream)
                if not stream.begun:
                    stream.begun = begun = True
            if reason is not None:
                del self._by_id[event.request.id]
                finish(event.request)
        return begun

    def deliver(self) -> None:
        """Deliver to the clients what the streams emitted, once for all that came together."""
        due, self._due = self._due, []
        for stream in due:
            stream.deliver()

    def fail_all(self, error: ServerError, of_waiting: ServerError) -> None:
        """End those that have run with `error`, and those that have not with the other one."""
        for stream in self._by_id.values():
            stream.fail(error if stream.request.charged else of_waiting)
        self._by_id.clear()
