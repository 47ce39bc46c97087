"""langchain-openai's `ChatOpenAI`, and its `OpenAI` for completions."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

import openai
import pytest
from full_server import full_server
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field

SERVER = {"base_url": f"{os.environ['TGI_URL']}/v1", "api_key": os.environ["TGI_API_KEY"]}
QUESTION = "What is the capital of France?"
PROMPT = "The three primary colours are"


def chat(**parameters: Any) -> ChatOpenAI:
    """A greedy one."""
    asked = {"model": "tgi", "temperature": 0, "max_tokens": 40, "max_retries": 0, **parameters}
    return ChatOpenAI(**SERVER, **asked)


def test_every_way_to_ask_gives_the_same_answer() -> None:
    answer = chat().invoke(QUESTION)

    assert "Paris" in answer.content
    assert "".join(piece.content for piece in chat().stream(QUESTION)) == answer.content
    assert chat(streaming=True).invoke(QUESTION).content == answer.content
    assert [one.content for one in chat().batch([QUESTION] * 2)] == [answer.content] * 2


async def asked_in_every_async_way(llm: ChatOpenAI) -> list[str]:
    whole = await llm.ainvoke(QUESTION)
    pieces = [piece.content async for piece in llm.astream(QUESTION)]
    batch = await llm.abatch([QUESTION] * 2)
    return [whole.content, "".join(pieces), *(one.content for one in batch)]


def test_every_async_way_to_ask_gives_the_same_answer() -> None:
    llm = chat()

    assert asyncio.run(asked_in_every_async_way(llm)) == [llm.invoke(QUESTION).content] * 4


def test_what_it_tells_of_an_answer() -> None:
    answer = chat(model="a-name-of-its-own", max_tokens=4).invoke(QUESTION)

    assert isinstance(answer, AIMessage)
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "a-name-of-its-own"
    assert answer.id
    assert answer.usage_metadata["output_tokens"] == 4


def test_what_it_tells_of_a_stream() -> None:
    whole: Any = None
    for piece in chat(max_tokens=4, stream_usage=True).stream(QUESTION):
        whole = piece if whole is None else whole + piece

    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.usage_metadata["output_tokens"] == 4


def test_several_turns() -> None:
    answer = chat(max_tokens=8).invoke(
        [
            SystemMessage("Answer in one sentence."),
            HumanMessage([{"type": "text", "text": "Say hello."}]),
            AIMessage("Hello."),
            HumanMessage("Again."),
        ]
    )

    assert answer.content


def test_stop() -> None:
    assert chat().invoke(QUESTION, stop=["Paris"]).content == "The capital of France is "


def test_several_answers_with_log_probabilities() -> None:
    llm = chat(temperature=1.5, n=2, seed=3, max_tokens=6, logprobs=True, top_logprobs=2)

    ((first, second),) = llm.generate([[HumanMessage(QUESTION)]]).generations

    assert first.text != second.text
    tokens = first.message.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == first.text


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=30)
    unit: Literal["celsius", "fahrenheit"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(method: str) -> None:
    llm = chat(max_tokens=120).with_structured_output(GetWeather, method=method)

    answer = llm.invoke("What is the weather in Paris, in celsius?")

    assert isinstance(answer, GetWeather)


@pytest.mark.parametrize("choice", ["any", "GetWeather"])
def test_bound_tools(choice: str) -> None:
    llm = chat(max_tokens=120).bind_tools([GetWeather], tool_choice=choice)

    answer = llm.invoke("What is the weather in Paris, in celsius?")
    whole: Any = None
    for piece in llm.stream("What is the weather in Paris, in celsius?"):
        whole = piece if whole is None else whole + piece

    call = answer.tool_calls[0]
    assert call["name"] == "GetWeather"
    GetWeather.model_validate(call["args"])
    streamed = [(one["name"], one["args"]) for one in whole.tool_calls]
    assert streamed == [(one["name"], one["args"]) for one in answer.tool_calls]


def test_results_of_tools() -> None:
    question = HumanMessage("What is the weather in Paris, in celsius?")
    asking = chat(max_tokens=120).bind_tools([GetWeather], tool_choice="any").invoke([question])
    results = [ToolMessage("Sunny.", tool_call_id=call["id"]) for call in asking.tool_calls]

    answer = chat(max_tokens=8).invoke([question, asking, *results])

    assert answer.content


def test_completions() -> None:
    llm = OpenAI(**SERVER, model="tgi", temperature=0, max_tokens=8, max_retries=0)
    text = llm.invoke(PROMPT)

    assert text
    assert "".join(llm.stream(PROMPT)) == text
    assert llm.batch([PROMPT, "The sea is"])[0] == text


def test_errors() -> None:
    with pytest.raises(openai.BadRequestError):
        chat(temperature=1, top_p=2.0).invoke(QUESTION)
    with pytest.raises(openai.BadRequestError):
        list(chat(temperature=1, top_p=2.0).stream(QUESTION))
    with full_server(), pytest.raises(openai.RateLimitError):
        chat().invoke(QUESTION)
    with pytest.raises(ContextOverflowError):
        chat().invoke("a b c " * 5000)
