"""LangChain's messages with images, in the forms of its documents, with a model that takes them."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from png import png, url

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
DATA = base64.b64encode(png()).decode()
FORMS: dict[str, dict[str, Any]] = {
    "image_url": {"type": "image_url", "image_url": {"url": url()}},
    "a URL alone": {"type": "image_url", "image_url": url()},
    "standard": {"type": "image", "base64": DATA, "mime_type": "image/png"},
    "older standard": {
        "type": "image",
        "source_type": "base64",
        "data": DATA,
        "mime_type": "image/png",
    },
}


@pytest.fixture
def model() -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{URL}/v1", api_key=KEY, model="tgi", temperature=0, max_tokens=12, max_retries=0
    )


def message(*parts: dict[str, Any]) -> HumanMessage:
    text = {"type": "text", "text": "Describe the weather in this image"}
    return HumanMessage(content=[text, *parts])


def test_all_forms_of_an_image_are_the_same(model: ChatOpenAI) -> None:
    said = {form: model.invoke([message(part)]).content for form, part in FORMS.items()}
    assert len(set(said.values())) == 1, said
    other = {"type": "image_url", "image_url": {"url": url(red=255)}}
    assert model.invoke([message(other)]).content not in said.values()


def test_a_stream_and_a_conversation(model: ChatOpenAI) -> None:
    part = FORMS["standard"]
    chat = [SystemMessage("Be brief."), message(part), AIMessage("Sunny."), message(part)]
    streamed = "".join(str(chunk.content) for chunk in model.stream(chat))
    assert streamed == model.invoke(chat).content
