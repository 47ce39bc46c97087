"""OpenAI's `OpenAI`: tools and forms of answers, as a small model can have them: forced."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field

CLIENT = openai.OpenAI(
    base_url=f"{os.environ['TGI_URL']}/v1", api_key=os.environ["TGI_API_KEY"], max_retries=0
)
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=30)
    unit: Literal["celsius", "fahrenheit"]


class GetTime(BaseModel):
    """The time in a zone."""

    zone: Literal["UTC", "CET"]


class City(BaseModel):
    name: str = Field(max_length=30)
    country: str = Field(max_length=30)
    n_people: int


TOOLS: list[Any] = [openai.pydantic_function_tool(one) for one in (GetWeather, GetTime)]
MODELS: dict[str, type[BaseModel]] = {"GetWeather": GetWeather, "GetTime": GetTime}
ENDS_OF_LISTS = ("77", "15971", "31845")
"""The tokens of "]", "]<" and "}]" in the embedded model's vocabulary; its calls are in a list."""
NAMED: Any = {"type": "function", "function": {"name": "GetTime"}}


def asked(**fields: Any) -> dict[str, Any]:
    return {
        "model": "tgi",
        "messages": QUESTION,
        "tools": TOOLS,
        "max_tokens": 200,
        "temperature": 0,
        **fields,
    }


def ask(**fields: Any) -> ChatCompletion:
    answer = CLIENT.chat.completions.create(**asked(**fields))
    # The library does not check what it receives.
    return ChatCompletion.model_validate_json(answer.to_json())


def test_a_call_of_one_that_is_named() -> None:
    (choice,) = ask(tool_choice=NAMED).choices

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "GetTime")
    assert call.id.startswith("call_")
    GetTime.model_validate_json(call.function.arguments)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_of_any(parallel: bool) -> None:
    (choice,) = ask(tool_choice="required", parallel_tool_calls=parallel).choices

    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert calls
    assert parallel or len(calls) == 1
    for call in calls:
        MODELS[call.function.name].model_validate_json(call.function.arguments)


def test_a_streamed_call_says_what_the_whole_one_says() -> None:
    (whole,) = ask(tool_choice="required").choices[0].message.tool_calls

    chunks = list(CLIENT.chat.completions.create(**asked(tool_choice="required"), stream=True))

    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk.to_json())
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    first, *rest = pieces
    assert (first.index, first.function.name) == (0, whole.function.name)
    assert first.id
    assert all(piece.id is None and piece.function.name is None for piece in rest)
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    assert len(pieces) > 2
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_librarys_own_way_to_put_a_stream_together() -> None:
    with CLIENT.chat.completions.stream(**asked(tool_choice="required")) as stream:
        kinds = {event.type for event in stream}
        (choice,) = stream.get_final_completion().choices

    assert "tool_calls.function.arguments.done" in kinds
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])


def test_several_calls_in_one_answer() -> None:
    unending = dict.fromkeys(ENDS_OF_LISTS, -100)
    asked_for = {"tool_choice": "required", "logit_bias": unending, "max_tokens": 120}
    (choice,) = ask(**asked_for).choices
    chunks = CLIENT.chat.completions.create(**asked(**asked_for), stream=True)

    *whole, last = choice.message.tool_calls
    assert whole
    assert len({call.id for call in (*whole, last)}) == len(whole) + 1
    for call in whole:
        MODELS[call.function.name].model_validate_json(call.function.arguments)
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    for index, call in enumerate((*whole, last)):
        of_call = [piece for piece in pieces if piece.index == index]
        assert [piece.function.name for piece in of_call if piece.id] == [call.function.name]
        assert "".join(piece.function.arguments for piece in of_call) == call.function.arguments


def test_calls_of_several_answers() -> None:
    answer = ask(tool_choice="required", n=3, temperature=1.5, seed=1)

    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids) >= 3


def test_parsed_calls() -> None:
    (choice,) = CLIENT.chat.completions.parse(**asked(tool_choice="required")).choices

    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.8])
def test_parsed_answers(temperature: float) -> None:
    answer = CLIENT.chat.completions.parse(
        model="tgi",
        messages=[{"role": "user", "content": "Tell me of Busan."}],
        response_format=City,
        max_tokens=300,
        temperature=temperature,
        seed=3,
    )

    assert isinstance(answer.choices[0].message.parsed, City)


def test_any_object() -> None:
    answer = CLIENT.chat.completions.create(
        model="tgi",
        messages=[{"role": "user", "content": "Answer in JSON: the capital of France."}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )

    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_the_model_may_also_answer_in_words() -> None:
    (choice,) = ask(tool_choice="auto", max_tokens=20).choices

    assert choice.message.content or choice.message.tool_calls


def test_results_of_calls_are_shown_to_the_model() -> None:
    (called,) = ask(tool_choice=NAMED).choices
    call = called.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is 12:00."}

    answer = ask(
        messages=[*QUESTION, called.message.to_dict(), result], tool_choice="none", max_tokens=20
    )

    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 60


def test_allowed_tools() -> None:
    allowed: Any = {"mode": "required", "tools": [NAMED]}

    answer = ask(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})

    assert {call.function.name for call in answer.choices[0].message.tool_calls} == {"GetTime"}


def test_the_older_form() -> None:
    functions = [tool["function"] for tool in TOOLS]
    older: dict[str, Any] = {"tools": openai.omit, "functions": functions}

    called = ask(**older, function_call={"name": "GetTime"}).choices[0]
    stream = CLIENT.chat.completions.create(
        **asked(**older, function_call={"name": "GetTime"}, stream=True)
    )
    pieces = [one.choices[0].delta.function_call for one in stream]
    result = {"role": "function", "name": "GetTime", "content": "It is 12:00."}
    said = [*QUESTION, called.message.model_dump(), result]
    answer = ask(**older, messages=said, function_call="none", max_tokens=20)

    assert called.finish_reason == "function_call"
    assert GetTime.model_validate_json(called.message.function_call.arguments)
    streamed = "".join(piece.arguments for piece in pieces if piece)
    assert streamed == called.message.function_call.arguments
    assert answer.choices[0].message.content


def test_a_tool_that_is_not_there() -> None:
    named = {"type": "function", "function": {"name": "GetMoney"}}
    with pytest.raises(openai.BadRequestError) as raised:
        ask(tool_choice=named)

    assert "Tool with name GetMoney not found" in str(raised.value.body)
