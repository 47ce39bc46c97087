"""`curl -N`: the bytes of a stream as they are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, NamedTuple

import pytest

from tests.clients.conftest import API_KEY
from tests.integration.server import Server

pytestmark = [
    pytest.mark.model,
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

GENERATE = {"inputs": "The sea is", "parameters": {"max_new_tokens": 6, "details": True}}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6, "stream": True}
COMPLETE = {"prompt": ["The sea is", "The sky is"], "max_tokens": 6, "stream": True}
EVENT = re.compile(rb"data: ([^\r\n]+)\n\n|:\n\n")
"""An event of one line, or the comment that keeps a silent connection alive."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[bytes]:
        """What each event holds. Raises AssertionError if there is anything between events."""
        assert EVENT.sub(b"", self.body) == b""
        return [found for found in EVENT.findall(self.body) if found]


def command(
    server: Server, route: str, *options: str, key: str = API_KEY, content: str = "application/json"
) -> list[str]:
    """A POST of what comes from standard input."""
    return [
        *("curl", "--no-buffer", "--silent", "--show-error", "--max-time", "120"),
        *("--header", f"Authorization: Bearer {key}", "--header", f"Content-Type: {content}"),
        *("--data-binary", "@-", *options, f"{server.url}{route}"),
    ]


def encoded(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def curl(server: Server, route: str, body: Any, *options: str, **headers: str) -> Answer:
    """The answer to a POST."""
    arguments = command(server, route, "--include", *options, **headers)
    done = subprocess.run(arguments, input=encoded(body), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    head, _, answer = done.stdout.partition(b"\r\n\r\n")
    while b" 100 " in head.partition(b"\r\n")[0]:
        head, _, answer = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Answer(int(status.split(" ")[1]), fields, answer)


@pytest.mark.parametrize("route", ["/generate_stream", "/"])
def test_the_stream_of_a_generation(client_server: Server, route: str) -> None:
    answer = curl(client_server, route, {**GENERATE, "stream": True})

    tokens = [json.loads(event) for event in answer.events]
    assert answer.status == 200
    assert [token["index"] for token in tokens] == [1, 2, 3, 4, 5, 6]
    assert [token["generated_text"] is None for token in tokens] == [True] * 5 + [False]
    assert [token["details"] is None for token in tokens] == [True] * 5 + [False]
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize(
    ("route", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETE)]
)
def test_the_streams_of_openai_say_when_they_are_done(
    client_server: Server, route: str, body: dict[str, Any]
) -> None:
    answer = curl(client_server, route, body)

    *chunks, done = answer.events
    assert answer.status == 200
    assert done == b"[DONE]"
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert {json.loads(chunk)["object"] for chunk in chunks} <= {
        "chat.completion.chunk",
        "text_completion",
    }


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate_stream", GENERATE),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", COMPLETE),
    ],
)
def test_the_head_of_a_stream(client_server: Server, route: str, body: dict[str, Any]) -> None:
    headers = curl(client_server, route, body).headers

    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert "content-length" not in headers


def test_tokens_come_while_more_are_generated(client_server: Server) -> None:
    long = {"inputs": "The sea is", "parameters": {"max_new_tokens": 8000, "ignore_eos": True}}
    arguments = command(client_server, "/generate_stream")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encoded(long))
        process.stdin.close()
        first = process.stdout.readline()
        still_running = process.poll() is None
        process.kill()

    assert json.loads(first.removeprefix(b"data: "))["index"] == 1
    assert still_running


def test_a_refused_stream_of_tgi_is_an_event(client_server: Server) -> None:
    answer = curl(client_server, "/generate_stream", {"inputs": ""})

    (event,) = answer.events
    assert answer.status == 200
    assert json.loads(event) == {
        "error": "Input validation error: `inputs` cannot be empty",
        "error_type": "validation",
    }


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        ('{"inputs":', {}, 400, "Failed to parse the request body as JSON"),
        ("{}", {}, 422, "Failed to deserialize the JSON body into the target type"),
        ("{}", {"content": "text/plain"}, 415, "Expected request with"),
        ({"inputs": "a" * 2_000_000}, {}, 413, "length limit exceeded"),
        ("{}", {"key": "wrong"}, 401, ""),
        # So large that curl asks first whether it may send it.
        ({"inputs": "a b " * 300_000}, {}, 422, "`inputs`"),
    ],
)
def test_what_is_refused(
    client_server: Server, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    answer = curl(client_server, "/generate", body, **headers)

    assert answer.status == status
    assert text in answer.body.decode()
