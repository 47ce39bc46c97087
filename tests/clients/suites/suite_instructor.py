"""instructor: typed answers by calls and by forms, in each of its modes."""

from __future__ import annotations

import asyncio
import os
from itertools import islice
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, Field, field_validator

URL = f"{os.environ['TGI_URL']}/v1"
KEY = os.environ["TGI_API_KEY"]
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "London"]
    unit: Literal["celsius", "fahrenheit"]


class Report(BaseModel):
    """Weather of a few days."""

    title: str = Field(max_length=20)
    days: list[Weather] = Field(min_length=1, max_length=3)


class AnyObject(BaseModel, extra="allow"):
    """Whatever the model writes."""


CALLS = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT]
FORCED = [*CALLS, instructor.Mode.JSON_SCHEMA]


def connected(mode: instructor.Mode, key: str = KEY) -> Any:
    client = openai.OpenAI(base_url=URL, api_key=key, max_retries=0)
    return instructor.from_openai(client, mode=mode)


def asked(**more: Any) -> dict[str, Any]:
    """Arguments of a greedy chat."""
    greedy = {"model": "tgi", "messages": QUESTION, "max_tokens": 120, "temperature": 0}
    return {**greedy, "max_retries": 0, **more}


@pytest.mark.parametrize("form", [Weather, Report])
@pytest.mark.parametrize("mode", FORCED)
def test_a_typed_answer(mode: instructor.Mode, form: type[BaseModel]) -> None:
    answer = connected(mode).chat.completions.create(**asked(response_model=form))

    assert isinstance(answer, form)


@pytest.mark.parametrize("mode", FORCED)
def test_a_typed_answer_as_it_grows(mode: instructor.Mode) -> None:
    client = connected(mode).chat.completions
    body = asked(response_model=Weather)
    grown = list(client.create_partial(**body))

    assert len(grown) > 1
    assert grown[-1].model_dump() == client.create(**body).model_dump()


@pytest.mark.parametrize("mode", CALLS)
def test_several_of_a_type(mode: instructor.Mode) -> None:
    body = asked(response_model=Weather, max_tokens=200)
    found = list(islice(connected(mode).chat.completions.create_iterable(**body), 3))

    assert found
    assert all(isinstance(one, Weather) for one in found)


async def asynchronously() -> Any:
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as client:
        patched = instructor.from_openai(client)
        return await patched.chat.completions.create(**asked(response_model=Weather))


def test_the_same_asynchronously() -> None:
    answer = connected(instructor.Mode.TOOLS).chat.completions.create(
        **asked(response_model=Weather)
    )

    assert asyncio.run(asynchronously()).model_dump() == answer.model_dump()


def test_json_without_a_schema() -> None:
    body = asked(response_model=AnyObject, max_tokens=200)

    answer = connected(instructor.Mode.JSON).chat.completions.create(**body)

    assert isinstance(answer, AnyObject)


def test_the_answer_beside_its_source() -> None:
    client = connected(instructor.Mode.TOOLS)

    answer, source = client.chat.completions.create_with_completion(**asked(response_model=Weather))

    assert source.choices[0].finish_reason == "tool_calls"
    call = source.choices[0].message.tool_calls[0]
    assert Weather.model_validate_json(call.function.arguments).model_dump() == answer.model_dump()
    assert source.usage.completion_tokens > 5


def test_an_answer_that_is_sent_back() -> None:
    """What is wrong with it goes back to the model, as the result of the call."""
    seen = []

    class Twice(Weather):
        @field_validator("city")
        @classmethod
        def not_at_first(cls, city: str) -> str:
            seen.append(city)
            if len(seen) == 1:
                raise ValueError("ask again")
            return city

    for mode in FORCED:
        seen.clear()
        client = connected(mode).chat.completions
        assert client.create(**asked(response_model=Twice, max_retries=1))
        assert len(seen) == 2


@pytest.mark.parametrize("mode", FORCED)
def test_an_answer_that_is_cut(mode: instructor.Mode) -> None:
    class Long(BaseModel):
        words: list[Literal["one", "two"]] = Field(min_length=60, max_length=80)

    with pytest.raises((IncompleteOutputException, InstructorRetryException), match="length"):
        connected(mode).chat.completions.create(**asked(response_model=Long, max_tokens=20))


def refusal(key: str = KEY, **more: Any) -> str:
    """The error that an application gets."""
    client = connected(instructor.Mode.TOOLS, key).chat.completions
    with pytest.raises(InstructorRetryException) as raised:
        client.create(**asked(response_model=Weather, **more))
    return str(raised.value)


def test_refusals() -> None:
    words = [{"role": "user", "content": "word " * 9000}]

    assert "top_p" in refusal(top_p=2)
    assert "context_length_exceeded" in refusal(messages=words)
    assert "401" in refusal(key="wrong")
