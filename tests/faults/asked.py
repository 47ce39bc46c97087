"""What clients ask for while faults happen, and what they read: every kind of stream there is."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient

from tests.integration.test_images import picture, url_of

N_TOKENS = 40
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "legs": {"type": "integer", "minimum": 0, "maximum": 900},
    },
    "required": ["name", "tags", "legs"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA, "strict": True}}
FORM = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
ENDLESS = {"type": "regex", "value": "([a-z]{2,9} ){600}"}
JSON = {"type": "json", "value": SCHEMA}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}
PATIENCE = 240.0
"""Seconds for one answer, restarts of the worker included, on a busy machine."""


class Answer(NamedTuple):
    """All that a client reads, in an order that does not depend on how it was cut into events."""

    text: str
    thoughts: str = ""
    calls: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reason: str = ""

    def differs(self, undisturbed: Answer) -> str:
        """Return how it differs from the undisturbed one; empty if it does not."""
        if self._replace(logprobs=()) != undisturbed._replace(logprobs=()):
            return f"{self} is not {undisturbed}"
        if self.logprobs != pytest.approx(undisturbed.logprobs, abs=1e-4):
            return f"its log-probabilities {self.logprobs} are not {undisturbed.logprobs}"
        return ""


class Asked(NamedTuple):
    """A request; `structured` if a grammar holds the answer, `seeded` if it is drawn."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def structured(self) -> bool:
        parts = {*self.body, *self.body.get("parameters", {})}
        return bool(parts & {"response_format", "grammar", "tools"})

    @property
    def seeded(self) -> bool:
        return "seed" in self.body or "seed" in self.body.get("parameters", {})


def text(kind: str, i: int, **parameters: Any) -> Asked:
    inputs = ("Once upon a time", "def main():", "The speed of light", "가나다라")[i % 4]
    fixed = {"max_new_tokens": N_TOKENS, "ignore_eos": True, "details": True}
    body = {"inputs": f"{inputs} {i}", "parameters": fixed | parameters}
    return Asked(kind, "/generate_stream", body)


def chat(kind: str, i: int, **fields: Any) -> Asked:
    body = {
        "messages": [{"role": "user", "content": f"What is {i} and what has {i} legs?"}],
        "max_tokens": N_TOKENS,
        "stream": True,
        "temperature": 0,
        "stream_options": {"include_usage": True},
    }
    return Asked(kind, "/v1/chat/completions", body | fields)


def completion(kind: str, i: int, **fields: Any) -> Asked:
    fixed = {"prompt": f"A list of {i} rivers:", "max_tokens": N_TOKENS, "stream": True}
    return Asked(kind, "/v1/completions", fixed | fields)


def look(kind: str, i: int, **fields: Any) -> Asked:
    """A chat about an image, one of four."""
    content = [
        {"type": "image_url", "image_url": {"url": url_of(picture(60, 40, i % 4))}},
        {"type": "text", "text": f"What are these {i}?"},
    ]
    return chat(kind, i, messages=[{"role": "user", "content": content}], **fields)


KINDS: tuple[Callable[[int], Asked], ...] = (
    lambda i: text("greedy", i),
    lambda i: text("seeded", i, **SAMPLED, seed=i),
    lambda i: text("regex", i, grammar=ENDLESS),
    lambda i: chat("schema", i, response_format=FORM, logprobs=True, top_logprobs=3),
    lambda i: text("scored prompt", i, decoder_input_details=True, top_n_tokens=2),
    lambda i: chat("seeded chat", i, temperature=0.8, seed=i, logprobs=True),
    lambda i: chat("called tool", i, tools=[TOOL], tool_choice="required"),
    lambda i: text("schema, seeded", i, **SAMPLED, seed=i, grammar=JSON),
    lambda i: chat("thoughts", i, enable_thinking=True, temperature=1.0, seed=i),
    lambda i: completion("penalized", i, frequency_penalty=0.7, temperature=0, logprobs=2),
    lambda i: text("client", i),
    lambda i: text("stopped", i, stop=["e", "er", "zz"], watermark=True),
)  # fmt: skip


ABOUT_IMAGES: tuple[Callable[[int], Asked], ...] = (
    lambda i: look("image", i),
    lambda i: look("image, seeded", i, temperature=0.8, seed=i, logprobs=True),
    lambda i: look("image, schema", i, response_format=FORM),
)


def asked(n: int, images: bool = False) -> list[Asked]:
    """The first `n`, of every kind in turn: a third structured, a third seeded."""
    kinds = ABOUT_IMAGES if images else KINDS
    return [kinds[i % len(kinds)](i) for i in range(n)]


class Failed(Exception):
    """The server ended a request with an error: of this status, or in a stream (200) an event."""

    def __init__(self, status: int, error: Any) -> None:
        super().__init__(f"{status}: {error}")
        self.status = status
        self.error = error


async def read(
    client: httpx.AsyncClient, one: Asked, on_event: Callable[[], None] = lambda: None
) -> Answer:
    """Ask, and read all of the answer. Raises Failed."""
    if one.kind == "client":
        return await _by_inference_client(str(client.base_url), one, on_event)
    if one.path == "/generate_stream" and one.body["parameters"].get("decoder_input_details"):
        return await _scored(client, one, on_event)
    answer = _Reading()
    async for event in _events(client, one):
        on_event()
        answer.add(event)
    return answer.whole()


async def _events(client: httpx.AsyncClient, one: Asked) -> AsyncIterator[dict[str, Any]]:
    ended = False
    async with client.stream("POST", one.path, json=one.body, timeout=PATIENCE) as response:
        if response.status_code != 200:
            raise Failed(response.status_code, (await response.aread()).decode())
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data:"):
                event = json.loads(line.removeprefix("data:"))
                if "error" in event:
                    raise Failed(response.status_code, event)
                yield event
                ended = ended or event.get("generated_text") is not None
    assert ended, "the stream was cut before its last event"


class _Reading:
    """An answer that is being read, of any route."""

    def __init__(self) -> None:
        self.text = self.thoughts = self.reason = ""
        self.calls: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    def add(self, event: dict[str, Any]) -> None:
        if "token" in event:
            assert event["index"] == len(self.tokens) + 1
            self._token(event["token"])
            self.logprobs += [one["logprob"] for one in event.get("top_tokens", [])]
            if event["generated_text"] is not None:
                # The texts of its tokens are those of the whole.
                self.text, self.reason = event["generated_text"], event["details"]["finish_reason"]
            return
        if usage := event.get("usage"):
            self.tokens = [usage["completion_tokens"]]
        for choice in event.get("choices", []):
            self._choice(choice)

    def _token(self, token: dict[str, Any]) -> None:
        self.tokens.append(token["id"])
        if token["logprob"] is not None:
            self.logprobs.append(token["logprob"])

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta", {})
        self.text += delta.get("content") or choice.get("text") or ""
        self.thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or []:
            function = call["function"]
            while len(self.calls) <= call["index"]:
                self.calls.append("")
            self.calls[call["index"]] += (function.get("name") or "") + function["arguments"]
        scores = choice.get("logprobs") or {}
        for token in scores.get("content") or []:
            self.logprobs += [token["logprob"], *(one["logprob"] for one in token["top_logprobs"])]
        self.logprobs += [one for one in scores.get("token_logprobs") or [] if one is not None]
        self.reason = choice.get("finish_reason") or self.reason

    def whole(self) -> Answer:
        return Answer(
            self.text,
            self.thoughts,
            "\n".join(self.calls),
            tuple(self.tokens),
            tuple(self.logprobs),
            self.reason,
        )


async def _scored(client: httpx.AsyncClient, one: Asked, on_event: Callable[[], None]) -> Answer:
    """A prompt's log-probabilities come with a whole answer only."""
    response = await client.post("/generate", json=one.body, timeout=PATIENCE)
    on_event()
    if response.status_code != 200:
        raise Failed(response.status_code, response.text)
    reply = response.json()
    details = reply["details"]
    scored = [*details["prefill"][1:], *details["tokens"]]
    scored += [top for tops in details["top_tokens"] for top in tops]
    return Answer(
        reply["generated_text"],
        tokens=tuple(one["id"] for one in scored),
        logprobs=tuple(one["logprob"] for one in scored),
        reason=details["finish_reason"],
    )


async def _by_inference_client(url: str, one: Asked, on_event: Callable[[], None]) -> Answer:
    parameters = {**one.body["parameters"]}
    for name in ("ignore_eos", "details"):
        del parameters[name]
    reading = _Reading()
    async with AsyncInferenceClient(model=url, timeout=PATIENCE) as client:
        stream = await client.text_generation(
            one.body["inputs"], stream=True, details=True, **parameters
        )
        async for event in stream:
            on_event()
            reading.add(
                {
                    "index": event.index,
                    "token": {"id": event.token.id, "logprob": event.token.logprob},
                    "generated_text": event.generated_text,
                    "details": event.details and {"finish_reason": event.details.finish_reason},
                }
            )
    assert reading.reason, "the stream was cut before its last event"
    return reading.whole()


class Timed(NamedTuple):
    """An answer and when its events came, in seconds of the monotonic clock."""

    answer: Answer
    times: list[float]

    def pause(self, since: float) -> float | None:
        """Return the longest time without an event that ended after `since`, begun then or at the
        event before; None where all had come."""
        if self.times[-1] < since:
            return None
        times = [min(since, self.times[0]), *self.times]
        gaps = pairwise(times)
        return max(later - before for before, later in gaps if later > since)


async def read_timed(
    client: httpx.AsyncClient, one: Asked, on_event: Callable[[], None] = lambda: None
) -> Timed:
    """`read`, with the times of events."""
    times: list[float] = []

    def noted() -> None:
        times.append(time.monotonic())
        on_event()

    return Timed(await read(client, one, noted), times)
