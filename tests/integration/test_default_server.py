"""The server as a person starts it: what it is made of, and an unmodified `InferenceClient` of
huggingface_hub against it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from tests.integration.server import Server

pytestmark = pytest.mark.model

MOST_ROUTER_BYTES = 250_000_000


def proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares counted by its share (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell the PSS")


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_router_is_small_and_has_no_torch(default_server: Server, report: list[str]) -> None:
    router, worker = default_server.pid, default_server.worker_pid()
    used = proportional_bytes(router)
    report.append(
        f"start: ready in {default_server.start_seconds:.1f} s on a warm cache; router "
        f"{used / 1e6:.0f} MB, worker {proportional_bytes(worker) / 1e6:.0f} MB (PSS)"
    )

    assert "libtorch" in libraries(worker)
    assert "libtorch" not in libraries(router)
    assert used < MOST_ROUTER_BYTES


def test_the_log_shows_the_phases_with_their_times(default_server: Server) -> None:
    for phase in ("loading weights", "warming up", "measuring steps", "limits: ", "ready in "):
        assert phase in default_server.log
    chunk = re.search(r"; 512 prefill tokens a step, (\d+) beside a decode\n", default_server.log)
    assert chunk is not None
    assert int(chunk[1]) in range(16, 257, 16)
    assert f"http://127.0.0.1:{default_server.port}" in default_server.log


@pytest.fixture
def client(default_server: Server) -> InferenceClient:
    return InferenceClient(model=default_server.url)


# The length that a person asks for is in the long version.
lengths = pytest.mark.parametrize("max_new_tokens", [40, pytest.param(300, marks=pytest.mark.full)])


@lengths
def test_text_generation(client: InferenceClient, max_new_tokens: int) -> None:
    text = client.text_generation(
        "Python의 asyncio 이벤트 루프를 설명해줘",
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.05,
    )

    assert isinstance(text, str)
    assert text.strip()


@lengths
def test_text_generation_token_by_token(client: InferenceClient, max_new_tokens: int) -> None:
    pieces = list(
        client.text_generation(
            "한국 경제의 특징을 설명해줘",
            max_new_tokens=max_new_tokens,
            temperature=0.7,
            top_p=0.9,
            repetition_penalty=1.05,
            stream=True,
        )
    )

    assert 1 <= len(pieces) <= max_new_tokens
    assert "".join(pieces).strip()


def test_a_stream_says_the_same_as_the_whole_answer(client: InferenceClient) -> None:
    prompt = "The three primary colours are"

    whole = client.text_generation(prompt, max_new_tokens=24, details=True, return_full_text=False)
    events = list(
        client.text_generation(
            prompt, max_new_tokens=24, details=True, return_full_text=False, stream=True
        )
    )

    assert whole.details is not None
    assert whole.details.finish_reason == "length"
    assert whole.details.generated_tokens == len(whole.details.tokens) == 24
    assert "".join(token.text for token in whole.details.tokens) == whole.generated_text
    assert [event.index for event in events] == list(range(1, 25))
    assert "".join(event.token.text for event in events) == events[-1].generated_text
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 24
    assert events[-1].details.input_length == 5
    assert all(event.generated_text is None for event in events[:-1])


@lengths
def test_chat_completion(client: InferenceClient, max_new_tokens: int) -> None:
    answer = client.chat_completion(
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Explain in short what an event loop does."},
        ],
        max_tokens=max_new_tokens,
        stream=False,
    )

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert 1 <= answer.usage.completion_tokens <= max_new_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_says_paris(client: InferenceClient) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]

    answer = client.chat_completion(question, max_tokens=40, temperature=0.0)
    chunks = list(client.chat_completion(question, max_tokens=40, temperature=0.0, stream=True))

    content = answer.choices[0].message.content
    assert content is not None
    assert "Paris" in content
    assert answer.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_loop_of_32_calls(client: InferenceClient) -> None:
    texts = [
        client.text_generation(f"The number after {i} is", max_new_tokens=3) for i in range(32)
    ]

    assert all(texts)


def test_32_calls_at_once(client: InferenceClient) -> None:
    with ThreadPoolExecutor(32) as pool:
        texts = list(
            pool.map(
                lambda i: client.text_generation(f"The number after {i} is", max_new_tokens=3),
                range(32),
            )
        )

    assert all(texts)


def test_its_errors_are_the_ones_that_it_knows(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="`max_new_tokens` must be strictly positive"):
        client.text_generation("a", max_new_tokens=0)
