"""What models write, from their cards and from the tests of servers that run them."""

# ruff: noqa: RUF001 (DeepSeek's marks are written with letters of their own)

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tgi_async.text.tools.format import Format

FUNCTIONS: dict[str, Any] = {
    **dict.fromkeys(("get_time", "multiply", "searchTool", "special_function")),
    "get_current_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "units": {"type": "array", "items": {"type": "string"}},
            "limit": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
    },
    "add": {"properties": {"a": {"type": "number"}, "b": {"type": ["string", "integer"]}}},
}
"""Names, with schemas of the parameters."""
WEATHER = '{"location": "San Francisco, California, United States", "unit": "celsius"}'
SHORT = '{"city": "San Francisco", "state": "CA", "unit": "celsius"}'


SPECIAL = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|｜DSML｜")
"""What may be special tokens in the texts of formats."""


def marks_of(format: Format) -> list[str]:
    """The special tokens that a tokenizer may have for a format."""
    return sorted({mark for text in format.literals for mark in SPECIAL.findall(text)})


class Sample(NamedTuple):
    """A text, and what it says: prose, and calls with their arguments as they are written."""

    format: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()
    prose: str = ""


SAMPLES = [
    # Hermes 2 Pro, Qwen 2.5 and 3
    Sample(
        "hermes",
        '<tool_call>\n{"name": "get_current_weather", "arguments": ' + WEATHER + "}\n</tool_call>",
        (("get_current_weather", WEATHER),),
    ),
    Sample(
        "hermes",
        '<tool_call>\n{"arguments": {"city": "서울"}, "name": "get_time"}\n</tool_call>',
        (("get_time", '{"city": "서울"}'),),
    ),
    Sample(
        "hermes",
        'I will look.\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2.5e3}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n',
        (("add", '{"a": 1, "b": -2.5e3}'), ("get_time", "{}")),
        "I will look.",
    ),
    Sample(
        "hermes",
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n{"name": "get_time", "arguments": {}}'
        "\n</tool_call>",
        (("add", '{"a": 1}'), ("get_time", "{}")),
    ),
    Sample(  # as text in JSON
        "hermes",
        '<tool_call>{"name": "searchTool", "arguments": "{\\"query\\": \\"a \\\\\\"b\\\\\\"\\"}"}'
        "</tool_call> Done.",
        (("searchTool", '{"query": "a \\"b\\""}'),),
        "Done.",
    ),
    Sample("hermes", '<tool_call>\n{"name": "get_time"}\n</tool_call>', (("get_time", "{}"),)),
    Sample(
        "hermes",
        '<tool_call>\n{"name": "get_time", "arguments": null, "id": 7}\n</tool_call>',
        (("get_time", "{}"),),
    ),
    Sample(  # no mark at its end
        "hermes",
        '<tool_call>\n{"name": "searchTool", "arguments": {"query": "</tool_call> [{\\"}"}}',
        (("searchTool", '{"query": "</tool_call> [{\\"}"}'),),
    ),
    # Llama 3.1 and 3.2
    Sample(
        "llama3",
        '{"name": "searchTool", "parameters": {"query": "test query", "limit": 10}}',
        (("searchTool", '{"query": "test query", "limit": 10}'),),
    ),
    Sample(
        "llama3",
        '{"name": "searchTool", "parameters": {"query": "test1"}}; '
        '{"name": "get_time", "parameters": {}}; '
        '{"name": "searchTool", "parameters": {"query": "test2"}}',
        (
            ("searchTool", '{"query": "test1"}'),
            ("get_time", "{}"),
            ("searchTool", '{"query": "test2"}'),
        ),
    ),
    Sample(
        "llama3",
        '<|python_tag|>{"type": "function", "name": "get_current_weather", "parameters": '
        + SHORT
        + "}",
        (("get_current_weather", SHORT),),
    ),
    Sample(
        "llama3",
        'Here is the result: {"name": "searchTool", "parameters": {"query": "test"}} Would you '
        "like to know more?",
        (("searchTool", '{"query": "test"}'),),
        "Here is the result:Would you like to know more?",
    ),
    Sample(
        "llama3",
        '<|python_tag|>brave_search.call(query="weather in Seoul")',
        (),
        '<|python_tag|>brave_search.call(query="weather in Seoul")',
    ),
    # Mistral 7B v0.3, Nemo, Large
    Sample(
        "mistral",
        '[TOOL_CALLS] [{"name": "add", "arguments":{"a": 3.5, "b": 4}}, {"name": '
        '"get_current_weather", "arguments":' + SHORT + "}]",
        (("add", '{"a": 3.5, "b": 4}'), ("get_current_weather", SHORT)),
    ),
    Sample(
        "mistral",
        'Sure.[TOOL_CALLS][{"arguments":{"a": 1, "b": 2}, "name": "add", "id": "bbc5b7ede"}]',
        (("add", '{"a": 1, "b": 2}'),),
        "Sure.",
    ),
    # Mistral Small 3.2, Devstral, Ministral 3
    Sample(
        "mistral_args",
        '[TOOL_CALLS]add{"a": 3.5, "b": 4}[TOOL_CALLS]multiply{"a": 3, "b": 6}',
        (("add", '{"a": 3.5, "b": 4}'), ("multiply", '{"a": 3, "b": 6}')),
    ),
    Sample(
        "mistral_args",
        "Let me see.[TOOL_CALLS]get_current_weather[ARGS]"
        + SHORT
        + "[TOOL_CALLS]get_time[CALL_ID]VvvODy9mT[ARGS]{}",
        (("get_current_weather", SHORT), ("get_time", "{}")),
        "Let me see.",
    ),
    # SmolLM2
    Sample(
        "smollm",
        '<tool_call>[{"name": "get_current_weather", "arguments": {"location": "New York"}}, '
        '{"name": "get_time", "arguments": {}}]</tool_call>',
        (("get_current_weather", '{"location": "New York"}'), ("get_time", "{}")),
    ),
    # DeepSeek V3 and R1
    Sample(
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>special_function\n"
        '```json\n{"arg1": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        (("special_function", '{"arg1": 1}'),),
    ),
    Sample(
        "deepseek",
        "<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_current_weather\n"
        '```json\n{"city": "Tokyo"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_current_weather\n"
        '```json\n{"city": "Paris"}\n```\n<｜tool▁call▁end｜>\n<｜tool▁calls▁end｜>',
        (
            ("get_current_weather", '{"city": "Tokyo"}'),
            ("get_current_weather", '{"city": "Paris"}'),
        ),
    ),
    Sample(  # R1's distillations
        "deepseek",
        '<｜tool▁calls｜>function<｜tool▁sep｜>special_function\n```json\n{"arg1": 1}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (("special_function", '{"arg1": 1}'),),
    ),
    # DeepSeek V3.1
    Sample(
        "deepseek_v31",
        "Wait.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        '{"a": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (("add", '{"a": 1}'), ("get_time", "{}")),
        "Wait.",
    ),
    # Functionary, Granite 3, Nemotron Nano 2
    Sample(
        "functionary",
        '<function=add>{"a": 1}</function><function=get_time>{}</function>',
        (("add", '{"a": 1}'), ("get_time", "{}")),
    ),
    Sample(
        "granite",
        '<|tool_call|>[{"name": "get_time", "arguments": {}}, {"name": "add", "arguments": '
        '{"a": [1, {"b": null}]}}]',
        (("get_time", "{}"), ("add", '{"a": [1, {"b": null}]}')),
    ),
    Sample(
        "nemotron",
        'Hm.\n<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>\n',
        (("add", '{"a": 1}'),),
        "Hm.",
    ),
    # Qwen3-Coder, Qwen 3.5
    Sample(
        "qwen3_coder",
        "Sure! Let me check.\n\n<tool_call>\n<function=get_current_weather>\n<parameter=city>\n"
        "Dallas\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=exact>\nTrue\n"
        '</parameter>\n<parameter=units>\n["C", "F"]\n</parameter>\n<parameter=limit>\nnull\n'
        "</parameter>\n</function>\n</tool_call>",
        (
            (
                "get_current_weather",
                '{"city": "Dallas", "days": 3, "exact": true, "units": ["C", "F"], "limit": null}',
            ),
        ),
        "Sure! Let me check.",
    ),
    Sample(
        "qwen3_coder",
        '<tool_call>\n<function=searchTool>\n<parameter=query>\nif a < b:\n    print("</p>")\n\n'
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n"
        "</tool_call>",
        (
            ("searchTool", '{"query": "if a < b:\\n    print(\\"</p>\\")\\n"}'),
            ("get_time", "{}"),
        ),
    ),
    Sample(  # without the first mark, and with values of the wrong type
        "qwen3_coder",
        "<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2x\n</parameter>\n"
        "</function>\n</tool_call>",
        (("add", '{"a": 1, "b": "2x"}'),),
    ),
    Sample(  # something else between the parameters
        "qwen3_coder",
        "<tool_call>\n<function=add>\n<parameter=a>1</parameter> and so on</function></tool_call>",
        (("add", '{"a": 1}'),),
        "and so on</function></tool_call>",
    ),
    # Models whose template shows none
    Sample(
        "json",
        '```json\n[{"name": "add", "arguments": {"a": 1}}, {"name": "get_time", "arguments": {}}]'
        "\n```\nThat is all.",
        (("add", '{"a": 1}'), ("get_time", "{}")),
        "That is all.",
    ),
    Sample(
        "json",
        '{"name": "add", "arguments": {"a": 1}}\n{"name": "get_time", "arguments": {}}',
        (("add", '{"a": 1}'), ("get_time", "{}")),
    ),
]
"""White space around calls is not part of the prose."""

NO_CALLS = [
    ("hermes", "<tool_call>\n{'name': 'add', 'arguments': {}}\n</tool_call>"),
    ("hermes", '<tool_call>\n{"name": "rm_rf", "arguments": {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": [1, 2]}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {a: 1}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": "not JSON"}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "add", "because": "of you", "arguments": {}}'),
    ("hermes", "Write <tool_call> or </tool_call> to call; <tool_ca"),
    ("hermes", '<tool_call>\n{"name": "add", "argu'),
    ("hermes", "<tool_call></tool_call>"),
    ("llama3", '{"name": "Alice", "parameters": {"age": 3}}\n{"age": {}}'),
    ("llama3", '{"name": "get_time"}'),
    ("llama3", '<|python_tag|>import os\nprint({"a": [1]}["a"])'),
    ("mistral", "[TOOL_CALLS] nothing {} [TOOL_CALLS"),
    ("mistral_args", '[TOOL_CALLS]rm_rf[ARGS]{"a": 1}'),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n1",
    ),
    ("functionary", "<function=add>no</function> <function>"),
    ("qwen3_coder", "<tool_call>\n<function=rm_rf>\n</function>\n</tool_call>"),
    ("qwen3_coder", "<tool_call>\n<function=add>\nno parameter</function> <function"),
    ("json", 'a `{"a": 1}` and ```json\n{"b": [2]}\n```\n\n{ } [ [1, 2] ] \\'),
    ("json", "  two  spaces \u00a0 \n\n"),
]
"""Texts that hold no call, and stay as they are."""
