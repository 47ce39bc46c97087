"""llama-index: `OpenAILike` for chats and completions, and `HuggingFaceInferenceAPI`."""

import asyncio
import os
from typing import Any, Literal

import openai
import pytest
from huggingface_hub.errors import HfHubHTTPError
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.huggingface_api import HuggingFaceInferenceAPI
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "London"]
    unit: Literal["celsius", "fahrenheit"]


def get_weather(city: Literal["Paris", "London"]) -> str:
    """Tell the weather of a city."""
    return f"Sunny in {city}."


TOOL = FunctionTool.from_defaults(get_weather)


def like(key: str = KEY, **more: Any) -> OpenAILike:
    """A greedy one."""
    options = {"temperature": 0, "max_tokens": 100, "max_retries": 0, "is_chat_model": True, **more}
    return OpenAILike(model="tgi", api_base=f"{URL}/v1", api_key=key, **options)


def test_a_stream_says_what_the_whole_answer_says() -> None:
    llm = like(system_prompt="Be brief.")
    whole = llm.chat([ChatMessage(QUESTION)]).message.content
    pieces = [piece.delta for piece in llm.stream_chat([ChatMessage(QUESTION)])]

    assert "Paris" in whole
    assert len(pieces) > 2
    assert "".join(pieces) == whole
    assert llm.complete(QUESTION).text == whole
    assert [*llm.stream_complete(QUESTION)][-1].text == whole


async def in_async_ways(llm: OpenAILike) -> list[str]:
    whole = await llm.achat([ChatMessage(QUESTION)])
    stream = await llm.astream_chat([ChatMessage(QUESTION)])
    return [whole.message.content, "".join([piece.delta async for piece in stream])]


def test_the_same_asynchronously() -> None:
    assert asyncio.run(in_async_ways(like())) == [like().complete(QUESTION).text] * 2


def test_parameters_of_sampling() -> None:
    more = {"top_p": 0.9, "seed": 7, "presence_penalty": 0.1, "stop": ["\n"], "logprobs": True}
    llm = like(temperature=1.5, max_tokens=8, additional_kwargs=more, reuse_client=False)

    assert llm.complete(QUESTION).text == llm.complete(QUESTION).text


def test_a_forced_call() -> None:
    llm = like(is_function_calling_model=True)
    whole = llm.chat_with_tools([TOOL], WEATHER, tool_required=True)
    streamed = [*llm.stream_chat_with_tools([TOOL], WEATHER, tool_required=True)][-1]

    (call, *_) = llm.get_tool_calls_from_response(whole)
    assert call.tool_name == "get_weather"
    assert call.tool_kwargs["city"] in ("Paris", "London")
    (other, *_) = llm.get_tool_calls_from_response(streamed)
    assert (other.tool_name, other.tool_kwargs) == (call.tool_name, call.tool_kwargs)
    answer = llm.predict_and_call([TOOL], WEATHER, tool_required=True)
    assert str(answer).startswith("Sunny in ")


@pytest.mark.parametrize(
    "by", [{"is_function_calling_model": True}, {"should_use_structured_outputs": True}]
)
def test_structured_output(by: dict[str, Any]) -> None:
    llm = like(**by)

    assert isinstance(llm.structured_predict(Weather, PromptTemplate(QUESTION)), Weather)
    assert isinstance(llm.as_structured_llm(Weather).complete(QUESTION).raw, Weather)


def test_completions() -> None:
    llm = like(is_chat_model=False, max_tokens=8)
    text = llm.complete("The sea is").text

    assert text
    assert [*llm.stream_complete("The sea is")][-1].text == text


def test_refusals() -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        like(additional_kwargs={"top_p": 2}).complete(QUESTION)
    with pytest.raises(openai.BadRequestError, match=r"819[12]") as raised:
        like().complete("word " * 9000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"819[12]"):
        [*like().stream_complete("word " * 9000)]
    with pytest.raises(openai.AuthenticationError):
        like(key="wrong").complete(QUESTION)


def test_what_is_cancelled_makes_room_for_others() -> None:
    # More than the server works on at once, each for minutes.
    more = {"extra_body": {"ignore_eos": True}}
    for _ in range(12):
        stream = like(max_tokens=8000, additional_kwargs=more).stream_chat([ChatMessage(QUESTION)])
        next(stream)
        stream.close()
        del stream

    assert like(max_tokens=2, timeout=20).complete(QUESTION).text


def hugging_face(task: str, token: str = KEY) -> HuggingFaceInferenceAPI:
    return HuggingFaceInferenceAPI(
        model=URL, token=token, task=task, temperature=0.01, num_output=20
    )


@pytest.mark.parametrize("task", ["conversational", "text-generation"])
def test_the_client_of_hugging_face(task: str) -> None:
    llm = hugging_face(task)
    whole = llm.chat([ChatMessage(QUESTION)]).message.content
    streamed = "".join(piece.delta for piece in llm.stream_chat([ChatMessage(QUESTION)]))

    assert "Paris" in whole
    assert "Paris" in streamed


def test_the_client_of_hugging_face_is_refused() -> None:
    with pytest.raises(HfHubHTTPError) as raised:
        hugging_face("conversational", "wrong").complete(QUESTION)
    assert raised.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match=r"819[12]"):
        hugging_face("conversational").complete("word " * 9000)
