"""Tools of `/v1/chat/completions`."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, TypeVar

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.generation import Token
from tgi_async.grammar.grammar import Choice, Json, Prose, Regex, Repeat, Sequence, Term, decode
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": CITY},
}
TIME = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]
NAMED = {"type": "function", "function": {"name": "get_time"}}

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Seoul"}}\n</tool_call>'
TWO_CALLS = f'{CALL}\n<tool_call>\n{{"name": "get_time", "arguments": {{}}}}\n</tool_call>'
QWEN = (
    '{% if tools %}Call them in <tool_call> with "name":{% for tool in tools %}{{ tool | tojson }}'
    "{% endfor %}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if open %}<think>\n{% endif %}"
    "{% endif %}{# </think> #}"
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.max_total_tokens = 8192
    settings.max_input_tokens = 8000
    return settings


@cache
def template(source: str) -> ChatTemplate:
    """One for all tests, for each has a process."""
    return ChatTemplate(source, {})


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return template(QWEN)


T = TypeVar("T", bound=Term)


def held_to(engine: FakeEngine, kind: type[T], place: int = 0) -> T:
    """What a request was held to: a grammar of this kind."""
    grammar = decode(engine.requests[place].grammar)
    assert isinstance(grammar, kind)
    return grammar


def writes(engine: Any, text: str, size: int = 3) -> None:
    """The model answers with this text, in tokens of `size` characters."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    engine.batches = [words(piece) for piece in pieces] + [[EOS]]


def prompt_of(engine: Any, tokenizer: Tokenizer, place: int = -1) -> str:
    return tokenizer.decode(engine.requests[place].prompt, skip_special_tokens=False)


def gathered(chunks: list[Any], index: int = 0) -> tuple[dict[str, Any], str]:
    """A streamed message put together as clients do it, and why it ended."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reasons = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for piece in delta.get("tool_calls", []):
                if "id" in piece:
                    assert piece["index"] == len(message["tool_calls"])
                    assert piece["type"] == "function"
                    function = {"name": piece["function"]["name"], "arguments": ""}
                    message["tool_calls"].append({"id": piece["id"], "function": function})
                else:
                    assert "name" not in piece["function"]
                called = message["tool_calls"][piece["index"]]
                called["function"]["arguments"] += piece["function"]["arguments"]
            reasons.append(choice["finish_reason"])
    assert all(reason is None for reason in reasons[:-1])
    return message, reasons[-1]


def functions(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]


class TestAuto:
    async def test_a_call(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, CALL)
        [choice] = (await api.chat("Weather?", tools=TOOLS)).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert message["content"] is None
        [call] = message["tool_calls"]
        assert re.fullmatch("call_[0-9A-Za-z]{24}", call.pop("id"))
        assert call == {
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Seoul"}'},
        }

    async def test_one_generation_decides_and_nothing_constrains_it(
        self, api: Api, engine: FakeEngine
    ) -> None:
        writes(engine, CALL)
        await api.chat("Weather?", tools=TOOLS)
        assert [request.grammar for request in engine.requests] == [""]

    async def test_the_same_as_a_stream(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        for size in range(1, len(TWO_CALLS)):
            writes(engine, f"Let me see.\n{TWO_CALLS}", size)
            *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True))
            message, reason = gathered(chunks)
            assert reason == "tool_calls"
            assert message["content"] == "Let me see."
            assert functions(message) == [("get_weather", {"city": "Seoul"}), ("get_time", {})]
            ids = [call["id"] for call in message["tool_calls"]]
            assert len(set(ids)) == 2
            assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == [
                "assistant",
                *[None] * (len(chunks) - 1),
            ]

    async def test_arguments_come_in_pieces(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, CALL)
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True))
        pieces = [
            piece["function"]["arguments"]
            for chunk in chunks
            for piece in chunk["choices"][0]["delta"].get("tool_calls", [])
        ]
        assert len(pieces) > 3
        assert "".join(pieces) == '{"city": "Seoul"}'

    async def test_prose_before_calls_and_several_of_them(
        self, api: Api, engine: FakeEngine
    ) -> None:
        writes(engine, f"Let me see.\n{TWO_CALLS}")
        [choice] = (await api.chat("Weather?", tools=TOOLS)).json()["choices"]
        assert choice["message"]["content"] == "Let me see."
        assert functions(choice["message"]) == [
            ("get_weather", {"city": "Seoul"}),
            ("get_time", {}),
        ]

    async def test_prose_alone(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, "It is < 3 degrees. ")
        [choice] = (await api.chat("Weather?", tools=TOOLS)).json()["choices"]
        assert choice["message"] == {"content": "It is < 3 degrees. ", "role": "assistant"}
        assert choice["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        "text",
        [
            "<tool_call>\n{'name': 'get_time'}\n</tool_call>",
            '<tool_call>\n{"name": "rm_rf", "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": "get_ti',
        ],
    )
    async def test_what_is_no_call_is_content(
        self, api: Api, engine: FakeEngine, events: EventsOf, text: str
    ) -> None:
        writes(engine, text)
        [choice] = (await api.chat("Weather?", tools=TOOLS)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True))
        assert gathered(chunks)[0]["content"] == text

    async def test_a_call_that_is_cut_off_says_length(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, CALL[:60])
        engine.finish_reason = "length"
        [choice] = (await api.chat("Weather?", tools=TOOLS)).json()["choices"]
        assert choice["finish_reason"] == "length"
        [call] = choice["message"]["tool_calls"]
        assert '{"city": "Seoul"}'.startswith(call["function"]["arguments"])
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True))
        assert gathered(chunks)[1] == "length"

    async def test_at_most_one_call_where_only_one_is_wanted(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, TWO_CALLS)
        asked = {"tools": TOOLS, "parallel_tool_calls": False}
        [choice] = (await api.chat("Weather?", **asked)).json()["choices"]
        assert functions(choice["message"]) == [("get_weather", {"city": "Seoul"})]
        *chunks, _ = events(await api.chat("Weather?", stream=True, **asked))
        assert functions(gathered(chunks)[0]) == [("get_weather", {"city": "Seoul"})]

    async def test_several_choices_have_each_their_own(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        engine.batches_by_choice = {
            0: [words(CALL[:50]), words(CALL[50:]), [EOS]],
            1: [words("No "), words("need."), [EOS]],
        }
        one, other = (await api.chat("Weather?", tools=TOOLS, n=2)).json()["choices"]
        assert functions(one["message"]) == [("get_weather", {"city": "Seoul"})]
        assert (one["finish_reason"], other["finish_reason"]) == ("tool_calls", "stop")
        assert other["message"]["content"] == "No need."
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, n=2, stream=True))
        assert functions(gathered(chunks, 0)[0]) == [("get_weather", {"city": "Seoul"})]
        assert gathered(chunks, 1)[0]["content"] == "No need."

    async def test_log_probabilities_are_of_all_tokens(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, CALL)
        n_tokens = len(engine.batches)
        [choice] = (await api.chat("W?", tools=TOOLS, logprobs=True)).json()["choices"]
        assert len(choice["logprobs"]["content"]) == n_tokens
        *chunks, _ = events(await api.chat("W?", tools=TOOLS, logprobs=True, stream=True))
        reported = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks]
        assert sum(map(len, reported)) == n_tokens

    async def test_usage_counts_tokens_that_were_held_back(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, CALL)
        options = {"include_usage": True}
        response = await api.chat("W?", tools=TOOLS, stream=True, stream_options=options)
        *_, usage, _ = events(response)
        assert usage["usage"]["completion_tokens"] == len(engine.batches)

    async def test_nothing_is_sent_while_all_is_held_back(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, CALL)
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert all("tool_calls" in delta for delta in deltas[:-1])
        assert len(chunks) < len(engine.batches)


class TestForced:
    async def test_required(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, TWO_CALLS)
        response = await api.chat("Weather?", tools=TOOLS, tool_choice="required")
        [choice] = response.json()["choices"]
        assert len(choice["message"]["tool_calls"]) == 2
        [repeat] = held_to(engine, Sequence).parts
        assert isinstance(repeat, Repeat)
        assert (repeat.least, repeat.most) == (1, None)
        assert isinstance(repeat.part, Choice)
        assert len(repeat.part.options) == 2

    async def test_required_but_one_only(self, api: Api, engine: FakeEngine) -> None:
        asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        await api.chat("Weather?", **asked)
        [choice] = held_to(engine, Sequence).parts
        assert isinstance(choice, Choice)

    @pytest.mark.parametrize("choice", [NAMED, "get_time"])
    async def test_a_named_one(
        self, api: Api, engine: FakeEngine, choice: dict[str, Any] | str
    ) -> None:
        await api.chat("Weather?", tools=TOOLS, tool_choice=choice)
        [call] = held_to(engine, Sequence).parts
        assert isinstance(call, Sequence)
        [schema] = [part.schema for part in call.parts if isinstance(part, Json)]
        assert (schema["type"], schema["additionalProperties"]) == ("object", False)

    async def test_the_schema_is_that_of_the_function(self, api: Api, engine: FakeEngine) -> None:
        await api.chat("Weather?", tools=TOOLS, tool_choice="get_weather")
        [call] = held_to(engine, Sequence).parts
        assert isinstance(call, Sequence)
        [schema] = [part.schema for part in call.parts if isinstance(part, Json)]
        assert schema == {**CITY, "additionalProperties": False}

    async def test_all_tools_are_shown_all_the_same(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await api.chat("Weather?", tools=TOOLS, tool_choice=NAMED)
        assert "get_weather" in prompt_of(engine, tokenizer)


@pytest.fixture(params=[False, True])
def strict(settings: Settings, request: pytest.FixtureRequest) -> bool:
    settings.strict_tgi = request.param
    return settings.strict_tgi


class TestChoice:
    async def test_an_unknown_name_is_refused(
        self, strict: bool, api: Api, engine: FakeEngine
    ) -> None:
        for choice in ("nothing", {"type": "function", "function": {"name": "nothing"}}):
            response = await api.chat("Hi", tools=TOOLS, tool_choice=choice, stream=True)
            reported = "Tool error: Tool with name nothing not found"
            if strict:
                assert response.status_code == 422
                assert response.json() == {"error": reported, "error_type": "tool_error"}
            else:
                assert refusal(response) == reported
        assert engine.requests == []

    async def test_none_is_plain_chat_without_tools(
        self, strict: bool, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        writes(engine, CALL)
        response = await api.chat("Hi", tools=TOOLS, tool_choice="none")
        assert response.json()["choices"][0]["message"] == {"content": CALL, "role": "assistant"}
        assert "get_weather" not in prompt_of(engine, tokenizer)

    @pytest.mark.parametrize("choice", ["required", "get_time"])
    async def test_a_call_of_no_tool_is_refused(self, api: Api, choice: str) -> None:
        response = await api.chat("Hi", tools=[], tool_choice=choice)
        assert "no `tools` to call" in refusal(response)

    @pytest.mark.parametrize(
        ("choice", "as_if"),
        [
            ("any", "required"),
            ({"type": "any"}, "required"),
            ({"type": "function", "name": "get_time"}, NAMED),
        ],
    )
    async def test_other_words_for_the_same(
        self,
        api: Api,
        engine: FakeEngine,
        choice: dict[str, Any] | str,
        as_if: dict[str, Any] | str,
    ) -> None:
        for tool_choice in (choice, as_if):
            response = await api.chat("Hi", tools=TOOLS, tool_choice=tool_choice)
            assert response.status_code == 200
        first, second = engine.requests
        assert first.grammar == second.grammar != ""

    async def test_a_function_may_be_called_any(self, api: Api, engine: FakeEngine) -> None:
        tools = [WEATHER, {"type": "function", "function": {"name": "any"}}]
        for choice in ("any", {"type": "function", "function": {"name": "any"}}):
            await api.chat("Hi", tools=tools, tool_choice=choice)
        first, second = engine.requests
        assert first.grammar == second.grammar

    @pytest.mark.parametrize("flat", [False, True])
    async def test_allowed_tools_are_the_only_ones(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer, flat: bool
    ) -> None:
        def allowed(mode: str, *tools: Any) -> dict[str, Any]:
            config = {"mode": mode, "tools": list(tools)}
            return {"type": "allowed_tools", **(config if flat else {"allowed_tools": config})}

        named = {"type": "function", "name": "get_time"} if flat else NAMED
        writes(engine, TWO_CALLS)
        response = await api.chat("Hi", tools=TOOLS, tool_choice=allowed("auto", named))
        assert functions(response.json()["choices"][0]["message"]) == [("get_time", {})]
        assert "get_weather" not in prompt_of(engine, tokenizer)
        assert engine.requests[-1].grammar == ""
        for tools, choice in ((TOOLS, allowed("required", named)), ([TIME], "required")):
            await api.chat("Hi", tools=tools, tool_choice=choice)
        assert engine.requests[-1].grammar == engine.requests[-2].grammar != ""
        response = await api.chat("Hi", tools=TOOLS, tool_choice=allowed("auto"))
        assert "tool_calls" not in response.json()["choices"][0]["message"]
        assert engine.requests[-1].grammar == ""
        assert "allows no tool" in refusal(
            await api.chat("Hi", tools=TOOLS, tool_choice=allowed("required"))
        )
        unknown = {"type": "function", "function": {"name": "f"}}
        response = await api.chat("Hi", tools=TOOLS, tool_choice=allowed("auto", named, unknown))
        assert refusal(response) == "Tool error: Tool with name f not found"

    async def test_too_many_tools_are_refused(self, api: Api) -> None:
        many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
        response = await api.chat("Hi", tools=many)
        assert "at most 128 tools" in refusal(response)


NATION = {
    "type": "object",
    "properties": {"nation": {"type": "string"}},
    "required": ["nation"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": NATION}}


class TestWithAForm:
    """`tools` and `response_format` in one request: the form binds a text that is no call."""

    async def test_a_grammar_holds_the_answer_to_calls_or_to_the_form(
        self, api: Api, engine: FakeEngine
    ) -> None:
        strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
        await api.chat("Hi", tools=[strict, TIME], response_format=FORM)
        calls, form = held_to(engine, Choice).options
        assert form == Json(NATION)
        assert isinstance(calls, Sequence)
        [repeat] = calls.parts
        assert isinstance(repeat, Repeat)
        assert (repeat.least, repeat.most) == (1, None)
        assert isinstance(repeat.part, Choice)
        held, free = (
            part.schema
            for option in repeat.part.options
            if isinstance(option, Sequence)
            for part in option.parts
            if isinstance(part, Json)
        )
        assert (held["required"], free) == (["city"], {"type": "object"})

    async def test_at_most_one_call_where_only_one_is_wanted(
        self, api: Api, engine: FakeEngine
    ) -> None:
        asked = {"tools": [TIME], "response_format": FORM, "parallel_tool_calls": False}
        await api.chat("Hi", **asked)
        calls, _ = held_to(engine, Choice).options
        assert isinstance(calls, Sequence)
        assert isinstance(calls.parts[0], Sequence)

    async def test_a_call(self, api: Api, engine: FakeEngine, events: EventsOf) -> None:
        writes(engine, TWO_CALLS)
        asked = {"tools": TOOLS, "response_format": FORM}
        [choice] = (await api.chat("Hi", **asked)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
        reported = [("get_weather", {"city": "Seoul"}), ("get_time", {})]
        assert functions(choice["message"]) == reported
        *chunks, _ = events(await api.chat("Hi", stream=True, **asked))
        assert functions(gathered(chunks)[0]) == reported

    async def test_a_text_of_the_form_is_content_whatever_is_in_it(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        text = json.dumps({"nation": CALL})
        writes(engine, text)
        asked = {"tools": TOOLS, "response_format": FORM}
        [choice] = (await api.chat("Hi", **asked)).json()["choices"]
        assert choice["message"] == {"role": "assistant", "content": text}
        *chunks, _ = events(await api.chat("Hi", stream=True, **asked))
        assert gathered(chunks) == (
            {"content": text, "reasoning_content": "", "tool_calls": []},
            "stop",
        )

    async def test_thoughts_come_before_either(self, api: Api, engine: FakeEngine) -> None:
        opened = {"chat_template_kwargs": {"open": True}}
        for text, content in ((f"Well.</think>\n\n{CALL}", None), ('Well.</think>{"a"', '{"a"')):
            writes(engine, text)
            asked = {"tools": TOOLS, "response_format": FORM, **opened}
            message = (await api.chat("Hi", **asked)).json()["choices"][0]["message"]
            assert (message["reasoning_content"], message["content"]) == ("Well.", content)
            assert bool(message.get("tool_calls")) == (content is None)
        *thoughts, either = held_to(engine, Sequence).parts
        assert thoughts[0] == Prose("</think>")
        assert isinstance(either, Choice)

    @pytest.mark.parametrize("choice", ["required", "get_time"])
    async def test_a_forced_call_has_no_form(
        self, api: Api, engine: FakeEngine, choice: str
    ) -> None:
        await api.chat("Hi", tools=TOOLS, tool_choice=choice)
        await api.chat("Hi", tools=TOOLS, tool_choice=choice, response_format=FORM)
        alone, beside = (request.grammar for request in engine.requests)
        assert alone == beside

    async def test_the_form_alone_where_no_call_is_wanted(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.chat("Hi", tools=TOOLS, tool_choice="none", response_format=FORM)
        assert held_to(engine, Json).schema == NATION

    async def test_a_form_of_any_text_leaves_calls_free(self, api: Api, engine: FakeEngine) -> None:
        await api.chat("Hi", tools=TOOLS, response_format={"type": "text"})
        assert engine.requests[0].grammar == ""

    async def test_a_refusal_names_what_cannot_be_followed(
        self, api: Api, settings: Settings
    ) -> None:
        broken = {"type": "object", "properties": {"a": {"type": "wrong"}}}
        function = {"name": "f", "parameters": broken, "strict": True}
        tools = [{"type": "function", "function": function}]
        response = await api.chat("Hi", tools=tools, response_format=FORM)
        assert "`tools`: " in refusal(response)
        wrong = {"type": "json_schema", "json_schema": {"name": "a", "schema": broken}}
        response = await api.chat("Hi", tools=TOOLS, response_format=wrong)
        assert "`response_format`: " in refusal(response)
        # What no call is held to is not looked at.
        function["strict"] = False
        assert (await api.chat("Hi", tools=tools, response_format=FORM)).status_code == 200
        settings.tool_call_parser = "qwen3_coder"
        function["strict"] = True
        broken["properties"] = {"a": {"type": "string", "pattern": "^a"}}
        response = await api.chat("Hi", tools=tools, response_format=FORM)
        assert "Leave `strict` out" in refusal(response)

    @pytest.mark.usefixtures("as_tgi")
    async def test_as_tgi_they_exclude_each_other(self, api: Api) -> None:
        form = {"type": "json_object", "value": NATION}
        response = await api.chat("Hi", tools=TOOLS, response_format=form)
        assert response.status_code == 422
        assert "mutually exclusive" in response.json()["error"]


class TestCutOff:
    """An answer that ran out of tokens inside of a call."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"tool_choice": "required"},
            {"tool_choice": "get_weather"},
            {"response_format": FORM},
            {},
        ],
    )
    @pytest.mark.parametrize(
        ("text", "reported"),
        [
            ("<tool_call>", []),
            ('<tool_call>\n{"name": "get_wea', []),
            ('<tool_call>\n{"name": "get_weather"', [""]),
            ('<tool_call>\n{"name": "get_weather", "argum', [""]),
            ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Se', ['{"city": "Se']),
            (f"{CALL}\n<tool_call>", ['{"city": "Seoul"}']),
            (f"{CALL[:-3]}", ['{"city": "Seoul"}']),
        ],
    )
    async def test_no_marks_are_shown(
        self,
        api: Api,
        engine: FakeEngine,
        events: EventsOf,
        fields: dict[str, Any],
        text: str,
        reported: list[Any],
    ) -> None:
        writes(engine, text)
        engine.finish_reason = "length"
        [choice] = (await api.chat("Weather?", tools=TOOLS, **fields)).json()["choices"]
        *chunks, _ = events(await api.chat("Weather?", tools=TOOLS, stream=True, **fields))
        streamed, reason = gathered(chunks)
        assert (choice["finish_reason"], reason) == ("length", "length")
        assert choice["message"]["content"] is None
        assert streamed["content"] == ""
        for message in (choice["message"], streamed):
            calls = message.get("tool_calls", [])
            assert [call["function"]["arguments"] for call in calls] == reported
            assert all(call["function"]["name"] == "get_weather" for call in calls)

    async def test_a_stop_sequence_cuts_too(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, "<tool_call>")
        engine.finish_reason = "stop_sequence"
        [choice] = (await api.chat("Hi", tools=TOOLS, tool_choice="required")).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "stop")


class TestPrompt:
    async def test_the_template_shows_the_tools(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await api.chat("Hi", tools=TOOLS)
        prompt = prompt_of(engine, tokenizer)
        assert json.dumps(WEATHER) in prompt
        assert "---" not in prompt

    async def test_a_tool_prompt_is_said_behind_the_last_message(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await api.chat("Hi", tools=TOOLS, tool_prompt="Choose well.")
        assert "user\nHi\n---\nChoose well.<|im_end|>" in prompt_of(engine, tokenizer)

    async def test_calls_and_results_are_given_to_the_template(
        self, client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
        messages = [
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        ]
        body = {"messages": messages, "tools": TOOLS}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        prompt = prompt_of(engine, tokenizer)
        assert '"name": "get_time"' in prompt
        assert "<|im_start|>tool\n12:00" in prompt

    async def test_an_id_that_is_null_is_one_that_is_left_out(
        self, client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        """aichat sends it so."""
        function = {"name": "get_time", "arguments": "{}"}
        prompts = []
        for left_out in ({}, {"id": None, "type": None}):
            messages = [
                {"role": "user", "content": "Time?"},
                {"role": "assistant", "tool_calls": [{**left_out, "function": function}]},
                {
                    "role": "tool",
                    "content": "12:00",
                    **({"tool_call_id": None} if left_out else {}),
                },
            ]
            body = {"messages": messages, "tools": TOOLS}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            prompts.append(prompt_of(engine, tokenizer))
            engine.requests.clear()
        assert prompts[0] == prompts[1]


class TestOfATemplateWithoutTools:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return template(
            "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n"
            "{% endfor %}<|im_start|>assistant\n",
        )

    async def test_the_model_is_shown_them_before_the_first_question(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        writes(engine, '{"name": "get_time", "arguments": {}}')
        response = await api.chat("Time?", tools=TOOLS)
        assert functions(response.json()["choices"][0]["message"]) == [("get_time", {})]
        prompt = prompt_of(engine, tokenizer)
        assert prompt.startswith("<|im_start|>user\nYou may call functions")
        assert json.dumps(WEATHER) in prompt
        assert prompt.endswith("\n\nTime?<|im_end|>\n<|im_start|>assistant")

    async def test_or_in_the_system_message(
        self, client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        body = {"messages": messages, "tools": TOOLS}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        prompt = prompt_of(engine, tokenizer)
        assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou may call functions")
        assert "user\nHi<|im_end|>" in prompt

    async def test_a_tool_prompt_comes_with_the_tools(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await api.chat("Hi", tools=[TIME], tool_prompt="Choose well.")
        said = f"user\nHi\n---\n{json.dumps([TIME])}\nChoose well.<|im_end|>"
        assert said in prompt_of(engine, tokenizer)

    async def test_calls_and_results_of_the_conversation_are_shown_as_text(
        self, client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        function = {"name": "get_weather", "arguments": '{"city": "Säo"}'}
        calls = [
            {"id": "1", "type": "function", "function": function},
            {"id": "2", "type": "function", "function": {"name": "get_time"}},
        ]
        messages = [
            {"role": "user", "content": "Weather and time?"},
            {"role": "assistant", "content": "See:", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "cold"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "12:00"}]},
            {"role": "assistant", "content": "Cold."},
        ]
        body = {"messages": messages, "add_generation_prompt": True}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert (
            '<|im_start|>assistant\nSee:\n{"name": "get_weather", "arguments": {"city": "Säo"}}\n'
            '{"name": "get_time", "arguments": {}}<|im_end|>\n'
            "<|im_start|>user\n<tool_response>\ncold\n</tool_response>\n<tool_response>\n12:00\n"
            "</tool_response><|im_end|>\n<|im_start|>assistant\nCold.<|im_end|>"
        ) in prompt_of(engine, tokenizer)


class TestOfATemplateWithAVariableOfItsOwn:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return template(
            "{% if xml_tools %}{{ xml_tools[0] }}{% endif %}{{ messages[0].content }}{{ spoken }}",
        )

    async def test_the_functions_are_given_under_its_name(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        extra = {"chat_template_kwargs": {"spoken": "now"}}
        assert (await api.chat("Hi", tools=[TIME], **extra)).status_code == 200
        assert prompt_of(engine, tokenizer) == "{'name': 'get_time'}Hinow"


class TestMarksThatAreSpecialTokens:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return template("{% if tools %}{% endif %}[TOOL_CALLS][ARGS]{{ messages }}")

    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        inner = tiny_inner()
        inner.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "[OTHER]"])
        return Tokenizer(inner)

    async def test_they_are_part_of_the_text_that_is_read(
        self, api: Api, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        begin = tokenizer.special_id("[TOOL_CALLS]")
        args = tokenizer.special_id("[ARGS]")
        assert begin is not None
        assert args is not None
        # As the stream of a generation has them that was asked to show them.
        engine.batches = [
            [Token(begin, "[TOOL_CALLS]", -0.5, True)],
            words("get_time"),
            [Token(args, "[ARGS]", -0.5, True), *words("{}")],
            [EOS],
        ]
        [choice] = (await api.chat("Time?", tools=TOOLS)).json()["choices"]
        assert functions(choice["message"]) == [("get_time", {})]
        assert engine.requests[0].shown == {begin: "[TOOL_CALLS]", args: "[ARGS]"}

    async def test_ids_are_such_as_the_template_takes(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, "[TOOL_CALLS]get_time[ARGS]{}")
        [choice] = (await api.chat("Time?", tools=TOOLS)).json()["choices"]
        assert re.fullmatch("[0-9A-Za-z]{9}", choice["message"]["tool_calls"][0]["id"])

    async def test_without_tools_none_is_shown(self, api: Api, engine: FakeEngine) -> None:
        await api.chat("Time?")
        assert engine.requests[0].shown == {}


class TestThoughts:
    async def test_they_are_distinguished(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        writes(engine, f"<think>\nWell.\n</think>\n\nSo:\n{CALL}")
        [choice] = (await api.chat("Hi", tools=TOOLS)).json()["choices"]
        message = choice["message"]
        assert (message["reasoning_content"], message["content"]) == ("Well.", "So:")
        *chunks, _ = events(await api.chat("Hi", tools=TOOLS, stream=True))
        streamed, reason = gathered(chunks)
        assert (streamed["reasoning_content"], streamed["content"]) == ("Well.", "So:")
        assert reason == choice["finish_reason"] == "tool_calls"

    async def test_also_without_tools(self, api: Api, engine: FakeEngine, events: EventsOf) -> None:
        writes(engine, "<think>Well.</think>Yes.")
        [choice] = (await api.chat("Hi")).json()["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": "Yes.",
            "reasoning_content": "Well.",
        }
        *chunks, _ = events(await api.chat("Hi", stream=True))
        assert gathered(chunks)[0]["reasoning_content"] == "Well."

    @pytest.mark.parametrize(
        ("pieces", "fields", "n_thought"),
        [
            (["<think>", "We", "ll", ".", "</think>", "Yes", "."], {}, 5),
            (["Well", ".", "</think>", "Yes"], {"chat_template_kwargs": {"open": True}}, 3),
            (["<think>", "cut", " off"], {}, 3),
            (["Yes", "."], {}, 0),
        ],
    )
    async def test_their_tokens_are_counted(
        self,
        api: Api,
        engine: FakeEngine,
        events: EventsOf,
        pieces: list[str],
        fields: dict[str, Any],
        n_thought: int,
    ) -> None:
        engine.batches = [words(*pieces)]
        usage = (await api.chat("Hi", **fields)).json()["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": n_thought}
        engine.batches = [words(piece) for piece in pieces]
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *_, last, _ = events(await api.chat("Hi", n=2, **fields, **options))
        assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2 * n_thought}

    async def test_they_may_begin_in_the_prompt(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, "Well.</think>Yes.")
        opened = {"chat_template_kwargs": {"open": True}}
        message = (await api.chat("Hi", **opened)).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Well.", "Yes.")

    async def test_what_is_forced_comes_after_them(self, api: Api, engine: FakeEngine) -> None:
        opened = {"chat_template_kwargs": {"open": True}}
        await api.chat("Hi", tools=TOOLS, tool_choice="required", **opened)
        await api.chat("Hi", tools=TOOLS, tool_choice="required")
        with_thoughts, without = (held_to(engine, Sequence, place).parts for place in (0, 1))
        assert with_thoughts[0] == Prose("</think>")
        assert with_thoughts[-1] == Sequence(without)

    async def test_a_form_comes_after_them_too(self, api: Api, engine: FakeEngine) -> None:
        form = {"response_format": {"type": "regex", "value": "[a-c]+"}}
        opened = {"chat_template_kwargs": {"open": True}}
        writes(engine, "Well.</think>abc")
        message = (await api.chat("Hi", **form, **opened)).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Well.", "abc")
        assert held_to(engine, Sequence).parts[0] == Prose("</think>")
        # Where the prompt does not begin them, the answer begins at once.
        writes(engine, "<think>abc")
        message = (await api.chat("Hi", **form)).json()["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "<think>abc"}
        assert decode(engine.requests[1].grammar) == Regex("[a-c]+")

    @pytest.mark.usefixtures("as_tgi")
    async def test_as_tgi_they_are_text(self, api: Api, engine: FakeEngine) -> None:
        writes(engine, "<think>Well.</think>Yes.")
        message = (await api.chat("Hi")).json()["choices"][0]["message"]
        assert message["content"] == "<think>Well.</think>Yes."


async def test_what_the_format_cannot_force_is_refused(
    api: Api, engine: FakeEngine, settings: Settings
) -> None:
    settings.tool_call_parser = "qwen3_coder"
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": pattern}}]
    response = await api.chat("Hi", tools=tools, tool_choice="required")
    assert refusal(response).startswith("Tool error: `a`, a string with `pattern` cannot")
    assert (await api.chat("Hi", tools=tools)).status_code == 200


async def test_the_format_can_be_set(api: Api, engine: FakeEngine, settings: Settings) -> None:
    settings.tool_call_parser = "mistral"
    writes(engine, '[TOOL_CALLS] [{"name": "get_time", "arguments": {}}]')
    [choice] = (await api.chat("Time?", tools=TOOLS)).json()["choices"]
    assert functions(choice["message"]) == [("get_time", {})]


async def test_chat_tokenize_shows_the_same_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
    reported = (await client.post("/chat_tokenize", json=body)).json()["templated_text"]
    await client.post("/v1/chat/completions", json=body)
    assert reported == prompt_of(engine, tokenizer)


def nested(depth: int) -> Any:
    found: Any = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found}}
    return found


LOOP = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/b"}},
    "$defs": {"b": {"anyOf": [{"$ref": "#/$defs/b"}]}},
}


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
@pytest.mark.parametrize(
    "parameters",
    [
        5,
        [],
        False,
        {"properties": 5},
        {"properties": [], "required": 3},
        {"type": 3, "properties": {"a": {"type": 3}, "b": 4, "c": {"enum": 1}}},
        {"properties": {"a": {"type": "string", "enum": [1, {}]}}},
        {"properties": {"a": {"type": "string", "minLength": "x", "maxLength": -1}}},
        LOOP,
        nested(150),
        nested(450),
    ],
)
async def test_strange_schemas_are_answered_or_refused(
    strict: bool, api: Api, engine: FakeEngine, settings: Settings, name: str, parameters: Any
) -> None:
    settings.payload_limit = 1_000_000
    settings.tool_call_parser = name
    function = {"name": "f", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    for text in (
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        '{"function": {"_name": "f", "a": "1"}}',
    ):
        writes(engine, text)
        for choice in ("auto", "required"):
            response = await api.chat("Hi", tools=tools, tool_choice=choice)
            assert response.status_code in (200, 422 if strict else 400), response.text


async def test_deep_arguments_of_earlier_calls_are_answered_or_refused(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    settings.payload_limit = 1_000_000
    for depth in (100, 700, 5000):
        arguments = '{"a":' * depth + "1" + "}" * depth
        for given in (arguments, json.loads(arguments) if depth < 900 else "{}"):
            call = {"function": {"name": "f", "arguments": given}}
            messages = [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [call]},
            ]
            response = await client.post("/v1/chat/completions", json={"messages": messages})
            assert response.status_code in (200, 400), response.text
