"""OpenAI's examples of vision, with a model that takes images."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import openai
import pytest
from png import url

URL = os.environ["TGI_URL"]
KEY = os.environ["TGI_API_KEY"]
QUESTION = "What's in this image?"


@pytest.fixture
def client() -> Any:
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def asked(*urls: str, **more: Any) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": one, **more}} for one in urls]
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, *parts]}]


def answer(client: openai.OpenAI, messages: list[Any], **fields: Any) -> Any:
    return client.chat.completions.create(
        model="gpt-4o-mini", messages=messages, max_tokens=12, temperature=0, **fields
    )


def test_an_image_is_seen(client: openai.OpenAI) -> None:
    one, same = answer(client, asked(url())), answer(client, asked(url()))
    other = answer(client, asked(url(red=255)))
    none = answer(client, asked())
    said = [reply.choices[0].message.content for reply in (one, same, other)]
    assert said[0] == said[1] != said[2]
    assert same.usage.prompt_tokens_details.cached_tokens > none.usage.prompt_tokens
    assert one.usage.prompt_tokens == other.usage.prompt_tokens > none.usage.prompt_tokens + 16


def test_several_images_and_details(client: openai.OpenAI) -> None:
    two = answer(client, asked(url(), url(red=99), detail="high"))
    low = answer(client, asked(url(width=100, height=100), detail="low"))
    high = answer(client, asked(url(width=100, height=100), detail="high"))
    assert two.usage.prompt_tokens > answer(client, asked(url())).usage.prompt_tokens + 16
    assert low.usage.prompt_tokens <= high.usage.prompt_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    chunks = answer(client, asked(url()), stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == answer(client, asked(url())).choices[0].message.content


def test_the_asynchronous_client_sees_it_too() -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
            return await client.chat.completions.create(
                model="gpt-4o-mini", messages=asked(url()), max_tokens=3
            )

    assert asyncio.run(ask()).usage.prompt_tokens > 16


@pytest.mark.parametrize(
    ("bad", "reported"),
    [
        ("data:image/png;base64,####", "base64 encoding is invalid"),
        ("https://example.com/a.png", "--allow-image-domains"),
        ("file:///etc/passwd", "http"),
    ],
)
def test_a_bad_image_is_a_bad_request(client: openai.OpenAI, bad: str, reported: str) -> None:
    with pytest.raises(openai.BadRequestError, match=reported) as refused:
        answer(client, asked(bad))
    assert refused.value.param == "messages[0].content[1].image_url.url"
    assert refused.value.type == "invalid_request_error"
