"""What a client asks for beside a text, under every method: chat, a schema, a forced call, and
log-probabilities; by the command of TGI's users."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.integration.server import LAUNCHER, Server
from tests.workers.quantization.test_served import MODELS, with_tokenizer

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "minimum": 0, "maximum": 8},
    },
    "required": ["name", "legs"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}
FLAGS = {
    "awq": ("awq", "gptq", "marlin"),
    "gptq": ("gptq", "marlin"),
    "fp8": ("fp8",),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes-nf4"),
    "compressed-tensors": ("compressed-tensors",),
    "gguf": ("gguf",),
}
"""What users of such a checkpoint have in their commands."""
ON_THE_FLY = (
    "int8", "int4", "eetq", "fp8", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4",
)  # fmt: skip


def chat(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "A cat?"}], "seed": 7, **fields}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def check(server: Server) -> None:
    """Chat, plain and streamed, a schema, a call and log-probabilities."""
    said = chat(server, max_tokens=8, temperature=0)["message"]["content"]
    assert said
    body = {"messages": [{"role": "user", "content": "A cat?"}], "max_tokens": 8, "stream": True}
    streamed = httpx.post(
        f"{server.url}/v1/chat/completions", json={**body, "temperature": 0}, timeout=60
    )
    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
    parts = [json.loads(one)["choices"][0]["delta"].get("content") for one in events]
    assert "".join(filter(None, parts)) == said

    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    answer = chat(server, max_tokens=80, response_format=form)["message"]["content"]
    Draft202012Validator(SCHEMA).validate(json.loads(answer))

    message = chat(server, max_tokens=80, tools=[TOOL], tool_choice="required")["message"]
    assert message["tool_calls"]
    for call in message["tool_calls"]:
        assert call["function"]["name"] == "find"
        Draft202012Validator(SCHEMA).validate(json.loads(call["function"]["arguments"]))

    given = chat(server, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3)["logprobs"]
    assert given["content"]
    for token in given["content"]:
        numbers = [one["logprob"] for one in token["top_logprobs"]]
        # The likeliest is taken, and no more than everything is likely.
        assert token["logprob"] == max(numbers)
        assert sum(map(math.exp, numbers)) <= 1 + 1e-5


def checked(log: Path, *flags: str) -> dict[str, Any]:
    """Start a server, check it and return its /info."""
    flags = ("--max-batch-size", "2", *flags)
    with Server.running(log, *flags, command=LAUNCHER) as server:
        check(server)
        info: dict[str, Any] = httpx.get(f"{server.url}/info").json()
        assert f"({info['quantization']})" in server.log
        return info


@pytest.mark.parametrize(
    ("method", "flag", "n_ranks"),
    [
        ("gptq", "gptq", 2),
        *(
            pytest.param(method, flag, n_ranks, marks=pytest.mark.full)
            for method, flags in FLAGS.items()
            for flag, n_ranks in [("", 2), *((one, 1) for one in flags)]
        ),
    ],
)
def test_a_checkpoint(
    model_folder: Path, tmp_path: Path, method: str, flag: str, n_ranks: int
) -> None:
    folder, _ = MODELS[method](tmp_path)
    flags = ("--quantize", flag) if flag else ()
    ranks = ("--num-shard", str(n_ranks))
    folder = with_tokenizer(folder, model_folder)
    info = checked(tmp_path / "log", "--model-id", str(folder), *ranks, *flags)
    assert info["quantization"].startswith(method)
    # What the file has in float32 is in bfloat16 here.
    size = sum(one.stat().st_size for one in folder.glob("*.safetensors"))
    assert size / 3 < info["weight_bytes"] < size


@pytest.mark.parametrize(
    ("flag", "n_ranks"),
    [
        ("int4", 1),
        *(
            pytest.param(flag, n_ranks, marks=pytest.mark.full)
            for flag in ON_THE_FLY
            for n_ranks in (1, 3)
            if (flag, n_ranks) != ("int4", 1)
        ),
    ],
)
def test_a_plain_checkpoint_quantized_while_it_is_loaded(
    model_folder: Path, tmp_path: Path, flag: str, n_ranks: int
) -> None:
    flags = ("--model-id", str(model_folder), "--quantize", flag, "--num-shard", str(n_ranks))
    info = checked(tmp_path / "log", *flags)
    assert info["quantization"].startswith(flag)
    plain = sum(one.stat().st_size for one in model_folder.glob("*.safetensors"))
    # The embedding stays in 16 bits, and the output layer that shares it where it is not rounded.
    assert info["weight_bytes"] < plain * (0.7 if flag.endswith("4") else 0.85)
