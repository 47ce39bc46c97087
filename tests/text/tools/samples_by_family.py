"""What models of further families write, in the forms that their makers document."""

# ruff: noqa: E501, RUF001 (texts as models write them)

from __future__ import annotations

from tests.text.tools.samples import Sample

PARIS = '{"city": "Paris", "days": 3}'

FAMILIES = [
    # gpt-oss: github.com/openai/harmony, docs/format.md, and what servers of it report
    Sample(
        "harmony",
        "<|channel|>commentary to=functions.get_current_weather <|constrain|>json<|message|>"
        + PARIS
        + "<|call|>",
        (("get_current_weather", PARIS),),
    ),
    Sample(
        "harmony",
        "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>commentary"
        " to=functions.get_time<|constrain|>json<|message|>{}<|call|>",
        (("get_time", "{}"),),
        "I look it up.",
    ),
    Sample(  # the recipient beside the role
        "harmony",
        " to=functions.add<|channel|>commentary json<|message|>"
        '{"a": 1}<|end|><|start|>assistant to=functions.get_time<|channel|>commentary <|constrain|>'
        "json<|message|>{}",
        (("add", '{"a": 1}'), ("get_time", "{}")),
    ),
    Sample(  # another channel, no namespace, another type
        "harmony",
        '<|channel|>analysis to=searchTool code<|message|>\n{"query": "x < y"}<|call|>',
        (("searchTool", '\n{"query": "x < y"}'),),
    ),
    Sample("harmony", "<|channel|>final<|message|>1 < 2 <3\n<|return|>", (), "1 < 2 <3\n"),
    Sample("harmony", "It is cold <|here|>.", (), "It is cold <|here|>."),
    Sample(
        "harmony",
        "<|channel|>commentary to=browser.open json<|message|>{}<|call|>",
        (),
        "<|channel|>commentary to=browser.open json<|message|>{}<|call|>",
    ),
    # GLM 4.5 and 4.6; 4.7
    Sample(
        "glm",
        "I look.\n<tool_call>get_current_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>"
        '\n<arg_key>units</arg_key>\n<arg_value>["C", "F"]</arg_value>\n</tool_call>\n'
        "<tool_call>get_time\n</tool_call>",
        (("get_current_weather", '{"city": "Paris", "units": ["C", "F"]}'), ("get_time", "{}")),
        "I look.",
    ),
    Sample(
        "glm47",
        "<tool_call>searchTool<arg_key>query</arg_key><arg_value>a <b>\n c</arg_value></tool_call>"
        "<tool_call>get_time</tool_call>",
        (("searchTool", '{"query": "a <b>\\n c"}'), ("get_time", "{}")),
    ),
    # MiniMax M2
    Sample(
        "minimax_m2",
        '\n\n<minimax:tool_call>\n<invoke name="get_current_weather">\n'
        '<parameter name="units">["C", "F"]</parameter>\n<parameter name="exact">true</parameter>\n'
        '</invoke>\n<invoke name="searchTool">\n<parameter name="query">"OpenAI" & "news"</parameter>'
        "\n</invoke>\n</minimax:tool_call>",
        (
            ("get_current_weather", '{"units": ["C", "F"], "exact": true}'),
            ("searchTool", '{"query": "\\"OpenAI\\" & \\"news\\""}'),
        ),
    ),
    # Kimi K2
    Sample(
        "kimi_k2",
        "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_current_weather:0"
        f"<|tool_call_argument_begin|>{PARIS}<|tool_call_end|><|tool_call_begin|>functions.get_time"
        ":1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        (("get_current_weather", PARIS), ("get_time", "{}")),
        "I look.",
    ),
    Sample(
        "kimi_k2",
        "<|tool_call_begin|> get_time <|tool_call_argument_begin|> {} <|tool_call_end|>",
        (("get_time", "{}"),),
    ),
    # Kimi K3
    Sample(
        "kimi_k3",
        "<|open|>response<|sep|>So.<|close|>response<|sep|><|open|>tools<|sep|><|open|>call "
        'tool="searchTool" index="1"<|sep|><|open|>argument key="query" type="string"<|sep|>3'
        '<|close|>argument<|sep|><|open|>argument key="limit" type="number"<|sep|>3<|close|>argument'
        "<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        (("searchTool", '{"query": "3", "limit": 3}'),),
        "So.",
    ),
    # Cohere: Command R7B, Command A; Command R
    Sample(
        "cohere",
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_current_weather", '
        f'"parameters": {PARIS}}},\n    {{"tool_call_id": "1", "tool_name": "get_time", "parameters": '
        "{}}\n]<|END_ACTION|>",
        (("get_current_weather", PARIS), ("get_time", "{}")),
    ),
    Sample(
        "command_r",
        'Action: ```json\n[\n    {\n        "tool_name": "add",\n        "parameters": {\n            '
        '"a": 1\n        }\n    }\n]```',
        (("add", '{\n            "a": 1\n        }'),),
    ),
    # LFM2
    Sample(
        "lfm2",
        '<|tool_call_start|>[searchTool(query="12345")]<|tool_call_end|>I look up 12345.',
        (("searchTool", '{"query": "12345"}'),),
        "I look up 12345.",
    ),
    Sample(
        "lfm2",
        "<|tool_call_start|>[get_current_weather(city='L\\'Aquila', days=3, exact=True, "
        "units=['C', (1, None), {'a': \"b\"},], limit=-2.5e3), get_time()]<|tool_call_end|>",
        (
            (
                "get_current_weather",
                '{"city": "L\'Aquila", "days": 3, "exact": true, "units": ["C", [1, null], '
                '{"a": "b"}], "limit": -2.5e3}',
            ),
            ("get_time", "{}"),
        ),
    ),
    Sample(  # without names, with a quote that is none, and a word
        "lfm2",
        "<|tool_call_start|>[get_current_weather('it's', 2, exact=yes)]<|tool_call_end|>",
        (("get_current_weather", '{"city": "it\'s", "days": 2, "exact": "yes"}'),),
    ),
    # Gemma 4
    Sample(
        "gemma4",
        'So.<|tool_call>call:get_current_weather{city:<|"|>"Paris" {1}<|"|>,days:3,units:[<|"|>C<|"|>,'
        "None,{a:true}]}<tool_call|><|tool_call>call:get_time{}<tool_call|>",
        (
            (
                "get_current_weather",
                '{"city": "\\"Paris\\" {1}", "days": 3, "units": ["C", null, {"a": true}]}',
            ),
            ("get_time", "{}"),
        ),
        "So.",
    ),
    # Seed-OSS
    Sample(
        "seed_oss",
        "<seed:tool_call>\n<function=get_current_weather>\n<parameter=city>Paris\nFrance</parameter>\n"
        "<parameter=units>['C', True, None]</parameter>\n</function>\n</seed:tool_call>",
        (("get_current_weather", '{"city": "Paris\\nFrance", "units": ["C", true, null]}'),),
    ),
    # DeepSeek V3.2 and V4
    Sample(
        "deepseek_v32",
        'So.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="searchTool">\n<｜DSML｜parameter name="query" '
        'string="true">10</｜DSML｜parameter>\n<｜DSML｜parameter name="topn" string="false">10'
        '</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        (("searchTool", '{"query": "10", "topn": 10}'), ("get_time", "{}")),
        "So.",
    ),
    Sample(  # without the mark, as it happens
        "deepseek_v32",
        '<function_calls>\n<invoke name="searchTool">\n<parameter name="query" string="true">a</'
        'parameter>\n<parameter name="topn" string="false">10</parameter>\n</invoke>\n</function_calls>',
        (("searchTool", '{"query": "a", "topn": 10}'),),
    ),
    Sample(
        "deepseek_v4",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">1'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        (("add", '{"a": 1}'),),
    ),
]

NO_CALLS_OF_FAMILIES = [
    ("glm", "<tool_call>rm_rf\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
    ("glm", "<tool_call>get_time and so on"),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="rm_rf">\n</invoke>\n</minimax:tool_call>'),
    ("kimi_k2", "<|tool_calls_section_begin|> nothing <|tool_calls_section_end|>"),
    ("kimi_k2", "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>[1]"),
    ("cohere", '<|START_ACTION|>[\n    {"tool_name": "rm_rf", "parameters": {}}\n]<|END_ACTION|>'),
    ("lfm2", "<|tool_call_start|>[rm_rf(a=1)]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[get_time]<|tool_call_end|>"),
    ("seed_oss", "<seed:tool_call>\n<function=get_time> and so on"),
    ("deepseek_v32", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="rm_rf">\n</｜DSML｜invoke>'),
]
