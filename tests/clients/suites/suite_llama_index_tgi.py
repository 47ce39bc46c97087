"""llama-index's own client of TGI, the last one before it was deprecated."""

from __future__ import annotations

import asyncio
import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.text_generation_inference import TextGenerationInference

QUESTION = "What is the capital of France?"


def connected() -> TextGenerationInference:
    return TextGenerationInference(
        model_url=os.environ["TGI_URL"],
        token=os.environ["TGI_API_KEY"],
        temperature=0.0,
        max_tokens=20,
    )


def test_what_it_learns_of_the_server() -> None:
    metadata = connected().metadata

    assert metadata.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata.context_window == 8192
    # It is decided by the version.
    assert metadata.is_function_calling_model


def test_chat() -> None:
    llm = connected()
    answer = llm.chat([ChatMessage(QUESTION)]).message.content

    assert "Paris" in answer
    assert llm.complete(QUESTION).text == answer
    assert asyncio.run(llm.achat([ChatMessage(QUESTION)])).message.content == answer
