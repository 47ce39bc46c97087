"""pydantic-ai: agents with tools and typed output, over its `OpenAIChatModel`."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.exceptions import (
    ModelAuthenticationError,
    ModelContextWindowExceededError,
    ModelHTTPError,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.providers.vllm import VLLMProvider
from pydantic_ai.tools import ToolDefinition

URL = f"{os.environ['TGI_URL']}/v1"
KEY = os.environ["TGI_API_KEY"]
QUESTION = "What is the capital of France?"
CITIES = Literal["Paris", "London"]


class Weather(BaseModel):
    """The weather of a city."""

    city: CITIES
    unit: Literal["celsius", "fahrenheit"]


class Anything(BaseModel, extra="allow"):
    """Any object."""


PROVIDERS: dict[str, Any] = {
    "openai": lambda key: OpenAIProvider(base_url=URL, api_key=key),
    "compatible": lambda key: OpenAICompatibleProvider("tgi", base_url=URL, api_key=key),
    "vllm": lambda key: VLLMProvider(base_url=URL, api_key=key),
}


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Any:
    return PROVIDERS[request.param]


def agent(
    provider: Any, key: str = KEY, settings: dict[str, Any] | None = None, **more: Any
) -> Any:
    """A greedy one."""
    greedy = {"temperature": 0, "max_tokens": 100, **(settings or {})}
    return Agent(OpenAIChatModel("tgi", provider=provider(key)), model_settings=greedy, **more)


def with_tool(provider: Any, output: Any, *, forced: bool = True) -> tuple[Any, list[str]]:
    """An agent that may call a tool once, or has to, and the calls of it."""
    calls: list[str] = []

    async def once(context: RunContext[None], tool: ToolDefinition) -> ToolDefinition | None:
        return None if calls else tool

    def first_a_call(context: RunContext[None]) -> dict[str, Any]:
        choice = ["get_weather"] if forced and not calls else "auto"
        return {"temperature": 0, "max_tokens": 100, "tool_choice": choice}

    one = Agent(
        OpenAIChatModel("tgi", provider=provider(KEY)),
        model_settings=first_a_call,
        output_type=output,
    )

    @one.tool_plain(prepare=once)
    def get_weather(city: CITIES) -> str:
        """Tell the weather of a city."""
        calls.append(city)
        return "Sunny."

    return one, calls


async def pieces_of(one: Any) -> list[str]:
    async with one.run_stream(QUESTION) as run:
        return [piece async for piece in run.stream_text(delta=True, debounce_by=None)]


async def last_output_of(one: Any) -> Any:
    async with one.run_stream(QUESTION) as run:
        return [output async for output in run.stream_output(debounce_by=None)][-1]


def test_a_stream_says_what_the_whole_answer_says(provider: Any) -> None:
    one = agent(provider, system_prompt="You are helpful.", instructions="Be brief.")
    whole = one.run_sync(QUESTION)
    pieces = asyncio.run(pieces_of(one))

    assert "Paris" in whole.output
    assert len(pieces) > 2
    assert "".join(pieces) == whole.output
    assert whole.usage.input_tokens > 20
    assert whole.usage.output_tokens > 5


def test_a_conversation_goes_on(provider: Any) -> None:
    one = agent(provider, settings={"max_tokens": 8})
    first = one.run_sync(QUESTION)

    second = one.run_sync("Why?", message_history=first.all_messages())

    assert second.output
    assert second.usage.input_tokens > first.usage.input_tokens


def test_parameters_of_sampling(provider: Any) -> None:
    settings = {
        "temperature": 1.5,
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {"253": -100},
        "stop_sequences": ["\n"],
        "parallel_tool_calls": False,
        "openai_user": "ann",
        "openai_logprobs": True,
        "openai_top_logprobs": 2,
        "extra_body": {"top_k": 50},
    }
    one = agent(provider, settings={**settings, "max_tokens": 8})

    assert one.run_sync(QUESTION).output == one.run_sync(QUESTION).output


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_typed_output(provider: Any, form: Any) -> None:
    one = agent(provider, output_type=form(Weather))
    whole = one.run_sync(QUESTION).output

    assert isinstance(whole, Weather)
    assert asyncio.run(last_output_of(one)) == whole


def test_output_by_a_prompt(provider: Any) -> None:
    one = agent(provider, output_type=PromptedOutput(Anything), settings={"max_tokens": 200})

    assert isinstance(one.run_sync(QUESTION).output, Anything)


def test_one_of_several_outputs(provider: Any) -> None:
    class Refusal(BaseModel):
        """Nothing can be said."""

        reason: Literal["unknown", "secret"]

    output = agent(provider, output_type=[Weather, Refusal]).run_sync(QUESTION).output

    assert isinstance(output, Weather | Refusal)


def test_a_call_and_then_words(provider: Any) -> None:
    one, calls = with_tool(provider, str)

    answer = one.run_sync("What is the weather in Paris?")

    assert len(calls) == 1
    assert answer.output
    assert answer.usage.requests == 2


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_a_call_and_then_typed_output(provider: Any, form: Any) -> None:
    """With `NativeOutput` each request has tools and a form of the answer."""
    one, calls = with_tool(provider, form(Weather))

    answer = one.run_sync("What is the weather in Paris?")

    assert len(calls) == 1
    assert isinstance(answer.output, Weather)


def test_a_tool_that_may_be_called_beside_typed_output(provider: Any) -> None:
    one, calls = with_tool(provider, NativeOutput(Weather), forced=False)

    assert isinstance(one.run_sync(QUESTION).output, Weather)
    assert len(calls) <= 1


def test_refusals(provider: Any) -> None:
    with pytest.raises(ModelHTTPError, match="top_p") as raised:
        agent(provider, settings={"top_p": 2}).run_sync(QUESTION)
    assert raised.value.status_code == 400
    with pytest.raises(ModelContextWindowExceededError, match=r"819[12]"):
        agent(provider).run_sync("word " * 9000)
    with pytest.raises(ModelAuthenticationError) as refused:
        agent(provider, key="wrong").run_sync(QUESTION)
    assert refused.value.body


async def cancelled(provider: Any) -> None:
    """Leave more streams than the server works on at once, each of which would take minutes."""
    settings = {"max_tokens": 8000, "extra_body": {"ignore_eos": True}}
    for _ in range(12):
        async with agent(provider, settings=settings).run_stream(QUESTION) as run:
            async for _ in run.stream_text(delta=True, debounce_by=None):
                await run.cancel()
                break


def test_what_is_cancelled_makes_room_for_others(provider: Any) -> None:
    asyncio.run(cancelled(provider))

    one = agent(provider, settings={"max_tokens": 2, "timeout": 20})
    assert one.run_sync(QUESTION).usage.output_tokens == 2
