"""The formats of the model families, and which one a chat template shows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tgi_async.text.tools.deepseek import DEEPSEEK, DEEPSEEK31
from tgi_async.text.tools.format import TAGGED, Format, Written

_OBJECT = '{"name": "{name}", "arguments": '

HERMES = Format(
    name="hermes",
    signs=(("<tool_call>", '"name"'), ("<tool_call>", '\\"name\\"')),
    begin=("<tool_call>",),
    end=("</tool_call>",),
    written=Written(call="<tool_call>\n" + _OBJECT, end_call="}\n</tool_call>", between="\n"),
    instructions=TAGGED
    + 'To call a function, write <tool_call>{"name": <its name>, "arguments": <object>}</tool_call>'
    " and nothing else. Call none where none is needed.",
)
"""Nous Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4 and many more."""

QWEN3_CODER = Format(
    name="qwen3_coder",
    signs=(("<tool_call>", "<function=", "<parameter="),),
    begin=("<tool_call>", "<function="),
    end=("</tool_call>",),
    tagged=True,
    written=Written(
        call="<tool_call>\n<function={name}>\n",
        end_call="</function>\n</tool_call>",
        between="\n",
    ),
    instructions=TAGGED + "To call a function, write this and nothing else:\n<tool_call>\n"
    "<function=NAME>\n<parameter=PARAMETER>\nVALUE\n</parameter>\n</function>\n</tool_call>\n"
    "Call none where none is needed.",
)
"""Qwen3-Coder, Qwen 3.5, Step 3.5: arguments in tags. Some leave the first mark out."""

SMOLLM = Format(
    name="smollm",
    signs=(("named SmolLM",),),
    begin=("<tool_call>",),
    end=("</tool_call>",),
    written=Written(
        begin="<tool_call>[", call=_OBJECT, end_call="}", between=", ", end="]</tool_call>"
    ),
    instructions=TAGGED
    + 'To call functions, write <tool_call>[{"name": <name>, "arguments": <object>}, ...]'
    "</tool_call> and nothing else. Call none where none is needed.",
)
"""SmolLM2, whose template does not show tools."""

LLAMA3 = Format(
    name="llama3",
    signs=(
        ("<|start_header_id|>", '"parameters": '),
        ("<|start_header_id|>", "<|python_tag|>"),
    ),
    begin=("<|python_tag|>",),
    bare=True,
    written=Written(call='{"name": "{name}", "parameters": ', end_call="}", between="; "),
    instructions=TAGGED
    + 'To call a function, write {"name": <its name>, "parameters": <object>} and nothing else. '
    "Call none where none is needed.",
)
"""Llama 3.1, 3.2 and 3.3, with the tag or without. Python behind the tag stays prose."""

MISTRAL_LIST = Format(
    name="mistral",
    signs=(("[TOOL_CALLS]",),),
    begin=("[TOOL_CALLS]",),
    header=re.compile(r"(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]*)?\s*(?:\[ARGS\])?\s*"),
    written=Written(begin="[TOOL_CALLS][", call=_OBJECT, end_call="}", between=", ", end="]"),
    instructions=TAGGED
    + 'To call functions, write [TOOL_CALLS][{"name": <name>, "arguments": <object>}, ...] and '
    "nothing else. Call none where none is needed.",
    short_ids=True,
)
"""Mistral up to 2024: a list. What newer models write is understood too."""

MISTRAL = Format(
    name="mistral_args",
    signs=(("[TOOL_CALLS]", "[ARGS]"),),
    begin=("[TOOL_CALLS]",),
    header=MISTRAL_LIST.header,
    written=Written(call="[TOOL_CALLS]{name}[ARGS]", end_call=""),
    instructions=TAGGED
    + "To call a function, write [TOOL_CALLS]<its name>[ARGS]<object of arguments> and nothing "
    "else. Call none where none is needed.",
    short_ids=True,
)
"""Mistral since 2025: Mistral Small 3.2, Devstral, Ministral 3, Magistral."""

FUNCTIONARY = Format(
    name="functionary",
    signs=(("<function=", "start_tag"),),
    begin=("<function=",),
    end=("</function>",),
    header=re.compile(r"(?P<name>[^\s<>{}]+)>\s*"),
    written=Written(call="<function={name}>", end_call="</function>"),
)
"""MeetKai's Functionary 3.1, and Llama 3.1 with functions of its user's own."""

GRANITE = Format(
    name="granite",
    signs=(("<|tool_call|>",),),
    begin=("<|tool_call|>", "<tool_call>"),
    end=("</tool_call>",),
    written=Written(begin="<|tool_call|>[", call=_OBJECT, end_call="}", between=", ", end="]"),
)
"""IBM's Granite 3."""

NEMOTRON = Format(
    name="nemotron",
    signs=(("<TOOLCALL>",),),
    begin=("<TOOLCALL>",),
    end=("</TOOLCALL>",),
    written=Written(
        begin="<TOOLCALL>[", call=_OBJECT, end_call="}", between=", ", end="]</TOOLCALL>"
    ),
)
"""NVIDIA's Nemotron Nano 2."""

JSON = Format(
    name="json",
    bare=True,
    fences=("```json\n", "```\n"),
    end=("```",),
    written=Written(call=_OBJECT, end_call="}", between="\n"),
    instructions=TAGGED
    + 'To call a function, write {"name": <its name>, "arguments": <object>} and nothing else, one '
    "line for each call. Call none where none is needed.",
)
"""For templates that show no format: objects, in a list or a fence or neither."""

FORMATS = (
    DEEPSEEK,
    DEEPSEEK31,
    MISTRAL,
    MISTRAL_LIST,
    GRANITE,
    NEMOTRON,
    QWEN3_CODER,
    HERMES,
    FUNCTIONARY,
    LLAMA3,
    SMOLLM,
    JSON,
)
"""The first that a template shows is its format."""

NAMES = tuple(one.name for one in FORMATS)


def format_named(name: str) -> Format:
    """The format with one of `NAMES`."""
    return next(one for one in FORMATS if one.name == name)


def format_of(templates: Iterable[str]) -> Format:
    """The format that any of a model's chat templates shows."""
    sources = list(templates)
    return next((one for one in FORMATS if any(map(one.matches, sources))), JSON)
