"""The tool formats of the model families, and which one a chat template shows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tgi_async.text.tools.deepseek import DEEPSEEK, DEEPSEEK4, DEEPSEEK31, DEEPSEEK32
from tgi_async.text.tools.format import ID, TOOLS_AND_FORMAT, Format, Marks, Turn, Written
from tgi_async.text.tools.harmony import HARMONY
from tgi_async.text.tools.literals import GEMMA, PYTHON
from tgi_async.text.tools.tags import Tags

_OBJECT = '{"name": "{name}", "arguments": '

HERMES = Format(
    name="hermes",
    signs=(("<tool_call>", '"name"'), ("<tool_call>", '\\"name\\"')),
    begin=("<tool_call>",),
    end=("</tool_call>",),
    written=Written(call="<tool_call>\n" + _OBJECT, end_call="}\n</tool_call>", between="\n"),
    instructions=TOOLS_AND_FORMAT
    + 'To call a function, write <tool_call>{"name": <its name>, "arguments": <object>}</tool_call>'
    " and nothing else. Call none where none is needed.",
)
"""Nous Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4 and many more."""

_TAG_NAME = re.compile(r"(?P<name>[^<>{}\s]{1,256})>\s*")
_ATTRIBUTE_NAME = re.compile(r'(?P<name>[^<>{}\s"]{1,256})">\s*')


def _parameters(begin: str, named: str, end: str, *, lines: bool = False) -> Tags:
    return Tags(begin=begin, named=((named, ()),), end=end, end_call=("</function>",), lines=lines)


QWEN3_CODER = Format(
    name="qwen3_coder",
    signs=(("<tool_call>", "<function=", "<parameter="),),
    begin=("<tool_call>", "<function="),
    end=("</tool_call>",),
    header=_TAG_NAME,
    notation=_parameters("<parameter=", ">\n", "\n</parameter>\n", lines=True),
    begin_call=("<function=",),
    written=Written(
        call="<tool_call>\n<function={name}>\n",
        end_call="</function>\n</tool_call>",
        between="\n",
    ),
    instructions=TOOLS_AND_FORMAT
    + "To call a function, write this and nothing else:\n<tool_call>\n"
    "<function=NAME>\n<parameter=PARAMETER>\nVALUE\n</parameter>\n</function>\n</tool_call>\n"
    "Call none where none is needed.",
)
"""Qwen3-Coder, Qwen 3.5, Step 3.5: arguments in tags. Some models leave out the first mark."""

SEED = Format(
    name="seed_oss",
    signs=(("<seed:tool_call>",),),
    begin=("<seed:tool_call>", "<function="),
    end=("</seed:tool_call>",),
    header=_TAG_NAME,
    notation=_parameters("<parameter=", ">", "</parameter>\n"),
    begin_call=("<function=",),
    written=Written(
        call="<seed:tool_call>\n<function={name}>\n",
        end_call="</function>\n</seed:tool_call>",
        between="\n",
    ),
    instructions=TOOLS_AND_FORMAT + "To call a function, write this and nothing else:\n"
    "<seed:tool_call>\n<function=NAME>\n<parameter=PARAMETER>VALUE</parameter>\n</function>\n"
    "</seed:tool_call>\nCall none where none is needed.",
)
"""ByteDance's Seed-OSS."""

GLM = Format(
    name="glm",
    signs=tuple(("<tool_call>", "<arg_key>", line + "<arg_value>") for line in ("\n", "\\n")),
    begin=("<tool_call>",),
    header=re.compile(r"(?P<name>[^<>{}\s]{1,256})\s*"),
    notation=Tags(
        begin="<arg_key>",
        named=(("</arg_key>\n<arg_value>", ()),),
        end="</arg_value>\n",
        end_call=("</tool_call>",),
    ),
    written=Written(call="<tool_call>{name}\n", end_call="</tool_call>", between="\n"),
)
"""GLM 4.5 and 4.6, and many models that use their format."""

GLM47 = Format(
    name="glm47",
    signs=(("<tool_call>", "<arg_key>", "<arg_value>"),),
    begin=GLM.begin,
    header=GLM.header,
    notation=Tags(
        begin="<arg_key>",
        named=(("</arg_key><arg_value>", ()),),
        end="</arg_value>",
        end_call=("</tool_call>",),
    ),
    written=Written(call="<tool_call>{name}", end_call="</tool_call>"),
)
"""GLM 4.7 and 5: the same without line breaks."""

MINIMAX = Format(
    name="minimax_m2",
    signs=(("<minimax:tool_call>",),),
    begin=("<minimax:tool_call>",),
    end=("</minimax:tool_call>",),
    header=_ATTRIBUTE_NAME,
    notation=Tags(
        begin='<parameter name="',
        named=(('">', ()),),
        end="</parameter>\n",
        end_call=("</invoke>",),
    ),
    begin_call=('<invoke name="',),
    written=Written(
        begin="<minimax:tool_call>\n",
        call='<invoke name="{name}">\n',
        end_call="</invoke>\n",
        end="</minimax:tool_call>",
    ),
)
"""MiniMax M2."""

KIMI = Format(
    name="kimi_k2",
    signs=(("<|tool_call_argument_begin|>",),),
    begin=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_call_begin|>"),
    end=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
    header=re.compile(
        r"\s*(?:functions\.)?(?P<name>[^\s:<>{}]{1,256}?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
    ),
    begin_call=("<|tool_call_begin|>",),
    end_call=("<|tool_call_end|>",),
    written=Written(
        begin="<|tool_calls_section_begin|>",
        call=f"<|tool_call_begin|>functions.{{name}}:{ID}<|tool_call_argument_begin|>",
        end_call="<|tool_call_end|>",
        end="<|tool_calls_section_end|>",
    ),
    ids="numbered",
)
"""Moonshot's Kimi K2."""

_SEP = "<|sep|>"

KIMI_K3 = Format(
    name="kimi_k3",
    signs=(("<|open|>", "<|close|>", _SEP),),
    begin=(f"<|open|>tools{_SEP}", '<|open|>call tool="'),
    end=(f"<|close|>tools{_SEP}",),
    header=re.compile(r'(?P<name>[^<>{}\s"]{1,256})"(?:\s*index="[^"]*")?\s*<\|sep\|>\s*'),
    notation=Tags(
        begin='<|open|>argument key="',
        named=tuple(
            (f'" type="{shown}"{_SEP}', kinds)
            for shown, kinds in (
                *((kind, (kind,)) for kind in ("string", "boolean", "null", "object", "array")),
                ("number", ("number", "integer")),
            )
        ),
        end=f"<|close|>argument{_SEP}",
        end_call=(f"<|close|>call{_SEP}",),
    ),
    begin_call=('<|open|>call tool="',),
    written=Written(
        begin=f"<|open|>tools{_SEP}",
        call=f'<|open|>call tool="{{name}}" index="{ID}"{_SEP}',
        end_call=f"<|close|>call{_SEP}",
        end=f"<|close|>tools{_SEP}",
    ),
    turn=Turn(
        Marks(f"<|open|>think{_SEP}", f"<|close|>think{_SEP}"),
        f"<|open|>response{_SEP}",
        (f"<|open|>response{_SEP}", f"<|close|>response{_SEP}", f"<|close|>message{_SEP}"),
    ),
)
"""Moonshot's Kimi K3."""

COHERE = Format(
    name="cohere",
    signs=(("<|START_ACTION|>",),),
    begin=("<|START_ACTION|>",),
    end=("<|END_ACTION|>",),
    written=Written(
        begin="<|START_ACTION|>[\n    ",
        call=f'{{"tool_call_id": "{ID}", "tool_name": "{{name}}", "parameters": ',
        end_call="}",
        between=",\n    ",
        end="\n]<|END_ACTION|>",
    ),
)
"""Cohere's Command R7B, Command A and later."""

COHERE_R = Format(
    name="command_r",
    signs=(('"tool_name":', "Action:"),),
    begin=("Action: ```json\n", "Action:\n```json\n", "Action:```json\n"),
    end=("```",),
    written=Written(
        begin="Action: ```json\n[\n    ",
        call='{"tool_name": "{name}", "parameters": ',
        end_call="}",
        between=",\n    ",
        end="\n]```",
    ),
)
"""Cohere's Command R and R+."""

LFM2 = Format(
    name="lfm2",
    signs=(
        ("<|tool_call_start|>",),
        ("<|tool_list_start|>",),
        ("List of tools: [", "<|im_start|>"),
    ),
    begin=("<|tool_call_start|>",),
    end=("<|tool_call_end|>",),
    header=re.compile(r"(?P<name>[^\s()\[\]{}<>,]{1,256})\s*"),
    notation=PYTHON,
    written=Written(
        begin="<|tool_call_start|>[",
        call="{name}",
        end_call="",
        between=", ",
        end="]<|tool_call_end|>",
    ),
    instructions=TOOLS_AND_FORMAT + "To call functions, write this and nothing else:\n"
    '<|tool_call_start|>[NAME(PARAMETER="VALUE", ...)]<|tool_call_end|>\n'
    "Call none where none is needed.",
)
"""Liquid's LFM2: a list of calls in Python's syntax."""

GEMMA4 = Format(
    name="gemma4",
    signs=(("<|tool_call>call:",),),
    begin=("<|tool_call>",),
    header=re.compile(r"(?P<name>[^\s{}<>]{1,256})\s*"),
    notation=GEMMA,
    begin_call=("call:",),
    end_call=("<tool_call|>",),
    written=Written(call="<|tool_call>call:{name}", end_call="<tool_call|>"),
)
"""Google's Gemma 4."""

SMOLLM = Format(
    name="smollm",
    signs=(("named SmolLM",),),
    begin=("<tool_call>",),
    end=("</tool_call>",),
    written=Written(
        begin="<tool_call>[", call=_OBJECT, end_call="}", between=", ", end="]</tool_call>"
    ),
    instructions=TOOLS_AND_FORMAT
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
    instructions=TOOLS_AND_FORMAT
    + 'To call a function, write {"name": <its name>, "parameters": <object>} and nothing else. '
    "Call none where none is needed.",
)
"""Llama 3.1, 3.2 and 3.3, with the tag or without. Python after the tag stays prose."""

MISTRAL_LIST = Format(
    name="mistral",
    signs=(("[TOOL_CALLS]",),),
    begin=("[TOOL_CALLS]",),
    header=re.compile(r"(?P<name>[^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]*)?\s*(?:\[ARGS\])?\s*"),
    written=Written(begin="[TOOL_CALLS][", call=_OBJECT, end_call="}", between=", ", end="]"),
    instructions=TOOLS_AND_FORMAT
    + 'To call functions, write [TOOL_CALLS][{"name": <name>, "arguments": <object>}, ...] and '
    "nothing else. Call none where none is needed.",
    ids="short",
)
"""Mistral up to 2024: a list. The calls of newer models are read too."""

MISTRAL = Format(
    name="mistral_args",
    signs=(("[TOOL_CALLS]", "[ARGS]"),),
    begin=("[TOOL_CALLS]",),
    header=MISTRAL_LIST.header,
    written=Written(call="[TOOL_CALLS]{name}[ARGS]", end_call=""),
    instructions=TOOLS_AND_FORMAT
    + "To call a function, write [TOOL_CALLS]<its name>[ARGS]<object of arguments> and nothing "
    "else. Call none where none is needed.",
    ids="short",
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
    instructions=TOOLS_AND_FORMAT
    + 'To call a function, write {"name": <its name>, "arguments": <object>} and nothing else, one '
    "line for each call. Call none where none is needed.",
)
"""For templates that show no format: objects, in a list or a fence or neither."""

FORMATS = (
    HARMONY,
    DEEPSEEK,
    DEEPSEEK31,
    DEEPSEEK32,
    DEEPSEEK4,
    KIMI,
    KIMI_K3,
    MINIMAX,
    SEED,
    COHERE,
    COHERE_R,
    LFM2,
    GEMMA4,
    MISTRAL,
    MISTRAL_LIST,
    GRANITE,
    NEMOTRON,
    GLM,
    GLM47,
    QWEN3_CODER,
    HERMES,
    FUNCTIONARY,
    LLAMA3,
    SMOLLM,
    JSON,
)
"""In order: the first that a template shows is its format."""

NAMES = tuple(one.name for one in FORMATS)


def format_named(name: str) -> Format:
    """Return the format with one of `NAMES`."""
    return next(one for one in FORMATS if one.name == name)


def format_of(templates: Iterable[str]) -> Format:
    """Return the format that any of a model's chat templates shows."""
    sources = list(templates)
    return next((one for one in FORMATS if any(map(one.matches, sources))), JSON)
