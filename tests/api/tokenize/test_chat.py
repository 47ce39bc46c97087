"""`/chat_tokenize`, and with it the prompt of a chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

HI = {"role": "user", "content": "Hi"}
SHOW = (
    '{{ {"messages": messages, "tools": tools, "documents": documents, '
    '"prompt": add_generation_prompt, "tone": tone or none} | tojson }}'
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def post(client: Any, *messages: dict[str, Any], **fields: Any) -> Any:
    body = {"messages": list(messages) or [HI], **fields}
    return await client.post("/chat_tokenize", json=body)


async def test_the_prompt_and_its_tokens_and_nothing_added(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = (await post(client)).json()
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert body["templated_text"] == text
    tokens = body["tokenize_response"]
    assert [token["id"] for token in tokens] == tokenizer.encode(text, add_special_tokens=False)
    assert "".join(text[token["start"] : token["stop"]] for token in tokens) == text
    assert tokens[0] == {"id": 256, "text": "<|im_start|>", "start": 0, "stop": 12}


async def test_it_is_what_chat_would_make(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post("/v1/chat/completions", json={"messages": [HI]})
    tokens = (await post(client)).json()["tokenize_response"]
    assert [token["id"] for token in tokens] == list(engine.requests[0].prompt)


async def test_it_is_not_counted_as_a_generation(client: httpx.AsyncClient, api: Api) -> None:
    await post(client)
    assert await api.metric("tgi_request_count") == 0


async def test_an_assistant_message_at_the_end_is_continued(client: httpx.AsyncClient) -> None:
    said = {"role": "assistant", "content": "Well, "}
    text = (await post(client, HI, said)).json()["templated_text"]
    assert text.endswith("<|im_start|>assistant\nWell,")
    text = (await post(client, HI, said, continue_final_message=True)).json()["templated_text"]
    assert text.endswith("<|im_start|>assistant\nWell, ")


@pytest.mark.parametrize("field", ["continue_final_message", "add_generation_prompt"])
async def test_flags_of_the_template_are_fields(client: httpx.AsyncClient, field: str) -> None:
    text = (await post(client, **{field: False})).json()["templated_text"]
    assert text.endswith("assistant\n") == (field == "continue_final_message")


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"messages": []}, "`messages` cannot be empty"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "`continue_final_message` and `add_generation_prompt` exclude each other",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "`chat_template_kwargs.messages` is made by"),
        ({"chat_template_kwargs": {"tone": 1}}, "Allowed: enable_thinking"),
        ({"chat_template_kwargs": {"documents": [1]}}, "must be a list of objects"),
        ({"messages": [{"role": "user"}]}, "`messages[0].content` must be a text or a list"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "`messages[0].content[0]` is an image, and this model takes none",
        ),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], reported: str
) -> None:
    response = await client.post("/chat_tokenize", json={"messages": [HI], **fields})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert reported in response.json()["error"]


class TestWithTemplate:
    """With a template that shows what it gets."""

    @pytest.fixture
    def chat_template(self) -> Iterator[ChatTemplate]:
        template = ChatTemplate(SHOW, {})
        yield template
        template.close()

    @staticmethod
    async def shown(client: Any, *messages: dict[str, Any], **fields: Any) -> Any:
        response = await post(client, *messages, **fields)
        assert response.status_code == 200, response.text
        return json.loads(response.json()["templated_text"])

    async def test_messages_have_what_they_were_given(self, client: httpx.AsyncClient) -> None:
        function = {"name": "f", "arguments": '{"a": 1}'}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "Hi", "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": function}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ]
        shown = (await self.shown(client, *messages))["messages"]
        assert [shown[0], shown[2]] == [messages[0], messages[2]]
        [call] = shown[1].pop("tool_calls")
        assert shown[1] == {"role": "assistant"}
        assert call["function"]["arguments"] == {"a": 1}

    async def test_thoughts_arrive(self, client: httpx.AsyncClient) -> None:
        message = {"role": "user", "content": "Hi", "reasoning_content": "hm"}
        assert (await self.shown(client, message))["messages"][0]["reasoning_content"] == "hm"

    async def test_text_parts_arrive_as_one_text(self, client: httpx.AsyncClient) -> None:
        parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
        shown = await self.shown(client, {"role": "user", "content": parts})
        assert shown["messages"] == [{"role": "user", "content": "Hello"}]

    @pytest.mark.parametrize(
        ("fields", "tools"),
        [
            ({}, None),
            ({"tools": []}, None),
            ({"tools": [TOOL]}, [TOOL]),
            ({"tools": [TOOL], "tool_choice": "none"}, None),
            ({"tools": [TOOL], "tool_choice": "f", "tool_prompt": "Call."}, [TOOL]),
        ],
    )
    async def test_tools_arrive(
        self, client: httpx.AsyncClient, fields: dict[str, Any], tools: list[dict[str, Any]] | None
    ) -> None:
        assert (await self.shown(client, **fields))["tools"] == tools

    async def test_a_tool_keeps_the_order_of_its_fields(self, client: httpx.AsyncClient) -> None:
        function = {"return": {}, "strict": True, "parameters": {"b": 1, "a": 2}, "name": "f"}
        tool = {"function": {**function, "description": None}, "type": "function"}
        [shown] = (await self.shown(client, tools=[tool]))["tools"]
        assert json.dumps(shown) == json.dumps(tool)

    async def test_arguments_is_tgis_name_for_parameters(self, client: httpx.AsyncClient) -> None:
        function = {"name": "f", "arguments": {"type": "object"}}
        tool = {"type": "function", "function": function}
        assert (await self.shown(client, tools=[tool]))["tools"] == [TOOL]

    @pytest.mark.parametrize("within", [True, False])
    async def test_documents_arrive(self, client: httpx.AsyncClient, within: bool) -> None:
        documents = {"documents": [{"title": "A"}]}
        fields = {"chat_template_kwargs": documents} if within else documents
        assert (await self.shown(client, **fields))["documents"] == [{"title": "A"}]

    async def test_variables_of_the_template_arrive(self, client: httpx.AsyncClient) -> None:
        shown = await self.shown(client, chat_template_kwargs={"tone": "kind"})
        assert shown["tone"] == "kind"

    class TestStrict:
        @pytest.fixture
        def settings(self, settings: Settings) -> Settings:
            settings.strict_tgi = True
            return settings

        async def test_what_tgi_does_not_know_is_ignored(self, client: httpx.AsyncClient) -> None:
            shown = await TestWithTemplate.shown(
                client,
                documents=[{}],
                chat_template_kwargs={"messages": 1},
                add_generation_prompt=False,
                continue_final_message=True,
            )
            assert (shown["documents"], shown["tone"]) == (None, None)
            assert (shown["messages"], shown["prompt"]) == ([HI], True)

        async def test_no_message_is_the_templates_business(
            self, client: httpx.AsyncClient
        ) -> None:
            response = await client.post("/chat_tokenize", json={"messages": []})
            assert json.loads(response.json()["templated_text"])["messages"] == []


class TestEndlessTemplate:
    @pytest.fixture
    def chat_template(self) -> Iterator[ChatTemplate]:
        endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        template = ChatTemplate(
            "{% if messages[0].content == 'for ever' %}" + endless + "{% endif %}ok",
            {},
            n_processes=1,
            seconds=0.3,
        )
        yield template
        template.close()

    async def test_fails_its_own_request_only(self, client: httpx.AsyncClient) -> None:
        endless = asyncio.create_task(post(client, {"role": "user", "content": "for ever"}))
        tokenized = await client.post("/tokenize", json={"inputs": "a"})
        assert tokenized.status_code == 200
        response = await endless
        assert response.status_code == 422
        assert response.json()["error_type"] == "template_error"
        assert "more than 0.3 seconds of processor time" in response.json()["error"]
        assert (await post(client)).json()["templated_text"] == "ok"


class TestRefusingTemplate:
    @pytest.fixture
    def chat_template(self) -> Iterator[ChatTemplate]:
        template = ChatTemplate("{{ raise_exception('no ' + messages[0].role) }}", {})
        yield template
        template.close()

    async def test_the_error_is_tgis(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        reported = "Template error: syntax error: no user (in <string>:1)"
        response = await client.post("/chat_tokenize", json={"messages": [HI]})
        assert response.status_code == 422
        assert response.json() == {"error": reported, "error_type": "template_error"}
        response = await client.post("/v1/chat/completions", json={"messages": [HI]})
        assert refusal(response) == reported
        assert engine.requests == []


class TestEmptyPrompt:
    @pytest.fixture
    def chat_template(self) -> Iterator[ChatTemplate]:
        template = ChatTemplate("", {})
        yield template
        template.close()

    async def test_is_refused(self, client: httpx.AsyncClient) -> None:
        response = await post(client)
        assert response.status_code == 422
        assert response.json()["error"] == "Input validation error: `inputs` cannot be empty"


class TestWithoutTemplate:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return None

    async def test_is_refused(self, client: httpx.AsyncClient) -> None:
        response = await post(client)
        assert response.status_code == 422
        assert response.json() == {
            "error": "Template error: template not found",
            "error_type": "template_error",
        }
