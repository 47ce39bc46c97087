"""litellm: chats and completions of an OpenAI-compatible server, its exceptions, its router."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Literal

import pytest
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
import litellm

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WORD = "word " * 9000
"""More tokens than the server takes."""


class GetWeather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "London"]
    unit: Literal["celsius", "fahrenheit"]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": GetWeather.model_json_schema(),
        },
    }
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
PROVIDERS = ["openai", "hosted_vllm", "huggingface"]


def asked(provider: str = "openai", **more: Any) -> dict[str, Any]:
    """Arguments of a greedy chat."""
    return {
        "model": f"{provider}/tgi",
        "api_base": URL if provider == "huggingface" else f"{URL}/v1",
        "api_key": KEY,
        "messages": QUESTION,
        "max_tokens": 40,
        "temperature": 0,
        "num_retries": 0,
        "max_retries": 0,
        **more,
    }


def text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_stream_says_what_the_whole_answer_says(provider: str) -> None:
    whole = litellm.completion(**asked(provider))
    chunks = list(
        litellm.completion(**asked(provider), stream=True, stream_options={"include_usage": True})
    )

    reported = whole.choices[0].message.content
    assert "Paris" in reported
    assert whole.choices[0].finish_reason == "stop"
    assert text(chunks) == reported
    built = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert built.choices[0].message.content == reported
    assert built.usage.completion_tokens == whole.usage.completion_tokens
    assert built.usage.prompt_tokens == whole.usage.prompt_tokens


async def both_ways() -> tuple[str, str]:
    whole = await litellm.acompletion(**asked())
    stream = await litellm.acompletion(**asked(), stream=True)
    return whole.choices[0].message.content, text([chunk async for chunk in stream])


def test_the_same_asynchronously() -> None:
    whole, streamed = asyncio.run(both_ways())

    assert whole == streamed == litellm.completion(**asked()).choices[0].message.content


def test_parameters_of_sampling() -> None:
    sampled: dict[str, Any] = {
        "temperature": 1.5,
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "stop": ["\n"],
        "n": 2,
        "logit_bias": {"253": -100},
        "user": "ann",
        "max_tokens": 8,
        "extra_body": {"top_k": 50, "repetition_penalty": 1.02},
    }
    first, again = (litellm.completion(**asked(**sampled)) for _ in range(2))

    reported = [choice.message.content for choice in first.choices]
    assert len(reported) == 2
    assert reported == [choice.message.content for choice in again.choices]


def test_log_probabilities() -> None:
    answer = litellm.completion(**asked(logprobs=True, top_logprobs=2, max_tokens=3))

    assert len(answer.choices[0].logprobs.content) == 3


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_calls(provider: str, choice: Any) -> None:
    body = asked(provider, tools=TOOLS, tool_choice=choice, max_tokens=80)
    whole = litellm.completion(**body)
    chunks = list(litellm.completion(**body, stream=True))
    built = litellm.stream_chunk_builder(chunks, messages=QUESTION)

    calls = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == built.choices[0].finish_reason == "tool_calls"
    for call, streamed in zip(calls, built.choices[0].message.tool_calls, strict=True):
        assert call.function.name == streamed.function.name == "get_weather"
        GetWeather.model_validate_json(call.function.arguments)
        assert streamed.function.arguments == call.function.arguments
    message = whole.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "Sunny."}
        for call in calls
    ]
    next_body = asked(messages=[*QUESTION, message, *results], tools=TOOLS, max_tokens=8)
    assert litellm.completion(**next_body, tool_choice="none").choices[0].message.content


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_structured_output(provider: str) -> None:
    body = asked(provider, response_format=GetWeather, max_tokens=80)
    whole = litellm.completion(**body)
    streamed = text(list(litellm.completion(**body, stream=True)))

    GetWeather.model_validate_json(whole.choices[0].message.content)
    assert streamed == whole.choices[0].message.content


def test_structured_output_and_tools_in_one_request() -> None:
    body = asked(tools=TOOLS, response_format=GetWeather, max_tokens=80)
    message = litellm.completion(**body).choices[0].message

    if message.tool_calls:
        assert message.tool_calls[0].function.name == "get_weather"
    else:
        GetWeather.model_validate_json(message.content)


def test_any_object() -> None:
    answer = litellm.completion(**asked(response_format={"type": "json_object"}, max_tokens=200))

    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_completions() -> None:
    body = {**asked("text-completion-openai", max_tokens=8), "prompt": "The sea is"}
    del body["messages"]
    whole = litellm.text_completion(**body)
    streamed = list(litellm.text_completion(**body, stream=True))

    assert whole.choices[0].text
    assert "".join(piece.choices[0].text or "" for piece in streamed) == whole.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_refusals(provider: str, stream: bool) -> None:
    """A prompt that is too long has an exception of its own: routers look for other models then."""

    def ask(**more: Any) -> None:
        answer = litellm.completion(**asked(provider, **more), stream=stream)
        if stream:
            list(answer)

    with pytest.raises(litellm.ContextWindowExceededError, match=r"819[12]"):
        ask(messages=[{"role": "user", "content": WORD}])
    with pytest.raises((litellm.APIError, litellm.BadRequestError), match="top_p") as raised:
        ask(top_p=2)
    assert raised.value.status_code == 400
    with pytest.raises(litellm.AuthenticationError) as refused:
        ask(api_key="wrong")
    assert refused.value.status_code == 401


def test_a_router_goes_on_to_another_model() -> None:
    dead = {**asked(), "api_base": "http://127.0.0.1:9/v1"}
    models = [
        {"model_name": name, "litellm_params": {k: v for k, v in one.items() if k != "messages"}}
        for name, one in (("first", dead), ("second", asked()))
    ]
    router = litellm.Router(
        model_list=models, fallbacks=[{"first": ["second"]}], num_retries=0, retry_after=0
    )

    answer = router.completion(model="first", messages=QUESTION)

    assert "Paris" in answer.choices[0].message.content


async def cancelled() -> None:
    """Leave more streams than the server works on at once, each of which would take minutes."""
    for _ in range(12):
        stream = await litellm.acompletion(
            **asked(max_tokens=8000), stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.aclose()


def test_what_is_cancelled_makes_room_for_others() -> None:
    asyncio.run(cancelled())

    answer = litellm.completion(**asked(max_tokens=2), timeout=20)
    assert answer.usage.completion_tokens == 2
