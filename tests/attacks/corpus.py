"""Valid requests of every route, as the clients of TGI, OpenAI and the clouds send them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.doubles.fake_images import url

INFER = "/v2/models/m/versions/1/infer"


class Sent(NamedTuple):
    """A request, by the route's path, its body as a value."""

    path: str
    body: Any

    def content(self) -> bytes:
        return json.dumps(self.body).encode()


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}
PARAMETERS: Any = {
    "best_of": 1,
    "temperature": 0.5,
    "repetition_penalty": 1.03,
    "frequency_penalty": 0.1,
    "top_k": 10,
    "top_p": 0.95,
    "typical_p": 0.95,
    "min_p": 0.1,
    "do_sample": True,
    "max_new_tokens": 4,
    "return_full_text": False,
    "stop": ["photographer"],
    "truncate": 50,
    "watermark": True,
    "details": True,
    "decoder_input_details": True,
    "seed": 42,
    "top_n_tokens": 2,
    "ignore_eos": True,
    "adapter_id": None,
}
BEST_OF_TWO: Any = {"max_new_tokens": 3, "best_of": 2, "do_sample": True}
SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"enum": ["x", 1, None]}, "b": {"type": "array", "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
OPENAI: Any = {
    "model": "tgi",
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "typical_p": 0.9,
    "min_p": 0.05,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.2,
    "repetition_penalty": 1.1,
    "logit_bias": {"65": 5, "66": -100},
    "max_tokens": 4,
    "min_tokens": 1,
    "stop": ["##"],
    "seed": 1,
    "n": 2,
    "stop_token_ids": [3],
    "bad_words": ["no"],
    "truncate_prompt_tokens": 40,
    "prompt_logprobs": 1,
}
CHAT: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
INPUTS: Any = {"inputs": "My name is Ann", "parameters": PARAMETERS}
STREAMED: Any = {"inputs": "Hi", "parameters": PARAMETERS | {"decoder_input_details": False}}
RICH_CHAT: Any = {
    **OPENAI,
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief"}]},
        {"role": "user", "name": "ann", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Sun"},
    ],
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}

VALID: tuple[Sent, ...] = (
    Sent("/generate", INPUTS),
    Sent(
        "/generate",
        {"inputs": "Hi", "parameters": {"max_new_tokens": 3, "best_of": 2, "do_sample": True}},
    ),
    Sent(
        "/generate",
        {
            "inputs": "Hi",
            "parameters": {"max_new_tokens": 9, "grammar": {"type": "json", "value": SCHEMA}},
        },
    ),
    Sent(
        "/generate",
        {
            "inputs": "Hi",
            "parameters": {"max_new_tokens": 5, "grammar": {"type": "regex", "value": "[a-c]+x?"}},
        },
    ),
    Sent("/generate", {"inputs": f"![]({url(3)})Hi", "parameters": {"max_new_tokens": 2}}),
    Sent("/generate_stream", STREAMED),
    Sent("/", STREAMED | {"stream": True}),
    Sent("/", {"inputs": "Hi", "parameters": {"max_new_tokens": 2}, "stream": False}),
    Sent("/tokenize", {"inputs": "Hi there"}),
    Sent("/tokenize", {"prompt": "Hi", "add_special_tokens": False, "return_token_strs": True}),
    Sent("/tokenize", CHAT | {"return_token_strs": True}),
    Sent("/detokenize", {"tokens": [65, 66, 67], "model": "m"}),
    Sent("/chat_tokenize", RICH_CHAT),
    Sent("/v1/chat/completions", CHAT),
    Sent("/v1/chat/completions", RICH_CHAT),
    Sent(
        "/v1/chat/completions",
        CHAT | {"stream": True, "stream_options": {"include_usage": True}, "tools": [TOOL]},
    ),
    Sent("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required"}),
    Sent(
        "/v1/chat/completions",
        CHAT
        | {
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "stream": True,
        },
    ),
    Sent(
        "/v1/chat/completions",
        CHAT
        | {
            "functions": [TOOL["function"]],
            "function_call": {"name": "weather"},
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": False},
            "documents": [{"title": "a", "text": "b"}],
        },
    ),
    Sent(
        "/v1/chat/completions",
        CHAT
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "strict": True, "schema": SCHEMA},
            }
        },
    ),
    Sent(
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url(2), "detail": "low"}},
                        {"type": "text", "text": "What is it?"},
                    ],
                }
            ],
            "max_completion_tokens": 3,
        },
    ),
    Sent("/v1/completions", {**OPENAI, "prompt": ["Hi", "you"], "logprobs": 2, "echo": True}),
    Sent(
        "/v1/completions",
        {"prompt": "Hi", "max_tokens": 3, "stream": True, "best_of": 1, "suffix": None},
    ),
    Sent("/v1/completions", {"prompt": [[65, 66], [3]], "max_tokens": 2}),
    Sent("/v1/completions", {"prompt": "a", "max_tokens": 4, "guided_choice": ["yes", "no"]}),
    Sent("/v1/completions", {"prompt": "a", "max_tokens": 4, "structured_outputs": {"regex": "a"}}),
    Sent("/v1/completions", {"prompt": "a", "max_tokens": 4, "guided_json": SCHEMA}),
    Sent("/invocations", STREAMED | {"stream": True}),
    Sent("/invocations", CHAT),
    Sent("/invocations", {"prompt": "Hi", "max_tokens": 2}),
    Sent(
        "/vertex",
        {"instances": [{"inputs": "Hi", "parameters": {"max_new_tokens": 2}}, CHAT]},
    ),
    Sent(
        INFER,
        {
            "id": "1",
            "inputs": [{"name": "i", "shape": [1], "datatype": "BYTES", "data": [72, 105]}],
            "outputs": [{"name": "o"}],
            "parameters": {"max_new_tokens": 2},
        },
    ),
)

READ = (
    *("/", "/health", "/health/ready", "/health/live", "/ping", "/info", "/metrics", "/docs"),
    *("/docs/", "/api-doc/openapi.json", "/v1/models", "/v1/models/tiny", "/v2", "/v2/health/live"),
    *("/v2/health/ready", "/v2/models/m/versions/1", "/v2/models/m/versions/1/ready"),
)
"""Paths of routes without a body."""
