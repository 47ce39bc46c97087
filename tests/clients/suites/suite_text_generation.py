"""text-generation's `Client` and `AsyncClient`.

Version 0.7.0 cannot read a streamed chat, of TGI 3 as little as of this server: its `ChoiceDelta`
requires `tool_calls`, which a piece of text does not have, and it takes `[DONE]` for JSON. It also
requires `role` in every delta, which TGI and `--strict-tgi` send, and OpenAI's first one alone has.
The tests of that show where it gives up, and that it stumbles over nothing else.
"""

from __future__ import annotations

import asyncio
import os
from json import JSONDecodeError
from typing import Any

import pytest
import text_generation.client
from full_server import full_server
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError
from text_generation.types import (
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    FinishReason,
    Message,
)

URL = os.environ["TGI_URL"]
HEADERS = {"Authorization": f"Bearer {os.environ['TGI_API_KEY']}"}
SECONDS = 120
PROMPT = "The three primary colours are"
QUESTION = Message(role="user", content="What is the capital of France?")


class Blocking:
    """Calls a method of `Client`; a stream is returned as a list."""

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(Client(URL, HEADERS, timeout=SECONDS), method)(*args, **kwargs)
        return list(result) if method.endswith("stream") else result

    def chat_into(self, chunks: list[ChatCompletionChunk], *args: Any, **kwargs: Any) -> None:
        """A streamed chat: appends what comes, also where something is raised then."""
        chunks.extend(Client(URL, HEADERS, timeout=SECONDS).chat(*args, stream=True, **kwargs))


class Async:
    """The same with `AsyncClient`."""

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run(self._call(method, *args, **kwargs))

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(AsyncClient(URL, HEADERS, timeout=SECONDS), method)(*args, **kwargs)
        return [one async for one in result] if method.endswith("stream") else await result

    def chat_into(self, chunks: list[ChatCompletionChunk], *args: Any, **kwargs: Any) -> None:
        asyncio.run(self._chat_into(chunks, *args, **kwargs))

    async def _chat_into(self, chunks: list[Any], *args: Any, **kwargs: Any) -> None:
        client = AsyncClient(URL, HEADERS, timeout=SECONDS)
        async for chunk in await client.chat(*args, stream=True, **kwargs):
            chunks.append(chunk)


class LenientDelta(ChoiceDelta):
    role: str = "assistant"
    tool_calls: Any = None


class LenientChoice(Choice):
    delta: LenientDelta


class LenientChunk(ChatCompletionChunk):
    """Without the two requirements that are not met."""

    choices: list[LenientChoice]


@pytest.fixture(params=[Blocking, Async])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("prompt", [PROMPT, "Python의 asyncio 이벤트 루프를 설명해줘"])
def test_a_stream_says_what_the_whole_text_says(call: Any, prompt: str) -> None:
    whole = call("generate", prompt, max_new_tokens=12)
    events = call("generate_stream", prompt, max_new_tokens=12)

    *before, last = events
    assert "".join(event.token.text for event in events) == whole.generated_text
    assert last.generated_text == whole.generated_text
    assert last.details.generated_tokens == whole.details.generated_tokens
    assert last.details.finish_reason == whole.details.finish_reason
    assert all(event.generated_text is None and event.details is None for event in before)
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]


def test_details(call: Any) -> None:
    whole = call("generate", PROMPT, max_new_tokens=12, decoder_input_details=True)

    details = whole.details
    assert details.finish_reason == FinishReason.Length
    assert details.generated_tokens == len(details.tokens) == 12
    assert details.seed is None
    assert "".join(token.text for token in details.tokens) == whole.generated_text
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert details.prefill[0].logprob is None
    assert all(token.logprob < 0 for token in (*details.prefill[1:], *details.tokens))


def test_a_seed_gives_the_same_text_again(call: Any) -> None:
    sampled = {
        "max_new_tokens": 10,
        "do_sample": True,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.95,
        "typical_p": 0.95,
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.1,
        "watermark": True,
    }
    first = call("generate", PROMPT, seed=7, **sampled)
    again = call("generate_stream", PROMPT, seed=7, **sampled)

    assert first.details.seed == again[-1].details.seed == 7
    assert again[-1].generated_text == first.generated_text


def test_stop_sequences_end_the_text_and_are_kept(call: Any) -> None:
    whole = call("generate", PROMPT, max_new_tokens=24, stop_sequences=[" blue"])

    assert whole.details.finish_reason == FinishReason.StopSequence
    assert whole.generated_text.endswith(" blue")


def test_the_prompt_before_the_text(call: Any) -> None:
    text, full = (
        call("generate", PROMPT, max_new_tokens=4, return_full_text=wanted).generated_text
        for wanted in (False, True)
    )

    assert full == PROMPT + text


def test_the_best_of_two(call: Any) -> None:
    asked = {"max_new_tokens": 6, "do_sample": True}
    whole = call("generate", PROMPT, best_of=2, **asked)

    (other,) = whole.details.best_of_sequences
    assert other.generated_tokens == len(other.tokens)
    for seed, text in (
        (whole.details.seed, whole.generated_text),
        (other.seed, other.generated_text),
    ):
        assert call("generate", PROMPT, seed=seed, **asked).generated_text == text


def test_the_likeliest_tokens(call: Any) -> None:
    whole = call("generate", PROMPT, max_new_tokens=4, top_n_tokens=3)
    events = call("generate_stream", PROMPT, max_new_tokens=4, top_n_tokens=3)

    for token, top in zip(whole.details.tokens, whole.details.top_tokens, strict=True):
        assert len(top) >= 3
        assert top[0].id == token.id
    assert [event.top_tokens for event in events] == whole.details.top_tokens


def test_a_truncated_prompt_keeps_its_end(call: Any) -> None:
    whole = call("generate", PROMPT, max_new_tokens=8, truncate=3)
    end = call("generate", " primary colours are", max_new_tokens=8)

    assert whole.generated_text == end.generated_text


def test_chat(call: Any) -> None:
    answer = call("chat", [QUESTION], max_tokens=40, temperature=0.0)

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage["completion_tokens"] > 0


def test_a_streamed_chat_is_beyond_this_client(call: Any) -> None:
    chunks: list[ChatCompletionChunk] = []

    # It looks for an error in the first piece of text; one of the two does not get that far.
    with pytest.raises((KeyError, AttributeError), match=r"error|status"):
        call.chat_into(chunks, [QUESTION], max_tokens=40)

    assert chunks == []


def test_a_streamed_chat_has_all_else_that_this_client_needs(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_generation.client, "ChatCompletionChunk", LenientChunk)
    chunks: list[ChatCompletionChunk] = []

    with pytest.raises(JSONDecodeError) as raised:
        call.chat_into(chunks, [QUESTION], max_tokens=40, temperature=0.0)

    assert raised.value.doc.strip() == "[DONE]"
    whole = call("chat", [QUESTION], max_tokens=40, temperature=0.0)
    pieces = [chunk.choices[0] for chunk in chunks]
    text = "".join(piece.delta.content for piece in pieces)
    assert text == whole.choices[0].message.content
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_a_refused_generation_is_a_validation_error(call: Any, method: str) -> None:
    with pytest.raises(ValidationError, match="`max_new_tokens` must be strictly positive"):
        call(method, PROMPT, max_new_tokens=0)


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_a_prompt_that_does_not_fit(call: Any, method: str) -> None:
    with pytest.raises(ValidationError, match=r"must be <= 8192\. Given: 9\d\d\d `inputs` tokens"):
        call(method, "a b c " * 3000 + "a " * 300)


def test_an_overloaded_server(call: Any) -> None:
    with full_server(), pytest.raises(OverloadedError, match="Model is overloaded"):
        call("generate", PROMPT, max_new_tokens=1)
