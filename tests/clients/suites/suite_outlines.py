"""outlines: each of its clients of servers, held to types, regular expressions and schemas."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import openai
import outlines
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from outlines import types
from outlines.exceptions import OutlinesError
from outlines.types import CFG, Regex
from pydantic import BaseModel

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
PROMPT = "Paris in celsius?"
LOOKS_AROUND = "isbn"
"""The one type of outlines that no regular language has."""


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "London"]
    unit: Literal["celsius", "fahrenheit"]


class City(Enum):
    PARIS = "Paris"
    LONDON = "London"


def openai_client(key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)


CLIENTS: dict[str, Callable[[str], Any]] = {
    "tgi": lambda key: outlines.from_tgi(InferenceClient(URL, token=key)),
    "vllm": lambda key: outlines.from_vllm(openai_client(key), "tgi"),
    "sglang": lambda key: outlines.from_sglang(openai_client(key), "tgi"),
    "openai": lambda key: outlines.from_openai(openai_client(key), "tgi"),
}
FOLLOW_ALL = ["tgi", "vllm", "sglang"]


def limits(client: str, most: int = 40) -> dict[str, Any]:
    return {"max_new_tokens": most} if client == "tgi" else {"max_tokens": most, "temperature": 0}


def ask(client: str, form: Any = None, key: str = KEY, prompt: str = PROMPT, **more: Any) -> Any:
    return CLIENTS[client](key)(prompt, form, **{**limits(client), **more})


def is_weather(text: str) -> bool:
    return bool(Weather.model_validate_json(text))


FORMS: list[tuple[Any, Callable[[str], Any]]] = [
    (int, re.compile(r"[+-]?\d+").fullmatch),
    (float, float),
    (bool, ["True", "False"].count),
    (datetime.date, re.compile(r"\d{4}-\d\d-\d\d").fullmatch),
    (datetime.time, datetime.time.fromisoformat),
    (Literal["Paris", "London"], ["Paris", "London"].count),
    (City, City),
    (list[int], re.compile(r"\[.*").match),
    (Regex("[0-9]{3}-[a-z]{3}"), re.compile("[0-9]{3}-[a-z]{3}").fullmatch),
    (Weather, is_weather),
]


@pytest.mark.parametrize("client", FOLLOW_ALL)
@pytest.mark.parametrize(("form", "holds"), FORMS, ids=[str(form) for form, _ in FORMS])
def test_an_answer_of_a_type(client: str, form: Any, holds: Callable[[str], Any]) -> None:
    assert holds(ask(client, form)) not in (None, 0, False)


NAMED = [name for name in dir(types) if type(getattr(types, name)).__name__ == "Regex"]


@pytest.mark.parametrize("name", NAMED)
def test_the_named_types(name: str) -> None:
    form = getattr(types, name)
    if name == LOOKS_AROUND:
        with pytest.raises(Exception, match="look-ahead"):
            ask("tgi", form)
        return

    text = ask("tgi", form, max_new_tokens=30)

    complete = re.fullmatch(form.pattern, text)
    assert complete or len(text) >= 30  # the beginning of one, of as many tokens as asked for


@pytest.mark.parametrize("client", CLIENTS)
def test_a_schema(client: str) -> None:
    assert is_weather(ask(client, Weather))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_stream(client: str) -> None:
    pieces = list(CLIENTS[client](KEY).stream(PROMPT, Weather, **limits(client)))

    assert len(pieces) > 2
    # A stream of TGI shows the token that ends it.
    assert is_weather("".join(pieces).removesuffix("<|im_end|>"))


def test_the_same_asynchronously() -> None:
    model = outlines.from_tgi(AsyncInferenceClient(URL, token=KEY))

    async def both() -> list[str]:
        whole = await model(PROMPT, Weather, **limits("tgi"))
        stream = model.stream(PROMPT, Weather, **limits("tgi"))
        return [whole, "".join([piece async for piece in stream]).removesuffix("<|im_end|>")]

    whole, streamed = asyncio.run(both())
    assert whole == streamed == ask("tgi", Weather)


@pytest.mark.parametrize("client", ["vllm", "sglang"])
def test_a_grammar(client: str) -> None:
    assert ask(client, CFG('?start: "yes" | "no"')) in ("yes", "no")


def test_any_object() -> None:
    assert isinstance(json.loads(ask("openai", dict, max_tokens=200)), dict)


@pytest.mark.parametrize("client", CLIENTS)
def test_refusals(client: str) -> None:
    with pytest.raises(OutlinesError) as raised:
        ask(client, Weather, top_p=2.0)
    assert "top_p" in str(raised.value.__cause__)
    with pytest.raises(OutlinesError) as raised:
        ask(client, Weather, prompt="word " * 9000)
    assert re.search("819[12]", str(raised.value.__cause__))
    with pytest.raises(OutlinesError) as raised:
        ask(client, Weather, key="wrong")
    assert "401" in str(raised.value.__cause__)
