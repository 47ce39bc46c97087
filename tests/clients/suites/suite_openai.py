"""OpenAI's `OpenAI` and `AsyncOpenAI`.

The library does not check what it receives; `checked` holds a reply to OpenAI's own schema.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, TypeVar

import openai
import pytest
from full_server import full_server
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
PROMPT = "The three primary colours are"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CHAT = "chat.completions.create"
COMPLETE = "completions.create"
A = "253"
"""The token of " a" in the embedded model's vocabulary."""

M = TypeVar("M", bound=BaseModel)


def method_of(client: Any, path: str) -> Any:
    for name in path.split("."):
        client = getattr(client, name)
    return client


class Blocking:
    """Calls a method of `OpenAI`; a stream is returned as a list."""

    def __call__(self, path: str, api_key: str = KEY, seconds: float = 120, **kwargs: Any) -> Any:
        with openai.OpenAI(
            base_url=f"{URL}/v1", api_key=api_key, timeout=seconds, max_retries=0
        ) as client:
            result = method_of(client, path)(**kwargs)
            return list(result) if kwargs.get("stream") else result


class Async:
    """The same with `AsyncOpenAI`."""

    def __call__(self, path: str, **kwargs: Any) -> Any:
        return asyncio.run(self._call(path, **kwargs))

    async def _call(
        self, path: str, api_key: str = KEY, seconds: float = 120, **kwargs: Any
    ) -> Any:
        async with openai.AsyncOpenAI(
            base_url=f"{URL}/v1", api_key=api_key, timeout=seconds, max_retries=0
        ) as client:
            result = await method_of(client, path)(**kwargs)
            return [one async for one in result] if kwargs.get("stream") else result


@pytest.fixture(params=[Blocking, Async])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param()


def checked(schema: type[M], reply: Any) -> M:
    """The reply of OpenAI's client, read as this schema."""
    return schema.model_validate_json(reply.to_json())


def chat(**kwargs: Any) -> dict[str, Any]:
    """Arguments of a greedy chat."""
    return {"model": "tgi", "messages": QUESTION, "max_tokens": 40, "temperature": 0, **kwargs}


def completion(**kwargs: Any) -> dict[str, Any]:
    """Arguments of a greedy completion."""
    return {"model": "tgi", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **kwargs}


def texts(chunks: list[Any], n: int = 1) -> list[str]:
    """What a streamed chat said, by choice."""
    found = [""] * n
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] += choice.delta.content or ""
    return found


def test_models() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)

    (model,) = client.models.list().data

    assert checked(Model, model).id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("owner/other")
    assert raised.value.code == "model_not_found"


def test_chat(call: Any) -> None:
    answer = checked(ChatCompletion, call(CHAT, **chat(model="a-name-of-its-own")))
    other = call(CHAT, **chat(max_tokens=1))

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == "a-name-of-its-own"
    assert answer.id.startswith("chatcmpl-")
    assert answer.id != other.id
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_token_by_token(call: Any) -> None:
    answer = call(CHAT, **chat())
    chunks = call(CHAT, **chat(stream=True))

    for chunk in chunks:
        checked(ChatCompletionChunk, chunk)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert texts(chunks) == [answer.choices[0].message.content]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_of_a_stream(call: Any) -> None:
    answer = call(CHAT, **chat(max_tokens=4))
    *reported, ending = call(
        CHAT, **chat(max_tokens=4, stream=True, stream_options={"include_usage": True})
    )

    assert all(chunk.usage is None and chunk.choices for chunk in reported)
    assert checked(ChatCompletionChunk, ending).choices == []
    assert ending.usage == answer.usage


def test_the_helper_that_gathers_a_stream() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)

    with client.chat.completions.stream(**chat()) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        message = stream.get_final_completion().choices[0].message

    assert message.content == "".join(deltas)
    assert message.role == "assistant"


def test_log_probabilities(call: Any) -> None:
    asked = chat(max_tokens=6, logprobs=True, top_logprobs=3)
    answer = checked(ChatCompletion, call(CHAT, **asked))
    chunks = call(CHAT, **asked, stream=True)

    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 6
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert token.logprob <= 0
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) >= 3
        assert token.top_logprobs[0].token == token.token
    streamed = [one for chunk in chunks for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in content])


@pytest.mark.parametrize("stop", ["Paris", ["London", "Paris"]])
def test_stop(call: Any, stop: str | list[str]) -> None:
    answer = call(CHAT, **chat(stop=stop))
    chunks = call(CHAT, **chat(stop=stop, stream=True))

    assert answer.choices[0].message.content == "The capital of France is "
    assert answer.choices[0].finish_reason == "stop"
    assert texts(chunks) == ["The capital of France is "]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_answers(call: Any) -> None:
    asked = chat(max_tokens=12, temperature=1.5, n=3, seed=5)
    answer = checked(ChatCompletion, call(CHAT, **asked))
    chunks = call(CHAT, **asked, stream=True)

    reported = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(reported)) == 3
    assert texts(chunks, 3) == reported


def test_a_bias_can_force_a_token_and_forbid_it(call: Any) -> None:
    forced = call(CHAT, **chat(max_tokens=3, logit_bias={A: 100}))
    forbidden = call(COMPLETE, **completion(prompt="The sea is", logit_bias={A: -100}))

    assert forced.choices[0].message.content == " a a a"
    assert call(COMPLETE, **completion(prompt="The sea is")).choices[0].text.startswith(" a ")
    assert not forbidden.choices[0].text.startswith(" a ")


def test_penalties_keep_a_text_from_repeating_itself(call: Any) -> None:
    asked = completion(prompt="1 1 1 1 1 1 1 1", max_tokens=12)
    plain = call(COMPLETE, **asked).choices[0].text
    varied = call(COMPLETE, **asked, frequency_penalty=2, presence_penalty=2).choices[0].text

    assert len(set(varied.split())) > len(set(plain.split()))


def test_a_chat_as_applications_send_it(call: Any) -> None:
    answer = call(
        CHAT,
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": "Answer in one sentence."},
            {"role": "user", "content": [{"type": "text", "text": "Say hello."}], "name": "ann"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Again."},
        ],
        max_completion_tokens=3,
        temperature=1,
        top_p=1,
        n=1,
        stream=False,
        stop=None,
        frequency_penalty=0,
        presence_penalty=0,
        logit_bias={},
        logprobs=False,
        response_format={"type": "text"},
        seed=1,
        user="ann",
        metadata={"purpose": "a test"},
        store=False,
        service_tier="auto",
        tool_choice="none",
        extra_body={"top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0},
    )

    assert checked(ChatCompletion, answer).usage.completion_tokens <= 3


def test_completions(call: Any) -> None:
    reply = checked(Completion, call(COMPLETE, **completion()))
    chunks = call(COMPLETE, **completion(stream=True))

    (choice,) = reply.choices
    assert choice.finish_reason == "length"
    assert reply.usage.completion_tokens == 8
    assert reply.id.startswith("cmpl-")
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "length"]


def test_several_completions_of_several_prompts(call: Any) -> None:
    prompts = [PROMPT, "The sea is"]
    asked = completion(prompt=prompts, n=2, temperature=1.5, seed=3)
    reply = checked(Completion, call(COMPLETE, **asked))
    chunks = call(COMPLETE, **asked, stream=True)

    reported = ["", "", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            reported[choice.index] += choice.text
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reported == [choice.text for choice in reply.choices]


def test_log_probabilities_of_completions(call: Any) -> None:
    reply = checked(Completion, call(COMPLETE, **completion(logprobs=2)))

    (choice,) = reply.choices
    reported = choice.logprobs
    assert "".join(reported.tokens) == choice.text
    for token, logprob, top in zip(
        reported.tokens, reported.token_logprobs, reported.top_logprobs, strict=True
    ):
        assert top[token] == pytest.approx(logprob)
        assert len(top) >= 2
    for token, offset in zip(reported.tokens, reported.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)


def test_an_echo_scores_the_prompt(call: Any) -> None:
    reply = call(COMPLETE, **completion(max_tokens=2, echo=True, logprobs=1))
    scored = call(COMPLETE, **completion(max_tokens=0, echo=True, logprobs=1))

    (choice,) = reply.choices
    reported = choice.logprobs
    assert choice.text.startswith(PROMPT)
    assert "".join(reported.tokens) == choice.text
    assert reported.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in reported.token_logprobs[1:])
    assert scored.choices[0].text == PROMPT
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        reported.token_logprobs[1:-2], abs=1e-3
    )


def test_the_best_of_several(call: Any) -> None:
    reply = call(COMPLETE, **completion(best_of=3, n=1, temperature=1.5))

    assert len(reply.choices) == 1
    assert reply.usage.completion_tokens == 24


def test_stop_of_completions(call: Any) -> None:
    reply = call(COMPLETE, **completion(max_tokens=24, stop=" blue"))
    chunks = call(COMPLETE, **completion(max_tokens=24, stop=" blue", stream=True))

    assert reply.choices[0].finish_reason == "stop"
    assert " blue" not in reply.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        (CHAT, chat(temperature=-1), "`temperature` must be strictly positive"),
        (CHAT, chat(messages="none"), "messages"),
        (CHAT, chat(top_logprobs=50), "`top_logprobs` must be >= 0 and <= 20"),
        (CHAT, chat(max_tokens=100_000, n=10), "`n` must be > 0 and <= 8"),
        (COMPLETE, completion(top_p=2), "`top_p` must be > 0.0 and < 1.0"),
        (COMPLETE, completion(suffix="."), "Suffix is not supported"),
        (COMPLETE, completion(prompt=["a"] * 33), "maximum allowed batch size of 32"),
    ],
)
def test_what_is_refused(
    call: Any, path: str, arguments: dict[str, Any], message: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        call(path, **arguments, stream=stream)

    assert message in raised.value.body["message"]
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "arguments", "param"),
    [
        (CHAT, chat(messages=[{"role": "user", "content": "a b c " * 5000}]), "messages"),
        (COMPLETE, completion(prompt="a b c " * 5000), "prompt"),
    ],
)
def test_a_prompt_that_is_too_long(
    call: Any, path: str, arguments: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        call(path, **arguments, stream=stream)

    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == param
    assert "maximum context length is 8192 tokens" in raised.value.body["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "arguments"), [(CHAT, chat()), (COMPLETE, completion())])
def test_an_overloaded_server(
    call: Any, path: str, arguments: dict[str, Any], stream: bool
) -> None:
    with full_server(), pytest.raises(openai.RateLimitError) as raised:
        call(path, **arguments, stream=stream)

    assert "Model is overloaded" in str(raised.value.body)
    assert int(raised.value.response.headers["retry-after"]) > 0


def test_a_wrong_key(call: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        call(CHAT, api_key="wrong", **chat())

    assert raised.value.code == "invalid_api_key"


def test_a_route_that_is_not_there(call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        call("embeddings.create", model="tgi", input="a")

    assert "/v1/embeddings" in raised.value.body["message"]


def test_a_body_that_is_too_large(call: Any) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        call(COMPLETE, **completion(prompt="a" * 2_000_000))

    assert raised.value.status_code == 413
    assert "--payload-limit" in raised.value.body["message"]


def test_a_conversation_is_not_computed_again(call: Any) -> None:
    prompt = "The cat sat on the mat. " * 40

    call(COMPLETE, **completion(prompt=prompt, max_tokens=1))
    usage = call(COMPLETE, **completion(prompt=prompt, max_tokens=1)).usage

    cached = usage.prompt_tokens_details.cached_tokens
    assert usage.prompt_tokens - 32 < cached < usage.prompt_tokens


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, -(2**63)])
def test_any_seed_makes_the_same_text_again(call: Any, seed: int) -> None:
    first, again = (call(CHAT, **chat(temperature=1.5, seed=seed, max_tokens=8)) for _ in range(2))

    assert first.choices[0].message.content == again.choices[0].message.content


def test_a_client_that_does_not_wait(call: Any) -> None:
    with pytest.raises(openai.APITimeoutError):
        call(COMPLETE, seconds=0.3, **completion(max_tokens=2000))


def test_the_headers_of_a_reply() -> None:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)

    raw = client.chat.completions.with_raw_response.create(**chat(max_tokens=2))

    assert raw.headers["x-generated-tokens"] == "2"
    assert raw.request_id == raw.headers["x-request-id"]
    assert raw.parse().usage.prompt_tokens == int(raw.headers["x-prompt-tokens"])
