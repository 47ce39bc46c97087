"""`/v1/completions`."""

from __future__ import annotations

import pytest

from tgi_async.errors import GenerationError


async def test_answers_as_openai_does(api, engine):
    body = (await api.complete("Hi", max_tokens=9, model="any")).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "tiny/model"
    assert body["choices"] == [
        {"index": 0, "text": "Hello there", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert engine.requests[0].max_new_tokens == 9
    assert not engine.requests[0].include_stop


async def test_several_prompts_have_a_choice_each_in_order(api, engine):
    body = (await api.complete(["a", "bb", "ccc"])).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [len(request.prompt) for request in engine.requests] == [1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 12


async def test_too_many_prompts_are_refused(api):
    response = await api.complete(["a"] * 4)
    assert response.status_code == 422
    assert response.json() == {
        "error": "Number of prompts exceeds the maximum allowed batch size of 3",
        "error_type": "batch size exceeded",
    }


async def test_no_prompt_is_refused(api):
    response = await api.complete([])
    assert response.status_code == 422
    assert "Empty array detected. Do not use an empty array for the prompt." in response.text


async def test_suffix_is_refused(api):
    response = await api.complete("Hi", suffix="!")
    assert response.status_code == 422
    assert response.json() == {
        "error": "Suffix is not supported and can be achieved by preprocessing the prompt.",
        "error_type": "suffix not supported",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True},
        {"logprobs": 1},
        {"n": 2},
        {"best_of": 2},
        {"logit_bias": {"1": 2}},
        {"presence_penalty": 1},
    ],
)
async def test_what_is_not_built_is_refused_by_name(api, fields):
    response = await api.complete("Hi", **fields)
    assert response.status_code == 422
    assert f"`{next(iter(fields))}`" in response.json()["error"]


@pytest.mark.parametrize("fields", [{"echo": False}, {"logprobs": None}, {"n": 1}, {"best_of": 1}])
async def test_what_asks_for_nothing_unbuilt_is_accepted(api, fields):
    assert (await api.complete("Hi", **fields)).status_code == 200


async def test_stream_ends_each_prompt_with_its_reason_and_usage(api, events):
    *chunks, done = events(await api.complete("Hi", stream=True))
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "Hello there"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert ["usage" in chunk for chunk in chunks] == [False, False, True]
    assert chunks[-1]["usage"]["total_tokens"] == 6


async def test_stream_of_several_prompts_has_all_of_each(api, events):
    *chunks, _ = events(await api.complete(["a", "b"], stream=True))
    for index in (0, 1):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "Hello there"
        assert choices[-1]["finish_reason"] == "stop"


async def test_usage_comes_once_for_all_prompts_where_asked(api, events):
    options = {"include_usage": True}
    *chunks, last, _ = events(await api.complete(["a", "b"], stream=True, stream_options=options))
    assert not any("usage" in chunk for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


async def test_a_failure_of_one_prompt_ends_the_stream_and_the_others(api, engine, events):
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    *_, failure, done = events(await api.complete(["a", "b"], stream=True))
    assert failure["error"]["http_status_code"] == 424
    assert done == "[DONE]"
    assert all(generation.cancelled for generation in engine.generations)


async def test_a_stream_over_capacity_is_a_429(api, settings, engine):
    settings.max_client_batch_size = 5
    response = await api.complete(["a"] * 5, stream=True)
    assert response.status_code == 429
    assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}


async def test_a_refused_prompt_leaves_none_running(api, engine):
    response = await api.complete(["fits", "a" * 101])
    assert response.status_code == 422
    assert engine.requests == []
