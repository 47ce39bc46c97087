"""`/v1/chat/completions`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.errors import GenerationError
from tgi_async.generation import FinishReason, Token, TopToken
from tgi_async.grammar.grammar import Json, Regex, decode
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "f"}}


async def test_answers_as_openai_does(api: Api, engine: FakeEngine) -> None:
    body = (await api.chat("Hi")).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny/model"
    assert body["system_fingerprint"].endswith("-native")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"content": "Hello there", "role": "assistant"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    n_prompt = len(engine.requests[0].prompt)
    assert body["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 4,
        "total_tokens": n_prompt + 4,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_the_prompt_is_the_rendered_template_and_nothing_added(
    api: Api, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await api.chat("Hi")
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert engine.requests[0].prompt == tokenizer.encode(rendered, add_special_tokens=False)


async def test_stop_text_is_cut_off(api: Api, engine: FakeEngine) -> None:
    await api.chat("Hi", stop="END")
    assert not engine.requests[0].include_stop
    assert engine.requests[0].stop == ("END",)


async def test_ids_are_unique(api: Api) -> None:
    assert (await api.chat("Hi")).json()["id"] != (await api.chat("Hi")).json()["id"]


@pytest.mark.parametrize(
    ("named", "shown"), [("gpt-4", "gpt-4"), ("tgi", "tiny/model"), (None, "tiny/model")]
)
async def test_any_model_name_is_accepted_and_shown(
    api: Api, named: str | None, shown: str
) -> None:
    assert (await api.chat("Hi", model=named)).json()["model"] == shown


@pytest.mark.parametrize(
    ("reason", "shown"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")]
)
async def test_finish_reasons_are_openais(
    api: Api, engine: FakeEngine, reason: FinishReason, shown: str
) -> None:
    engine.finish_reason = reason
    assert (await api.chat("Hi")).json()["choices"][0]["finish_reason"] == shown


async def test_samples_by_default_and_is_greedy_at_temperature_0(
    api: Api, engine: FakeEngine
) -> None:
    await api.chat("Hi")
    await api.chat("Hi", temperature=0, top_p=0.9, top_k=5)
    assert [request.sampling.do_sample for request in engine.requests] == [True, False]
    assert engine.requests[1].sampling.top_p == 1.0


class TestWithAdviceOfTheModelsMakers:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        settings.sampling_defaults = SamplingDefaults(temperature=0.2, top_p=0.9, top_k=20)
        return settings

    async def test_what_a_request_leaves_open_is_as_they_recommend(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.chat("Hi", top_p=0.5)
        sampling = engine.requests[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.5, 20)

    async def test_a_request_can_turn_it_off(self, api: Api, engine: FakeEngine) -> None:
        await api.chat("Hi", temperature=1, top_p=1, top_k=-1)
        sampling = engine.requests[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)

    async def test_greedy_stays_greedy(self, api: Api, engine: FakeEngine) -> None:
        await api.chat("Hi", temperature=0)
        assert not engine.requests[0].sampling.do_sample

    async def test_a_model_that_is_not_to_be_sampled_is_greedy_unless_asked(
        self, api: Api, engine: FakeEngine, settings: Settings
    ) -> None:
        settings.sampling_defaults = SamplingDefaults(temperature=0.0)
        await api.chat("Hi")
        await api.chat("Hi", temperature=0.5)
        assert [request.sampling.do_sample for request in engine.requests] == [False, True]

    async def test_as_tgi_it_is_not_followed(
        self, api: Api, engine: FakeEngine, settings: Settings
    ) -> None:
        settings.strict_tgi = True
        await api.chat("Hi")
        assert engine.requests[0].sampling.temperature == 1.0


@pytest.mark.parametrize(
    "off", [{"top_p": 1}, {"top_k": -1}, {"top_k": 0}, {"typical_p": 1.0}, {"min_p": 0}, {"n": 1}]
)
async def test_values_that_turn_a_parameter_off_are_accepted(
    api: Api, engine: FakeEngine, off: dict[str, Any]
) -> None:
    assert (await api.chat("Hi", **off)).status_code == 200
    sampling = engine.requests[0].sampling
    assert (sampling.top_p, sampling.top_k, sampling.typical_p) == (1.0, 0, 1.0)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_max_tokens_has_two_names(api: Api, engine: FakeEngine, field: str) -> None:
    await api.chat("Hi", **{field: 3})
    assert engine.requests[0].max_new_tokens == 3


async def test_extra_sampling_parameters_arrive(api: Api, engine: FakeEngine) -> None:
    await api.chat("Hi", top_k=4, repetition_penalty=1.2, ignore_eos=True, seed=5, min_p=0.05)
    [request] = engine.requests
    assert request.ignore_eos
    assert (request.sampling.top_k, request.sampling.repetition_penalty) == (4, 1.2)
    assert request.sampling.min_p == 0.05
    assert request.sampling.seed == 5


@pytest.fixture
def chat_stop_token_ids() -> tuple[int, ...]:
    return (256,)


async def test_an_answer_ends_by_the_end_of_the_template_unless_all_are_ignored(
    api: Api, engine: FakeEngine
) -> None:
    await api.chat("Hi")
    await api.chat("Hi", ignore_eos=True)
    await api.generate("Hi")
    await api.complete("Hi")
    assert [request.stop_token_ids for request in engine.requests] == [(256,), (), (), ()]


async def test_fields_without_effect_here_are_ignored(api: Api) -> None:
    response = await api.chat(
        "Hi", user="me", metadata={}, store=False, parallel_tool_calls=True, stream_options=None
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "json_object"}, Json),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, Json),
        ({"type": "json_schema", "value": {"schema": {"type": "integer"}}}, Json),
        ({"type": "json", "value": {}}, Json),
        ({"type": "regex", "value": "a+"}, Regex),
    ],
)
async def test_an_answer_is_held_to_the_form_that_is_asked_for(
    api: Api, engine: FakeEngine, form: dict[str, Any], kind: type[Json] | type[Regex]
) -> None:
    assert (await api.chat("Hi", response_format=form)).status_code == 200
    assert isinstance(decode(engine.requests[0].grammar), kind)


async def test_a_form_is_looked_at_after_the_other_rules(api: Api, engine: FakeEngine) -> None:
    wrong = {"response_format": {"type": "regex", "value": "("}}
    response = await api.chat("Hi", **wrong, temperature=-1)
    assert "`temperature`" in refusal(response)
    response = await api.chat("Hi", **wrong)
    assert "`response_format`" in refusal(response)
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto", "tool_prompt": "Call one."},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"logit_bias": {}},
        {"logit_bias": []},
    ],
)
async def test_what_asks_for_nothing_unbuilt_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    assert (await api.chat("Hi", **fields)).status_code == 200


async def test_text_parts_are_joined(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert "user\nHello<" in tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)


TEXT = {"type": "text", "text": "a"}
INPUT = {"type": "input_text", "text": "Hi"}


@pytest.mark.parametrize(
    ("message", "reported"),
    [
        ({"role": "user", "content": None}, "`messages[0].content` must be a text"),
        ({"role": "user"}, "`messages[0].content` must be a text"),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}],
            },
            "`messages[0].content[0]` is an image, and this model takes none",
        ),
    ],
)
async def test_messages_that_cannot_be_shown_are_refused(
    client: httpx.AsyncClient, message: dict[str, Any], reported: str
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": [message]})
    assert reported in refusal(response)


class TestHistory:
    """Earlier answers come back in the form of whatever client or server they are from."""

    @pytest.fixture
    def chat_template(self) -> Iterator[ChatTemplate]:
        template = ChatTemplate(
            "{% for m in messages %}[{{ m.role }}|{{ m.reasoning_content }}|{{ m.content }}]"
            "{% endfor %}",
            {},
        )
        yield template
        template.close()

    @pytest.mark.parametrize(
        ("message", "shown"),
        [
            ({"content": "a", "reasoning_content": "t"}, "[assistant|t|a]"),
            ({"content": "a", "reasoning": "t"}, "[assistant|t|a]"),
            ({"content": "a", "thinking": "t"}, "[assistant|t|a]"),
            ({"content": None, "reasoning": "t"}, "[assistant|t|]"),
            ({"content": None, "refusal": "no"}, "[assistant||no]"),
            ({"content": "a", "refusal": None, "function_call": None}, "[assistant||a]"),
            ({"content": [{"type": "refusal", "refusal": "no"}]}, "[assistant||no]"),
            ({"content": [{"type": "output_text", "text": "a"}]}, "[assistant||a]"),
            (
                {"content": [{"type": "thinking", "thinking": "t", "signature": "x"}, TEXT]},
                "[assistant|t|a]",
            ),
            (
                {"content": [{"type": "thinking", "thinking": [TEXT, TEXT]}, TEXT]},
                "[assistant|aa|a]",
            ),
            ({"content": [{"type": "reasoning", "text": "t"}]}, "[assistant|t|]"),
            ({"content": None}, "[assistant||]"),
            ({}, "[assistant||]"),
            (
                {"role": "tool", "tool_call_id": "1", "content": None},
                "[user||<tool_response>\n\n</tool_response>]",
            ),
        ],
    )
    async def test_is_understood(
        self,
        client: httpx.AsyncClient,
        engine: FakeEngine,
        tokenizer: Tokenizer,
        message: dict[str, Any],
        shown: str,
    ) -> None:
        messages = [{"role": "assistant", **message}, {"role": "user", "content": [INPUT]}]
        response = await client.post("/v1/chat/completions", json={"messages": messages})
        assert response.status_code == 200, response.text
        prompt = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
        assert prompt == f"{shown}[user||Hi]"


async def test_an_assistant_message_at_the_end_is_continued(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    await client.post("/v1/chat/completions", json={"messages": messages})
    prompt = tokenizer.decode(engine.requests[0].prompt, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>assistant\nWell,")


class TestWithoutTemplate:
    @pytest.fixture
    def chat_template(self) -> ChatTemplate | None:
        return None

    async def test_chat_is_refused(self, api: Api) -> None:
        response = await api.chat("Hi")
        assert refusal(response) == "Template error: template not found"


async def test_logprobs(api: Api, engine: FakeEngine) -> None:
    engine.batches = [[Token(1, "a", -0.1, False, (TopToken(2, "b", -0.2, False),))]]
    response = await api.chat("Hi", logprobs=True, top_logprobs=1)
    assert response.json()["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.1,
                "bytes": [97],
                "top_logprobs": [{"token": "b", "logprob": -0.2, "bytes": [98]}],
            }
        ]
    }
    assert engine.requests[0].sampling.logprobs


async def test_a_token_that_cannot_come_has_a_number_all_the_same(
    api: Api, engine: FakeEngine
) -> None:
    never = -math.inf
    engine.batches = [[Token(1, "a", never, False, (TopToken(2, "b", never, False),))]]
    [entry] = (await api.chat("Hi", logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert (entry["logprob"], entry["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)


async def test_top_tokens_are_not_computed_where_no_log_probabilities_are_reported(
    api: Api, engine: FakeEngine
) -> None:
    await api.chat("Hi", top_logprobs=2)
    assert engine.requests[0].sampling.top_n_tokens == 0


async def test_a_special_token_among_logprobs_has_its_name(api: Api, engine: FakeEngine) -> None:
    engine.batches = [[EOS]]
    body = (await api.chat("Hi", logprobs=True)).json()
    [entry] = body["choices"][0]["logprobs"]["content"]
    assert entry["token"] == "<|im_end|>"
    assert bytes(entry["bytes"]).decode() == "<|im_end|>"


async def test_n_choices_are_answered_in_order(api: Api, engine: FakeEngine) -> None:
    engine.batches_by_choice = {0: [words("a")], 1: [words("b"), words("c")]}
    body = (await api.chat("Hi", n=2, seed=3)).json()
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == ["a", "bc"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert {request.sampling.seed for request in engine.requests} == {3}
    n_prompt = len(engine.requests[0].prompt)
    assert body["usage"]["prompt_tokens"] == n_prompt
    assert body["usage"]["completion_tokens"] == 3


async def test_n_choices_of_a_stream_have_their_index(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches_by_choice = {0: [words("a")], 1: [words("b"), words("c"), words("d")]}
    options = {"include_usage": True}
    response = await api.chat("Hi", n=2, stream=True, stream_options=options)
    *chunks, usage, done = events(response)
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 4
    for index, text in enumerate(("a", "bcd")):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in choices) == text
        ends = [choice["finish_reason"] for choice in choices]
        assert ends == [None] * (len(choices) - 1) + ["stop"]


async def test_stream_has_chunks_and_done(api: Api, events: EventsOf) -> None:
    response = await api.chat("Hi", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta["content"] for delta in deltas) == "Hello there"
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_as_tgi_every_delta_of_a_stream_has_the_role(
    api: Api, events: EventsOf, settings: Settings
) -> None:
    settings.strict_tgi = True
    *chunks, _ = events(await api.chat("Hi", stream=True))
    assert {chunk["choices"][0]["delta"]["role"] for chunk in chunks} == {"assistant"}


@pytest.mark.parametrize("wrong", [{"top_p": 2}, {"top_k": -2}, {"typical_p": 0}])
async def test_wrong_sampling_parameters_are_wrong_at_temperature_0_too(
    api: Api, wrong: dict[str, Any]
) -> None:
    assert (await api.chat("Hi", temperature=0, **wrong)).status_code == 400


async def test_stream_has_usage_in_an_extra_chunk_where_asked(api: Api, events: EventsOf) -> None:
    response = await api.chat("Hi", stream=True, stream_options={"include_usage": True})
    *_, last, done = events(response)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


async def test_stream_has_logprobs_of_all_tokens_that_came_together(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches = [words("a", "b")]
    [chunk, _] = events(await api.chat("Hi", stream=True, logprobs=True))
    content = chunk["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["a", "b"]


async def test_text_held_back_for_a_stop_sequence_that_never_came_is_kept(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches = [[*words("a"), EOS._replace(text=" EN")]]
    assert (await api.chat("Hi")).json()["choices"][0]["message"]["content"] == "a EN"
    [chunk, _] = events(await api.chat("Hi", stream=True))
    assert chunk["choices"][0]["delta"]["content"] == "a EN"


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"max_tokens": 0}])
async def test_errors_before_a_stream_have_their_status(api: Api, fields: dict[str, Any]) -> None:
    response = await api.chat("Hi", stream=True, **fields)
    [field] = fields
    assert f"`{field}` must be strictly positive" in refusal(response)


async def test_a_failure_within_a_stream_is_an_event_before_done(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    *_, failure, done = events(await api.chat("Hi", stream=True))
    assert done == "[DONE]"
    assert failure == {
        "error": {
            "message": "Request failed during generation: Server error: no luck",
            "type": "server_error",
            "param": None,
            "code": None,
            "http_status_code": 424,
        }
    }
