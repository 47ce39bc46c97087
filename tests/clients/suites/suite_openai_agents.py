"""openai-agents: agents over chat completions, as for any server that is not OpenAI's."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    AgentOutputSchema,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

set_tracing_disabled(True)
URL = f"{os.environ['TGI_URL']}/v1"
KEY = os.environ["TGI_API_KEY"]
QUESTION = "What is the capital of France?"


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "London"]
    unit: Literal["celsius", "fahrenheit"]


def weather_tool() -> tuple[Any, list[str]]:
    """A tool that can be called in one turn, and the calls of it."""
    calls: list[str] = []

    @function_tool(is_enabled=lambda context, agent: not calls)
    def get_weather(city: Literal["Paris", "London"]) -> str:
        """Tell the weather of a city."""
        calls.append(city)
        return "Sunny."

    return get_weather, calls


def run(agent_options: dict[str, Any] | None = None, key: str = KEY, **settings: Any) -> Any:
    """The result of a greedy agent."""
    return asyncio.run(_run(agent_options or {}, key, settings))


async def _run(agent_options: dict[str, Any], key: str, settings: dict[str, Any]) -> Any:
    async with openai.AsyncOpenAI(base_url=URL, api_key=key, max_retries=0) as client:
        question = agent_options.pop("question", QUESTION)
        return await Runner.run(agent(client, agent_options, settings), question, max_turns=4)


def agent(client: openai.AsyncOpenAI, options: dict[str, Any], settings: dict[str, Any]) -> Any:
    return Agent(
        name="assistant",
        instructions="You are a helpful assistant.",
        model=OpenAIChatCompletionsModel("tgi", openai_client=client),
        model_settings=ModelSettings(**{"temperature": 0, "max_tokens": 100, **settings}),
        **options,
    )


async def _events(options: dict[str, Any], settings: dict[str, Any]) -> tuple[list[Any], Any]:
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as client:
        result = Runner.run_streamed(agent(client, options, settings), QUESTION, max_turns=4)
        return [event async for event in result.stream_events()], result.final_output


def test_a_stream_says_what_the_whole_answer_says() -> None:
    whole = run()
    events, streamed = asyncio.run(_events({}, {"include_usage": True}))

    pieces = [
        event.data.delta
        for event in events
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "Paris" in whole.final_output
    assert "".join(pieces) == streamed == whole.final_output
    assert whole.context_wrapper.usage.output_tokens > 5


def test_parameters_of_sampling() -> None:
    settings: dict[str, Any] = {
        "temperature": 1.5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "max_tokens": 8,
        "store": False,
        "metadata": {"purpose": "a test"},
        "parallel_tool_calls": None,
        "top_logprobs": 2,
        "extra_body": {"seed": 7, "top_k": 50},
        "extra_args": {"user": "ann"},
    }

    assert run(**settings).final_output == run(**settings).final_output


@pytest.mark.parametrize("choice", ["required", "get_weather"])
@pytest.mark.parametrize("parallel", [None, False])
def test_a_forced_call(choice: str, parallel: bool | None) -> None:
    """The agent goes on with the result of the call until the model answers in words."""
    tool, calls = weather_tool()

    result = run(
        {"tools": [tool], "question": "What is the weather in Paris?"},
        tool_choice=choice,
        parallel_tool_calls=parallel,
    )

    assert calls
    assert set(calls) <= {"Paris", "London"}
    assert result.final_output


def test_a_streamed_call() -> None:
    tool, calls = weather_tool()
    options = {"tools": [tool], "tool_use_behavior": "stop_on_first_tool"}
    events, output = asyncio.run(_events(options, {"tool_choice": "get_weather"}))

    names = [event.name for event in events if event.type == "run_item_stream_event"]
    assert len(calls) == 1
    assert names[:2] == ["tool_called", "tool_output"]
    assert output == "Sunny."


@pytest.mark.parametrize("strict", [True, False])
def test_typed_output(strict: bool) -> None:
    form = {"output_type": AgentOutputSchema(Weather, strict_json_schema=strict)}

    assert isinstance(run(dict(form)).final_output, Weather)
    assert isinstance(asyncio.run(_events(form, {}))[1], Weather)


def test_a_call_and_then_typed_output() -> None:
    """Each request has tools and a form of the answer; the first one has to be a call."""
    tool, calls = weather_tool()

    result = run({"tools": [tool], "output_type": Weather}, tool_choice="required")

    assert calls
    assert isinstance(result.final_output, Weather)


def test_tools_that_may_be_called_beside_typed_output() -> None:
    tool, _ = weather_tool()

    assert isinstance(run({"tools": [tool], "output_type": Weather}).final_output, Weather)


def test_a_handoff() -> None:
    """Another agent is offered as a tool, and goes on with the conversation."""
    other = Agent(
        name="geographer",
        model=OpenAIChatCompletionsModel(
            "tgi", openai_client=openai.AsyncOpenAI(base_url=URL, api_key=KEY)
        ),
        model_settings=ModelSettings(temperature=0, max_tokens=20),
    )

    result = run({"handoffs": [other]}, tool_choice="required")

    assert result.last_agent.name == "geographer"
    assert result.final_output


def test_refusals() -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        run(top_p=2)
    with pytest.raises(openai.BadRequestError, match=r"819[12]") as raised:
        run({"question": "word " * 9000})
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError) as refused:
        run(key="wrong")
    assert json.dumps(refused.value.body) not in ("null", '""')
