"""JSON that is nested, repeated or spelled so that it costs much or means two things."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.corpus import CHAT, INFER, TOOL
from tests.attacks.target import Target, replies, target

DEPTHS = (20, 60, 140, 250, 500, 1100, 2500)
AROUND = {
    "lists": ("[", "]"),
    "objects": ('{"a":', "}"),
    "items": ('{"type":"array","items":', "}"),
    "properties": ('{"type":"object","properties":{"a":', "}}"),
    "not": ('{"not":', "}"),
    "anyOf": ('{"anyOf":[', "]}"),
    "allOf": ('{"allOf":[{"type":"object"},', "]}"),
    "if": ('{"if":', ',"then":{"type":"object"}}'),
    "additionalProperties": ('{"type":"object","additionalProperties":', "}"),
    "tags": ('{"type":"sequence","elements":[', "]}"),
}
"""What is put around an empty object, again and again."""
_HERE = "<here>"


def _tool(parameters: Any) -> Any:
    return [{"type": "function", "function": {**TOOL["function"], "parameters": parameters}}]


PLACES: dict[str, tuple[str, Any]] = {
    "grammar": (
        "/generate",
        {
            "inputs": "a",
            "parameters": {"max_new_tokens": 2, "grammar": {"type": "json", "value": _HERE}},
        },
    ),
    "tag": (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 2, "structural_tag": {"format": _HERE}},
    ),
    "guided_json": ("/v1/completions", {"prompt": "a", "max_tokens": 2, "guided_json": _HERE}),
    "response_format": (
        "/v1/chat/completions",
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"schema": _HERE}}},
    ),
    "tools": ("/v1/chat/completions", CHAT | {"tools": _tool(_HERE)}),
    "a chosen tool": (
        "/v1/chat/completions",
        CHAT | {"tools": _tool(_HERE), "tool_choice": "required"},
    ),
    "arguments": (
        "/v1/chat/completions",
        CHAT
        | {
            "messages": [
                *CHAT["messages"],
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "weather", "arguments": _HERE}}
                    ],
                },
            ]
        },
    ),
    "documents": ("/v1/chat/completions", CHAT | {"documents": [{"a": _HERE}]}),
    "template": ("/chat_tokenize", CHAT | {"chat_template_kwargs": {"enable_thinking": _HERE}}),
    "unknown": ("/v1/chat/completions", CHAT | {"unknown": _HERE}),
    "unknown inside": ("/generate", {"inputs": "a", "parameters": {"unknown": _HERE}}),
    "content": ("/v1/chat/completions", {"messages": [{"role": "user", "content": _HERE}]}),
    "instances": ("/vertex", {"instances": [_HERE]}),
    "data": (INFER, {"id": "1", "inputs": [_HERE], "outputs": []}),
    "all": ("/invocations", _HERE),
}


def nested(around: tuple[str, str], depth: int) -> str:
    return around[0] * depth + "{}" + around[1] * depth


async def post(server: Target, path: str, content: bytes) -> tuple[int, bytes]:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    ((status, _, text),) = replies(await server.send(head.encode() + content))
    return status, text


def bombs(depths: tuple[int, ...]) -> list[tuple[str, bytes, tuple[str, str, int]]]:
    return [
        (
            path,
            json.dumps(body).replace(f'"{_HERE}"', nested(around, depth)).encode(),
            (place, kind, depth),
        )
        for place, (path, body) in PLACES.items()
        for kind, around in AROUND.items()
        for depth in depths
    ]


async def defuse(server: Target, depths: tuple[int, ...]) -> dict[int, int]:
    counts: dict[int, int] = {}
    waiting = iter(bombs(depths))

    async def one_after_another() -> None:
        for path, content, what in waiting:
            status, text = await post(server, path, content)
            counts[status] = counts.get(status, 0) + 1
            assert status < 500, (what, status, text[:300])
            assert b"nternal server error" not in text, (what, text[:300])
            assert not server.errors.found, (what, server.errors.found[0][-1500:])

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one_after_another())
    return counts


@pytest.mark.parametrize(
    "depths", [(1100,), pytest.param(DEPTHS, marks=pytest.mark.full)], ids=["one", "all"]
)
async def test_no_depth_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depths: tuple[int, ...]
) -> None:
    async with target(tmp_path, monkeypatch, payload_limit=200_000) as server:
        counts = await defuse(server, depths)
    assert counts[400] > 80, counts


def _chat(part: str) -> str:
    return f'{{"messages": [{{"role": "user", "content": [{part}]}}], "max_tokens": 2}}'


ODD: dict[str, tuple[str, str, int]] = {
    "a field twice": ("/generate", '{"inputs": "a", "inputs": 3}', 422),
    "the other way round": ("/generate", '{"inputs": 3, "inputs": "a"}', 422),
    "a bound twice": (
        "/generate",
        '{"inputs": "a", "parameters": {"top_k": 1, "top_k": -1, "max_new_tokens": 2}}',
        422,
    ),
    "parameters twice": (
        "/generate",
        '{"inputs": "a", "parameters": {"max_new_tokens": 2}, "parameters": {"top_k": 0}}',
        422,
    ),
    "a kind twice": (
        "/v1/chat/completions",
        _chat('{"type": "text", "type": 3, "text": "a"}'),
        400,
    ),
    "two kinds": (
        "/v1/chat/completions",
        _chat('{"type": "text", "text": "a", "type": "image_url"}'),
        400,
    ),
    "a kind at the end": (
        "/v1/chat/completions",
        _chat('{"text": "a", "type": "text"}'),
        200,
    ),
    "a name in escapes": ("/generate", '{"\\u0069nputs": "a", "parameters": {"top_k": 0}}', 422),
    "half a pair": ("/generate", '{"inputs": "\\ud83d"}', 400),
    "half a pair in a name": ("/generate", '{"inputs": "a", "\\udc00": 1}', 400),
    "a pair backwards": ("/generate", '{"inputs": "\\ude00\\ud83d"}', 400),
    "NUL": ("/generate", '{"inputs": "\\u0000", "parameters": {"max_new_tokens": 2}}', 200),
    "a raw control letter": ("/generate", '{"inputs": "\x01"}', 400),
    "a comment": ("/generate", '{"inputs": "a" /* no */}', 400),
    "something behind": ("/generate", '{"inputs": "a"} {"inputs": "b"}', 400),
    "two marks": ("/generate", '\ufeff\ufeff{"inputs": "a"}', 400),
    "an array in its place": ("/generate", '["a", {"max_new_tokens": 2}]', 422),
}
"""What parsers of JSON read in different ways: path, body and the status it gets."""


async def test_what_is_read_in_different_ways_is_refused_or_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with target(tmp_path, monkeypatch) as server:
        for what, (path, content, status) in ODD.items():
            found, text = await post(server, path, content.encode())
            assert found == status, (what, found, text)
        assert not server.errors.found


async def test_lists_of_prompts_are_counted_before_they_are_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-73559, CVE-2026-34756: lists of prompts and choices were copied before a limit."""
    async with target(tmp_path, monkeypatch, payload_limit=4_000_000) as server:
        for prompts in ('""', "[]", "[65]", "65"):
            content = b'{"prompt": [%b], "n": 3}' % b",".join([prompts.encode()] * 60_000)
            status, text = await post(server, "/v1/completions", content)
            assert status == 400, (prompts, status, text[:200])
        for n in (4, 2**31, 2**64):
            content = b'{"prompt": "a", "n": %d, "best_of": %d}' % (n, n)
            assert (await post(server, "/v1/completions", content))[0] == 400
        for path, item in (("/vertex", b'{"inputs": "a"}'), ("/detokenize", b"65")):
            name = b"instances" if path == "/vertex" else b"tokens"
            content = b'{"%b": [%b]}' % (name, b",".join([item] * 60_000))
            status, text = await post(server, path, content)
            assert status == (422 if path == "/vertex" else 200), (path, text[:200])
        assert server.engine.n_waiting == 0
