"""The fields of several servers that say whether and how much a model is to think."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

TEMPLATE = (
    "{{ messages[0].content }}|{{ reasoning_effort | default('-') }}|"
    "{{ enable_thinking | default('-') }}|{{ thinking | default('-') }}"
)


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return ChatTemplate(TEMPLATE, {})


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "Hi|-|-|-"),
        ({"reasoning_effort": "high"}, "Hi|high|True|True"),
        ({"reasoning_effort": "none"}, "Hi|none|False|False"),
        ({"reasoning_effort": 0.5}, "Hi|0.5|True|True"),
        ({"reasoning": {"effort": "low"}}, "Hi|low|True|True"),
        ({"reasoning": {"enabled": False}}, "Hi|-|False|False"),
        ({"enable_thinking": False}, "Hi|-|False|False"),
        ({"thinking": {"type": "disabled"}}, "Hi|-|False|False"),
        ({"thinking": True, "reasoning_effort": "low"}, "Hi|low|True|True"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "Hi|low|False|True",
        ),
    ],
)
async def test_the_template_is_given_them(
    api: Api, engine: FakeEngine, tokenizer: Tokenizer, fields: dict[str, Any], prompt: str
) -> None:
    response = await api.chat("Hi", **fields)
    assert tokenizer.decode(engine.requests[0].prompt) == prompt
    assert "x-tgi-ignored" not in response.headers


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"reasoning_effort": "none", "enable_thinking": True}, "`reasoning_effort` and `enable_"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "`reasoning.effort`"),
        ({"enable_thinking": True, "thinking": {"type": "disabled"}}, "`thinking`"),
    ],
)
async def test_two_that_contradict_each_other_are_refused(
    api: Api, fields: dict[str, Any], named: str
) -> None:
    response = await api.chat("Hi", **fields)
    assert named in refusal(response)
    assert "contradict each other" in refusal(response)


ALL = ["reasoning_effort", "enable_thinking", "chat_template_kwargs.thinking"]


@pytest.mark.parametrize(
    ("chat_template", "named"),
    [
        (ChatTemplate("{{ messages }}", {}), ALL),
        (ChatTemplate("{{ 'thinking' }}{{ messages.thinking }}", {}), ALL),
        (ChatTemplate("{{ enable_thinking }}{{ messages }}", {}), ALL[2:]),
        (ChatTemplate("{{ reasoning_effort }}{{ messages }}", {}), ALL[1:]),
    ],
)
async def test_what_the_template_does_not_read_is_named(api: Api, named: list[str]) -> None:
    response = await api.chat(
        "Hi",
        reasoning_effort="low",
        enable_thinking=True,
        chat_template_kwargs={"thinking": True},
    )
    assert sorted(response.headers["x-tgi-ignored"].split(", ")) == sorted(named)


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
@pytest.mark.parametrize("chat_template", [ChatTemplate("<think></think>{{ messages }}", {})])
@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_are_left_out_where_they_are_not_wanted(
    api: Api, engine: FakeEngine, events: EventsOf, fields: dict[str, Any], stream: bool
) -> None:
    engine.batches = [[token] for token in words("<think>", "hm", "</think>", "Hello")] + [[EOS]]
    for wanted in (True, False):
        response = await api.chat("Hi", stream=stream, **({} if wanted else fields))
        if stream:
            deltas = [one["choices"][0]["delta"] for one in events(response)[:-1]]
            thoughts = "".join(one.get("reasoning_content", "") for one in deltas)
            content = "".join(one.get("content") or "" for one in deltas)
        else:
            message = response.json()["choices"][0]["message"]
            thoughts = message.get("reasoning_content", "")
            content = message["content"]
        assert (thoughts, content) == ("hm" if wanted else "", "Hello")


@pytest.mark.parametrize("chat_template", [ChatTemplate("<think></think>{{ messages }}", {})])
async def test_the_marks_may_be_among_tokens_that_drafts_brought_together(
    api: Api, engine: FakeEngine, events: EventsOf, settings: Settings
) -> None:
    settings.max_drafts = 8
    tokens = [*words("<think>", "h", "m", "</think>", "Hel", "lo"), EOS]
    seen = []
    for engine.batches in ([[token] for token in tokens], [tokens], [tokens[:3], tokens[3:]]):
        options = {"include_usage": True}
        *chunks, last, _ = events(await api.chat("Hi", stream=True, stream_options=options))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(one.get("reasoning_content", "") for one in deltas) == "hm"
        assert "".join(one.get("content") or "" for one in deltas) == "Hello"
        seen.append((deltas, last["usage"]))
        (choice,) = (whole := (await api.chat("Hi")).json())["choices"]
        assert choice["message"]["reasoning_content"] == "hm"
        assert choice["message"]["content"] == "Hello"
        assert whole["usage"] == last["usage"]
    assert seen[1:] == seen[:1] * 2
