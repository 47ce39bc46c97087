"""Bad input gets the contract's status and `error_type`; other requests do not notice."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import httpx
import pytest

from tests.integration.server import COMMAND, Reply, Server, environment, stream

pytestmark = pytest.mark.model

JSON = {"content-type": "application/json"}
TEXT_FIELDS = {
    "/": b"inputs",
    "/generate": b"inputs",
    "/generate_stream": b"inputs",
    "/v1/completions": b"prompt",
    "/v1/chat/completions": b"model",
}
"""A field of each route that holds text."""
ROUTES = tuple(TEXT_FIELDS)

NOT_JSON = [
    pytest.param(b"{", id="cut off"),
    pytest.param(b"", id="empty"),
    pytest.param(b"inputs=hello", id="a form"),
    pytest.param(b'{"inputs": "a", }', id="trailing comma"),
    pytest.param(b'{"inputs": "\xff\xfe"}', id="invalid UTF-8"),
    pytest.param(b'{"inputs": "\xed\xa0\x80"}', id="a surrogate in UTF-8"),
    pytest.param(b'{"inputs": "\\ud83d"}', id="a lone surrogate"),
    pytest.param(b'{"inputs": "a", "parameters": {"temperature": NaN}}', id="NaN"),
    pytest.param(b'{"inputs": "a", "parameters": {"top_p": Infinity}}', id="infinite"),
    pytest.param(b'{"else": ' + b"[" * 100_000, id="nested too deep"),
]

WRONG_TYPE: list[Any] = [
    [],
    "hello",
    None,
    {},
    {"inputs": 3},
    {"inputs": None},
    {"inputs": ["a"]},
    {"inputs": "a", "parameters": 3},
    {"inputs": "a", "parameters": {"max_new_tokens": "ten"}},
    {"inputs": "a", "parameters": {"max_new_tokens": -1}},
    {"inputs": "a", "parameters": {"max_new_tokens": 1.5}},
    {"inputs": "a", "parameters": {"max_new_tokens": 2**40}},
    {"inputs": "a", "parameters": {"temperature": "hot"}},
    {"inputs": "a", "parameters": {"top_k": 2**40}},
    {"inputs": "a", "parameters": {"seed": 1.5}},
    {"inputs": "a", "parameters": {"stop": [1]}},
    {"inputs": "a", "parameters": {"details": "yes"}},
]

NOT_ALLOWED: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"temperature": 0.0}, "`temperature` must be strictly positive"),
    ({"temperature": -1.0}, "`temperature` must be strictly positive"),
    ({"temperature": 1e30}, "`temperature` must be <= "),
    ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 2.0}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_k": -5}, "`top_k` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"repetition_penalty": 1e300}, "`repetition_penalty` must be >= "),
    ({"frequency_penalty": 3.0}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"stop": list("abcdefghijklmnopq")}, "`stop` supports up to 16 stop sequences. Given: 17"),
    ({"top_n_tokens": 21}, "`top_n_tokens` must be >= 0 and <= 20. Given: 21"),
    ({"truncate": 0}, "`truncate` must be strictly positive"),
    ({"best_of": 9}, "`best_of` must be > 0 and <= 8. Given: 9"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"grammar": {"type": "regex", "value": "(a"}}, "`grammar`: unclosed group"),
    ({"adapter_id": "mine"}, "adapter"),
]


def post(server: Server, path: str, content: bytes, headers: dict[str, str] = JSON) -> Any:
    return httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=20)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("content", NOT_JSON)
def test_what_is_not_json_gets_400(server: Server, path: str, content: bytes) -> None:
    reply = post(server, path, content.replace(b"inputs", TEXT_FIELDS[path]))

    assert reply.status_code == 400
    if path.startswith("/v1/"):
        reported = reply.json()["error"]["message"]
    else:
        assert reply.headers["content-type"].startswith("text/plain")
        reported = reply.text
    assert reported.startswith("Failed to parse the request body as JSON: ")


@pytest.mark.parametrize("body", WRONG_TYPE, ids=json.dumps)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_wrong_type_gets_422(server: Server, path: str, body: Any) -> None:
    reply = post(server, path, json.dumps(body).encode())

    assert reply.status_code == 422
    assert reply.text.startswith("Failed to deserialize the JSON body into the target type: ")


@pytest.mark.parametrize(("parameters", "message"), NOT_ALLOWED, ids=str)
def test_a_value_that_is_not_allowed_gets_422(
    server: Server, parameters: dict[str, Any], message: str
) -> None:
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 2} | parameters}).encode()

    reply = post(server, "/generate", body)
    events = post(server, "/generate_stream", body)

    assert reply.status_code == 422
    assert reply.json()["error_type"] == "validation"
    assert reply.json()["error"].startswith("Input validation error: ")
    assert message in reply.json()["error"]
    # TGI's streams begin before anything is checked.
    assert events.status_code == 200
    assert json.loads(events.text.removeprefix("data: "))["error_type"] == "validation"


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/tokenize"])
def test_an_empty_prompt(server: Server, path: str) -> None:
    reply = post(server, path, b'{"inputs": ""}')

    assert "`inputs` cannot be empty" in reply.text
    assert reply.status_code == (200 if path == "/generate_stream" else 422)


def test_a_prompt_beyond_the_limit(server: Server) -> None:
    longest = httpx.get(f"{server.url}/info").json()["max_input_tokens"]
    body = {"inputs": "a " * (longest + 10), "parameters": {"max_new_tokens": 1}}

    reply = post(server, "/generate", json.dumps(body).encode())

    assert reply.status_code == 422
    assert reply.json()["error_type"] == "validation"
    assert str(longest + 1) in reply.json()["error"]


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_of_10_megabytes_gets_413(server: Server, path: str) -> None:
    content = b'{"inputs": "%s"}' % (b"a" * 10_000_000)

    def in_chunks() -> Any:
        for start in range(0, len(content), 2**16):
            yield content[start : start + 2**16]

    for body in (content, in_chunks()):
        try:
            reply = httpx.post(f"{server.url}{path}", content=body, headers=JSON, timeout=60)
        except httpx.WriteError:
            # The server had answered and closed before all of it was sent.
            continue
        assert reply.status_code == 413
        assert "length limit exceeded" in reply.text


def test_another_content_type_gets_415(server: Server) -> None:
    reply = post(server, "/generate", b'{"inputs": "a"}', {"content-type": "text/plain"})

    assert reply.status_code == 415
    assert reply.text == "Expected request with `Content-Type: application/json`"


def test_unknown_routes_and_methods_have_empty_answers(server: Server) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("POST", "/generate/", 404),
        ("GET", "/generate", 405),
        ("POST", "/metrics", 405),
    ):
        reply = httpx.request(method, f"{server.url}{path}")
        assert (reply.status_code, reply.content) == (status, b""), (method, path)


def test_below_v1_they_are_reported_as_by_openai(server: Server) -> None:
    for method, path, status in (
        ("DELETE", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
    ):
        reply = httpx.request(method, f"{server.url}{path}")
        assert reply.status_code == status
        assert path in reply.json()["error"]["message"]


async def test_other_requests_do_not_notice(server: Server) -> None:
    wanted = ("The history of bread begins", {"max_new_tokens": 40, "ignore_eos": True})
    async with server.client() as client:
        undisturbed = await stream(client, *wanted)

        async def disturb() -> set[int]:
            statuses = set()
            for content in (b"{", b'{"inputs": 3}', b'{"inputs": ""}', b'{"inputs": "\\ud83d"}'):
                reply = await client.post("/generate", content=content, headers=JSON)
                statuses.add(reply.status_code)
            return statuses

        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(stream(client, *wanted)) for _ in range(3)]
            statuses = [group.create_task(disturb()) for _ in range(5)]

    replies: list[Reply] = [task.result() for task in streams]
    assert replies == [undisturbed] * 3
    assert all(task.result() == {400, 422} for task in statuses)
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model-id", "/no/such/folder"), "the model folder /no/such/folder does not exist"),
        (("--model-id", "."), "config.json"),
        (("--dtype", "float8"), "--dtype must be one of bfloat16, float16, float32"),
        (("--max-input-tokens", "0"), "--max-input-tokens must be from 1 to "),
        pytest.param(
            ("--max-total-tokens", "999999"),
            "--max-total-tokens must be at most 8192",
            marks=pytest.mark.full,
        ),
        (("--quantize", "awq"), "--quantize awq asks for weights that are quantized already"),
        pytest.param(("--kv-cache-memory", "1"), "--kv-cache-memory", marks=pytest.mark.full),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_server_that_cannot_start_says_why(
    model_folder: object, tmp_path: Any, flags: tuple[str, ...], message: str
) -> None:
    done = subprocess.run(
        (*COMMAND, "--hostname", "127.0.0.1", "--port", "0", *flags),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=environment(),
    )

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
