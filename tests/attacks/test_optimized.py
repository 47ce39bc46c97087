"""Servers under `python -O`, which leaves assertions out, refuse and answer what others do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.api.conftest import CHATML
from tests.api.tiny_tokenizer import tiny_inner
from tests.attacks.corpus import VALID
from tests.attacks.mutations import mutated
from tests.attacks.target import replies
from tests.helpers.tiny_llama import save_tiny_llama
from tests.integration.server import Server

pytestmark = pytest.mark.full

N = 1500


def test_a_server_of_assertions_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable does what this file is about."""
    for value, status in (("1", 0), ("", 1)):
        monkeypatch.setenv("PYTHONOPTIMIZE", value)
        command = (sys.executable, "-c", "assert False")
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == status


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    tokenizer = tiny_inner()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "chat_template.jinja").write_text(CHATML)
    return save_tiny_llama(folder, tokenizer.get_vocab_size())


def requests() -> list[bytes]:
    """Spoiled ones that end by themselves, and the valid ones, which are greedy here."""
    random = Random(7)
    found = [mutated(random, whole=True) for _ in range(N)]
    for sent in VALID:
        content = sent.content().replace(b'"do_sample": true', b'"do_sample": false')
        head = f"POST {sent.path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += f"Connection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        found.append(head.encode() + content)
    return found


async def ask(port: int, request: bytes) -> list[int]:
    """The statuses of all replies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            return [status for status, _, _ in replies(await reader.read())]
    except ConnectionError:
        return []
    finally:
        writer.transport.abort()


async def all_statuses(port: int) -> list[list[int]]:
    return [await ask(port, request) for request in requests()]


def statuses(model: Path, log: Path, optimize: str) -> tuple[list[list[int]], str]:
    """What a server replies to all of them, and the text of one greedy generation."""
    flags = ("--model-id", str(model), "--max-total-tokens", "120", "--kserve")
    with Server.running(log, *flags, variables={"PYTHONOPTIMIZE": optimize}) as server:
        environment = Path(f"/proc/{server.worker_pid()}/environ").read_bytes().split(b"\0")
        assert (b"PYTHONOPTIMIZE=1" in environment) == bool(optimize)
        found = asyncio.run(all_statuses(server.port))
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
        text = httpx.post(f"{server.url}/generate", json=body).json()["generated_text"]
        assert "Traceback" not in server.log
        return found, text


def test_without_assertions_it_refuses_and_says_the_same(model: Path, tmp_path: Path) -> None:
    plain, text = statuses(model, tmp_path / "plain", "")
    bare, same = statuses(model, tmp_path / "bare", "1")
    assert same == text
    differing = [
        (request, one, other)
        for request, one, other in zip(requests(), plain, bare, strict=True)
        if one != other
    ]
    assert differing == []
    assert sum(200 in found for found in plain) > 50
