"""A stream that is cut anywhere, any number of times, reads as one that was not."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.helpers.lossy import EventReader, continued
from tests.helpers.replica import replica
from tgi_async.api.resume.event_id import EventId
from tgi_async.wire.messages import Sampling

THOUGHTS = "<think>\nWohin? 서울 🙂\n</think>\n\n"
CALLS = (
    '<tool_call>\n{"name": "go", "arguments": {"to": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "go", "arguments": {"to": "서울"}}\n</tool_call>'
)
TOOLS = [{"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}]
MESSAGES = [{"role": "user", "content": "Hi"}]
OPENAI = {"stream": True, "temperature": 0.7, "max_tokens": 200}

ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/generate_stream", {"inputs": "Hi", "parameters": {"do_sample": True, "details": True}}),
    ("/", {"inputs": "Hi", "stream": True, "parameters": {"top_n_tokens": 2, "do_sample": True}}),
    ("/", {"inputs": "Hi", "stream": True, "parameters": {"stop": ["drei"], "truncate": 1}}),
    ("/v1/completions", {"prompt": "Hi", **OPENAI}),
    ("/v1/completions", {"prompt": "Hi", **OPENAI, "stop": ["vier 😀", "xyz"], "echo": True}),
    ("/v1/completions", {"prompt": ["Hi", "Ho"], "n": 2, "logprobs": 2, "seed": 3, **OPENAI}),
    ("/v1/chat/completions", {"messages": MESSAGES, **OPENAI}),
    ("/v1/chat/completions", {"messages": MESSAGES, **OPENAI, "tools": TOOLS}),
    (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            **OPENAI,
            "n": 3,
            "logprobs": True,
            "tools": TOOLS,
            "stream_options": {"include_usage": True},
        },
    ),
    ("/invocations", {"messages": MESSAGES, **OPENAI, "stop": "fünf"}),
    ("/invocations", {"inputs": "Hi", "stream": True, "parameters": {}}),
    ("/invocations", {"prompt": "Hi", **OPENAI, "max_tokens": 7}),
]


def script(sampling: Sampling) -> str:
    """A text with characters of several tokens, thoughts and calls, another one for each choice."""
    number = (sampling.seed + sampling.choice) % 1000 if sampling.do_sample else 0
    return f"{THOUGHTS}eins {number} zwei é drei 한국 vier 😀👨‍👩‍👧 fünf\n{CALLS}"


def read(payloads: list[bytes]) -> Any:
    """What a client makes of a stream, however its text is cut into events."""
    found: dict[Any, Any] = {"done": payloads[-1:] == [b"[DONE]"]}
    texts: dict[Any, str] = defaultdict(str)
    for payload in payloads[: -1 if found["done"] else None]:
        one = json.loads(payload)
        assert "error" not in one, one
        if "token" in one:
            found.setdefault("tokens", []).append(one)
            continue
        if one.get("usage"):
            found.setdefault("usage", []).append(one["usage"])
        for choice in one["choices"]:
            place = choice["index"]
            delta = choice.get("delta") or {"content": choice["text"]}
            pieces: dict[Any, str] = {name: delta.get(name) or "" for name in ("role", "content")}
            pieces["thoughts"] = delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                pieces["called", call["index"]] = function.get("name", "")
                pieces["arguments", call["index"]] = function["arguments"]
            for name, piece in pieces.items():
                texts[place, name] += piece
            found.setdefault(("reason", place), []).append(choice["finish_reason"])
            scores = choice["logprobs"] or {}
            for name in scores:
                found.setdefault((name, place), []).extend(scores[name])
    for key, reasons in found.items():
        if key[0] == "reason":
            assert not any(reasons[:-1])
            found[key] = reasons[-1]
    return found | texts


async def undisturbed(path: str, body: dict[str, Any], seed: int) -> Any:
    """What the same seed says in one piece."""
    if "inputs" in body:
        body = {**body, "parameters": {"seed": seed, **body.get("parameters", {})}}
    else:
        body = {"seed": seed, **body}
    reader = EventReader()
    await continued(replica(script, window=0), path, body, reader)
    assert reader.last_id == b""
    return read(reader.payloads)


cuts = st.tuples(
    st.integers(1, 1500),
    st.sampled_from(["same", "same", "other", "expired"]),
    st.lists(st.booleans(), max_size=30),
)


async def survives(
    path: str, body: dict[str, Any], lost: list[tuple[int, str, list[bool]]], seed: int
) -> None:
    dice = random.Random(seed)
    app = replica(script, dice)
    reader = EventReader()
    for most, then, keeps_up in lost:
        connection = await continued(app, path, body, reader, most=most, keeps_up=list(keeps_up))
        assert connection.status == 200, connection.received
        if not reader.last_id:
            assert reader.payloads == []
        event(then)
        if then == "other":
            app = replica(script, dice)
        elif then == "expired":
            await app.state.streams.close()
        if connection.ended:
            break
    else:
        connection = await continued(app, path, body, reader)
        assert connection.ended, connection.received
    id = EventId.parse(reader.last_id)
    assert id.ended
    assert read(reader.payloads) == await undisturbed(path, body, id.seed)
    end = await continued(app, path, body, reader)
    assert (end.status, end.received, end.ended) == (200, b"", True)


@settings(max_examples=(settings.default or settings()).max_examples // 4)
@given(st.sampled_from(ROUTES), st.lists(cuts, max_size=8), st.integers(0, 2**16))
def test_a_stream_reads_as_one_wherever_it_is_cut(
    route: tuple[str, dict[str, Any]], lost: list[tuple[int, str, list[bool]]], seed: int
) -> None:
    asyncio.run(survives(*route, lost, seed))
