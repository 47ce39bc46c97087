"""langchain-huggingface's `HuggingFaceEndpoint`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from huggingface_hub.errors import ValidationError
from langchain_huggingface import HuggingFaceEndpoint

URL = os.environ["TGI_URL"]
HEADERS = {"Authorization": f"Bearer {os.environ['TGI_API_KEY']}"}
PROMPT = "The three primary colours are"


def endpoint(**parameters: Any) -> HuggingFaceEndpoint:
    """As its documentation says for a server of one's own."""
    return HuggingFaceEndpoint(
        endpoint_url=URL, server_kwargs={"headers": HEADERS}, **{"max_new_tokens": 8, **parameters}
    )


def greedy(**parameters: Any) -> HuggingFaceEndpoint:
    return endpoint(temperature=None, top_p=None, typical_p=None, **parameters)


async def gathered(stream: Any) -> list[str]:
    return [piece async for piece in stream]


def test_its_default_parameters() -> None:
    llm = endpoint()

    assert llm.invoke(PROMPT)
    assert "".join(llm.stream(PROMPT))


def test_a_seed_gives_the_same_text_again() -> None:
    llm = endpoint(seed=7, do_sample=True, repetition_penalty=1.05, top_k=50)

    assert llm.invoke(PROMPT) == llm.invoke(PROMPT)


def test_every_way_to_ask_gives_the_same_text() -> None:
    llm = greedy()
    text = llm.invoke(PROMPT)

    assert not text.startswith(PROMPT)
    assert asyncio.run(greedy().ainvoke(PROMPT)) == text
    assert "".join(llm.stream(PROMPT)) == text
    assert "".join(asyncio.run(gathered(greedy().astream(PROMPT)))) == text
    assert greedy(streaming=True).invoke(PROMPT) == text
    assert greedy().batch([PROMPT, PROMPT]) == [text, text]


def test_a_stop_sequence_is_not_part_of_the_text() -> None:
    llm = greedy(max_new_tokens=24)

    whole = llm.invoke(PROMPT, stop=[" blue"])
    streamed = "".join(llm.stream(PROMPT, stop=[" blue"]))

    assert whole
    assert " blue" not in whole
    assert streamed == whole


def test_a_refused_generation_is_a_validation_error() -> None:
    llm = greedy(truncate=100_000)

    with pytest.raises(ValidationError, match="`truncate` must be strictly positive"):
        llm.invoke(PROMPT)
    with pytest.raises(ValidationError, match="`truncate` must be strictly positive"):
        list(llm.stream(PROMPT))
