"""huggingface_hub's `InferenceClient` and `AsyncInferenceClient`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import Any

import pytest
from full_server import full_server
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, ValidationError

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError,)
with contextlib.suppress(ImportError):
    # What `AsyncInferenceClient` raised before version 1.
    from aiohttp import ClientResponseError

    ERRORS += (ClientResponseError,)
PROMPT = "The three primary colours are"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Blocking:
    """Calls a method of `InferenceClient`; a stream is returned as a list."""

    def __call__(self, method: str, *args: Any, token: str = KEY, **kwargs: Any) -> Any:
        # A client that nobody holds any more closes its streams.
        client = InferenceClient(URL, token=token)
        result = getattr(client, method)(*args, **kwargs)
        return list(result) if kwargs.get("stream") else result


class Async:
    """The same with `AsyncInferenceClient`."""

    def __call__(self, method: str, *args: Any, token: str = KEY, **kwargs: Any) -> Any:
        return asyncio.run(self._call(method, token, *args, **kwargs))

    async def _call(self, method: str, token: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncInferenceClient(URL, token=token) as client:
            result = await getattr(client, method)(*args, **kwargs)
            return [one async for one in result] if kwargs.get("stream") else result


def status_of(error: Any) -> int:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else error.status


@pytest.fixture(params=[Blocking, Async])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("prompt", [PROMPT, "Python의 asyncio 이벤트 루프를 설명해줘"])
def test_a_stream_says_what_the_whole_text_says(call: Any, prompt: str) -> None:
    whole = call("text_generation", prompt, max_new_tokens=12, return_full_text=False)
    pieces = call("text_generation", prompt, max_new_tokens=12, stream=True)

    assert whole
    assert "".join(pieces) == whole


def test_details(call: Any) -> None:
    whole = call("text_generation", PROMPT, max_new_tokens=12, return_full_text=False, details=True)

    details = whole.details
    assert details.finish_reason == "length"
    assert details.generated_tokens == len(details.tokens) == 12
    assert details.seed is None
    assert "".join(token.text for token in details.tokens) == whole.generated_text
    assert all(token.logprob < 0 and not token.special for token in details.tokens)


def test_details_of_a_stream(call: Any) -> None:
    events = call("text_generation", PROMPT, max_new_tokens=12, details=True, stream=True)

    *before, last = events
    assert [event.index for event in events] == list(range(1, 13))
    assert all(event.generated_text is None and event.details is None for event in before)
    assert last.generated_text == PROMPT + "".join(event.token.text for event in events)
    assert last.details.finish_reason == "length"
    assert last.details.generated_tokens == 12
    assert last.details.input_length == 5


def test_a_seed_gives_the_same_text_again(call: Any) -> None:
    sampled = {
        "max_new_tokens": 10,
        "do_sample": True,
        "temperature": 1.5,
        "top_k": 50,
        "top_p": 0.95,
        "typical_p": 0.95,
        "repetition_penalty": 1.05,
        "details": True,
    }
    first, again, other = (
        call("text_generation", PROMPT, seed=seed, **sampled) for seed in (7, 7, 8)
    )

    assert first.details.seed == 7
    assert again.generated_text == first.generated_text
    assert other.generated_text != first.generated_text


def test_stop_sequences_end_the_text_and_are_kept(call: Any) -> None:
    whole = call("text_generation", PROMPT, max_new_tokens=24, stop=[" blue"], details=True)

    assert whole.details.finish_reason == "stop_sequence"
    assert whole.generated_text.endswith(" blue")
    assert whole.generated_text.count(" blue") == 1


def test_the_text_begins_with_the_prompt_unless_that_is_refused(call: Any) -> None:
    by_default = call("text_generation", PROMPT, max_new_tokens=4)
    full = call("text_generation", PROMPT, max_new_tokens=4, return_full_text=True)
    text = call("text_generation", PROMPT, max_new_tokens=4, return_full_text=False)

    assert by_default == full == PROMPT + text


def test_the_best_of_two(call: Any) -> None:
    asked = {"max_new_tokens": 6, "do_sample": True, "return_full_text": False, "details": True}
    whole = call("text_generation", PROMPT, best_of=2, **asked)

    (other,) = whole.details.best_of_sequences
    assert other.generated_tokens == len(other.tokens)
    for seed, text in (
        (whole.details.seed, whole.generated_text),
        (other.seed, other.generated_text),
    ):
        again = call("text_generation", PROMPT, seed=seed, **asked)
        assert again.generated_text == text


def test_the_likeliest_tokens(call: Any) -> None:
    whole = call("text_generation", PROMPT, max_new_tokens=4, top_n_tokens=3, details=True)

    for token, top in zip(whole.details.tokens, whole.details.top_tokens, strict=True):
        logprobs = [one["logprob"] for one in top]
        assert len(top) >= 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert top[0]["id"] == token.id


def test_details_of_the_prompt(call: Any) -> None:
    whole = call(
        "text_generation", PROMPT, max_new_tokens=1, decoder_input_details=True, details=True
    )

    first, *rest = whole.details.prefill
    assert "".join(token.text for token in whole.details.prefill) == PROMPT
    assert first.logprob is None
    assert all(token.logprob < 0 for token in rest)


def test_a_truncated_prompt_keeps_its_end(call: Any) -> None:
    asked = {"max_new_tokens": 8, "return_full_text": False}
    text = call("text_generation", PROMPT, truncate=3, **asked)

    assert text == call("text_generation", " primary colours are", **asked)


def test_chat(call: Any) -> None:
    answer = call("chat_completion", QUESTION, max_tokens=40, temperature=0.0)

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_token_by_token(call: Any) -> None:
    asked = {"max_tokens": 40, "temperature": 0.0}
    answer = call("chat_completion", QUESTION, **asked)
    chunks = call(
        "chat_completion",
        QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        **asked,
    )

    *reported, ending = chunks
    deltas = [chunk.choices[0].delta for chunk in reported]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == answer.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in reported[:-1]] == [None] * (
        len(reported) - 1
    )
    assert reported[-1].choices[0].finish_reason == "stop"
    assert ending.choices == []
    assert ending.usage.completion_tokens == answer.usage.completion_tokens


def test_chat_with_log_probabilities(call: Any) -> None:
    answer = call(
        "chat_completion",
        QUESTION,
        max_tokens=5,
        temperature=0.0,
        logprobs=True,
        top_logprobs=2,
    )

    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 5
    for token in content:
        assert token.logprob < 0
        assert token.top_logprobs[0].token == token.token


def test_several_answers(call: Any) -> None:
    answer = call("chat_completion", QUESTION, max_tokens=8, n=2, temperature=1.5, seed=3)

    assert [choice.index for choice in answer.choices] == [0, 1]


def test_chat_with_what_applications_send(call: Any) -> None:
    answer = call(
        "chat_completion",
        [{"role": "system", "content": "Answer in one sentence."}, *QUESTION],
        max_tokens=16,
        stop=["Paris"],
        temperature=0.0,
        top_p=1.0,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        extra_body={"repetition_penalty": 1.02},
    )

    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_tools(call: Any, choice: Any) -> None:
    asked = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 100, "temperature": 0.0}
    answer = call("chat_completion", QUESTION, **asked)
    chunks = call("chat_completion", QUESTION, stream=True, **asked)

    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    called = choice.message.tool_calls[0]
    assert called.id
    assert called.function.name == "get_weather"
    arguments = json.loads(called.function.arguments)
    assert arguments["unit"] in ("celsius", "fahrenheit")
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    streamed = "".join(piece.function.arguments for piece in pieces if piece.index == 0)
    assert streamed == called.function.arguments


def test_a_text_in_the_form_of_a_schema(call: Any) -> None:
    prompt = "다음 텍스트에서 정보를 추출: 김민수(32세)는 부산에 삽니다."
    grammar = {"type": "json", "value": PERSON}
    text = call("text_generation", prompt, grammar=grammar, max_new_tokens=100)
    pieces = call("text_generation", prompt, grammar=grammar, max_new_tokens=100, stream=True)

    person = json.loads(text)
    assert list(person) == ["name", "age", "city"]
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)
    assert isinstance(person["city"], str)
    assert "".join(pieces).removesuffix("<|im_end|>") == text  # a stream shows the end, as TGI's


def test_a_chat_in_the_form_of_a_schema(call: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = call("chat_completion", QUESTION, response_format=form, max_tokens=120)

    assert json.loads(answer.choices[0].message.content).keys() == {"name", "age", "city"}


def test_the_form_that_openai_made_known() -> None:
    client = InferenceClient(base_url=f"{URL}/v1/", api_key=KEY)

    answer = client.chat.completions.create(model="tgi", messages=QUESTION, max_tokens=2)

    assert answer.choices[0].finish_reason == "length"


def test_what_the_server_says_of_itself() -> None:
    client = InferenceClient(URL, provider="hf-inference", token=KEY)

    assert client.health_check() is True
    assert client.get_endpoint_info()["router"] == "text-generation-router"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("details", [False, True])
def test_a_refused_generation_is_a_validation_error(call: Any, stream: bool, details: bool) -> None:
    with pytest.raises(ValidationError, match="`max_new_tokens` must be strictly positive"):
        call("text_generation", PROMPT, max_new_tokens=0, stream=stream, details=details)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_chat_has_its_status(call: Any, stream: bool) -> None:
    with pytest.raises(ERRORS) as raised:
        call("chat_completion", QUESTION, temperature=-1.0, stream=stream)

    assert status_of(raised.value) == 400


def test_an_overloaded_server(call: Any) -> None:
    with full_server(), pytest.raises(OverloadedError):
        call("text_generation", PROMPT, max_new_tokens=1)


def test_a_wrong_key(call: Any) -> None:
    with pytest.raises(ERRORS) as raised:
        call("chat_completion", QUESTION, token="wrong")

    assert status_of(raised.value) == 401
