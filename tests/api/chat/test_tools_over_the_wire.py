"""What models of each family write, said by a fake worker over the real wire, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.chat.test_tools import gathered, template
from tests.api.conftest import Settings, events_of
from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_engine_run import Running, running
from tests.doubles.fake_worker import Behaviour
from tests.text.tools.samples import FUNCTIONS, NO_CALLS, SAMPLES, marks_of
from tgi_async.api.app import create_app
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.text.tools.formats import FORMATS

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in FUNCTIONS.items()
]
MARKS = sorted({mark for one in FORMATS for mark in marks_of(one)})
SAID_AGAIN = "{% if tools %}{% endif %}{{ messages[-1].content }}"


def client_of(server: Running, tokenizer: Tokenizer, parser: str) -> httpx.AsyncClient:
    settings = Settings(max_total_tokens=1024, max_input_tokens=1000, tool_call_parser=parser)
    app = create_app(
        engine=server.engine,
        tokenizer=tokenizer,
        chat_template=template(SAID_AGAIN),
        limits=settings.limits,
        metrics=Metrics(max_input_tokens=1000, max_total_tokens=1024),
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny")


async def answers(client: httpx.AsyncClient, text: str, **fields: Any) -> list[dict[str, Any]]:
    """The message of one answer whole and of one that was streamed."""
    body = {"messages": [{"role": "user", "content": text}], "tools": TOOLS, **fields}
    whole = await client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200, whole.text
    [choice] = whole.json()["choices"]
    streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
    *chunks, done = events_of(streamed)
    assert done == "[DONE]"
    message, reason = gathered(chunks)
    assert reason == choice["finish_reason"]
    return [choice["message"], message]


@pytest.mark.parametrize("marks_are", ["special tokens", "text"])
async def test_every_sample_is_read_as_what_it_says(tmp_path: Path, marks_are: str) -> None:
    inner = tiny_inner()
    if marks_are == "special tokens":
        inner.add_special_tokens(MARKS)
    tokenizer = Tokenizer(inner)
    behaviour = Behaviour(
        parrot=True, n_blocks=2048, max_total_tokens=1024, vocab_size=tokenizer.vocab_size
    )
    async with running(behaviour, tmp_path, tokenizer=tokenizer) as server:
        for sample in SAMPLES:
            async with client_of(server, tokenizer, sample.format) as client:
                for message in await answers(client, sample.text, temperature=0):
                    reported = [
                        (call["function"]["name"], call["function"]["arguments"])
                        for call in message.get("tool_calls", [])
                    ]
                    assert tuple(reported) == sample.calls
                    assert all(json.loads(arguments) is not None for _, arguments in reported)
                    assert (message["content"] or "") == sample.prose
        for parser, text in NO_CALLS:
            async with client_of(server, tokenizer, parser) as client:
                for message in await answers(client, text, temperature=0):
                    assert not message.get("tool_calls")
                    assert message["content"] == text
