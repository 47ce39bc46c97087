"""`/generate`, `/generate_stream` and `/`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.errors import GenerationError, IncompleteGeneration, ValidationError
from tgi_async.generation import Token, TopToken


async def test_answers_with_the_text_alone(api: Api, engine: FakeEngine) -> None:
    response = await api.generate("Hi", max_new_tokens=5)
    assert response.status_code == 200
    assert response.json() == {"generated_text": "Hello there"}
    [request] = engine.requests
    assert len(request.prompt) == 2
    assert request.max_new_tokens == 5
    assert request.include_stop
    assert not request.sampling.logprobs


async def test_headers_tell_times_in_tgi_units(api: Api) -> None:
    headers = (await api.generate("Hé")).headers
    assert headers["x-compute-type"] == "test-machine"
    assert headers["x-compute-characters"] == "2"
    assert headers["x-prompt-tokens"] == "3"
    assert headers["x-generated-tokens"] == "4"
    assert headers["x-queue-time"] == "500"
    assert headers["x-inference-time"] == "2000"
    assert headers["x-time-per-token"] == "500"
    assert float(headers["x-compute-time"]) < 60
    assert int(headers["x-total-time"]) >= int(headers["x-validation-time"])


async def test_details_of_a_greedy_generation(api: Api) -> None:
    details = (await api.generate("Hi", details=True)).json()["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == 4
    assert details["seed"] is None
    assert details["prefill"] == []
    assert details["tokens"][0] == {"id": 0, "text": "Hel", "logprob": -0.25, "special": False}
    assert details["tokens"][-1] == {
        "id": 257,
        "text": "<|im_end|>",
        "logprob": -0.5,
        "special": True,
    }
    assert "top_tokens" not in details
    assert "best_of_sequences" not in details


async def test_details_tell_the_seed_of_a_sampled_generation(api: Api, engine: FakeEngine) -> None:
    given = await api.generate("Hi", details=True, do_sample=True, seed=2**64 - 1)
    assert given.json()["details"]["seed"] == 2**64 - 1
    drawn = await api.generate("Hi", details=True, temperature=0.5)
    assert drawn.json()["details"]["seed"] == engine.requests[1].sampling.seed


async def test_two_requests_without_a_seed_get_different_ones(api: Api, engine: FakeEngine) -> None:
    await api.generate("Hi", do_sample=True)
    await api.generate("Hi", do_sample=True)
    first, second = (request.sampling.seed for request in engine.requests)
    assert first != second


async def test_decoder_input_details_have_the_prompt(api: Api, engine: FakeEngine) -> None:
    details = (await api.generate("Hi", decoder_input_details=True)).json()["details"]
    assert [token["text"] for token in details["prefill"]] == ["H", "i"]
    assert [token["logprob"] for token in details["prefill"]] == [None, -1.0]
    assert engine.requests[0].prompt_logprobs


async def test_decoder_input_details_of_a_prompt_of_one_token(api: Api) -> None:
    details = (await api.generate("H", decoder_input_details=True)).json()["details"]
    assert [token["logprob"] for token in details["prefill"]] == [None]


async def test_text_that_the_last_special_token_releases_is_kept(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches = [[*words("a"), EOS._replace(text="\ufffd")]]
    assert (await api.generate("Hi")).json()["generated_text"] == "a\ufffd"
    last = events(await api.generate_stream("Hi"))[-1]
    assert last["generated_text"] == "a\ufffd"
    assert last["token"]["text"] == "<|im_end|>"


async def test_top_tokens(api: Api, engine: FakeEngine) -> None:
    engine.batches = [[Token(1, "a", -0.1, False, (TopToken(2, "b", -0.2, False),)), EOS]]
    details = (await api.generate("Hi", details=True, top_n_tokens=1)).json()["details"]
    assert details["top_tokens"] == [
        [{"id": 2, "text": "b", "logprob": -0.2, "special": False}],
        [],
    ]


async def test_a_log_probability_of_minus_infinity_is_null(api: Api, engine: FakeEngine) -> None:
    engine.batches = [[Token(1, "a", float("-inf"), False)]]
    details = (await api.generate("Hi", details=True)).json()["details"]
    assert details["tokens"][0]["logprob"] is None


async def test_best_of_shows_the_likeliest_and_keeps_the_others(
    api: Api, engine: FakeEngine
) -> None:
    engine.batches_in_order = [
        [[Token(1, "poor", -3.0, False)]],
        [[Token(2, "good", -0.1, False)]],
    ]
    response = await api.generate("Hi", best_of=2, do_sample=True, details=True)
    body = response.json()
    assert body["generated_text"] == "good"
    [other] = body["details"]["best_of_sequences"]
    assert other["generated_text"] == "poor"
    seeds = [request.sampling.seed for request in engine.requests]
    assert [other["seed"], body["details"]["seed"]] == seeds
    assert seeds[0] != seeds[1]
    assert [request.sampling.choice for request in engine.requests] == [0, 0]


async def test_best_of_0_counts_as_1(api: Api, engine: FakeEngine) -> None:
    assert (await api.generate("Hi", best_of=0)).status_code == 200
    assert len(engine.requests) == 1


async def test_return_full_text_puts_the_prompt_first(api: Api) -> None:
    response = await api.generate("Hi ", return_full_text=True)
    assert response.json()["generated_text"] == "Hi Hello there"


async def test_absent_parameters_sample_and_empty_ones_do_not(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post("/generate", json={"inputs": "Hi"})
    await client.post("/generate", json={"inputs": "Hi", "parameters": {}})
    assert [request.sampling.do_sample for request in engine.requests] == [True, False]


async def test_truncate_keeps_the_last_tokens(api: Api, engine: FakeEngine) -> None:
    await api.generate("abcdef", truncate=2)
    await api.generate("ef")
    assert engine.requests[0].prompt == engine.requests[1].prompt


@pytest.mark.parametrize("stop", ["END", ["END"]])
async def test_stop_may_be_a_text_or_a_list(
    api: Api, engine: FakeEngine, stop: list[str] | str
) -> None:
    await api.generate("Hi", stop=stop)
    assert engine.requests[0].stop == ("END",)


async def test_all_sampling_parameters_arrive(api: Api, engine: FakeEngine) -> None:
    await api.generate(
        "Hi",
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        typical_p=0.8,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        watermark=True,
        seed=7,
        top_n_tokens=3,
        ignore_eos=True,
    )
    [request] = engine.requests
    sampling = request.sampling
    assert request.ignore_eos
    assert sampling.do_sample
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 5, 0.9)
    assert (sampling.typical_p, sampling.repetition_penalty) == (0.8, 1.1)
    assert (sampling.frequency_penalty, sampling.watermark) == (0.3, True)
    assert (sampling.seed, sampling.top_n_tokens) == (7, 3)


async def test_without_max_new_tokens_the_whole_room_is_given(
    api: Api, engine: FakeEngine, settings: Settings
) -> None:
    await api.generate("Hi")
    assert engine.requests[0].max_new_tokens == settings.max_total_tokens - 2


async def test_fairness_is_owed_to_the_peer(api: Api, engine: FakeEngine) -> None:
    await api.generate("Hi")
    assert engine.requests[0].client == "127.0.0.1"


async def test_compat_route_answers_with_a_list_and_the_full_text(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/", json={"inputs": "Hi "})
    assert response.json() == [{"generated_text": "Hi Hello there"}]


async def test_compat_route_leaves_the_prompt_out_where_asked(client: httpx.AsyncClient) -> None:
    body = {"inputs": "Hi ", "parameters": {"return_full_text": False}}
    assert (await client.post("/", json=body)).json() == [{"generated_text": "Hello there"}]


async def test_compat_route_leaves_the_prompt_out_for_other_pipelines(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    settings.model_pipeline_tag = "text2text-generation"
    response = await client.post("/", json={"inputs": "Hi "})
    assert response.json() == [{"generated_text": "Hello there"}]


async def test_compat_route_streams(client: httpx.AsyncClient, events: EventsOf) -> None:
    response = await client.post("/", json={"inputs": "Hi ", "stream": True})
    assert events(response)[-1]["generated_text"] == "Hi Hello there"


async def test_stream_has_one_event_a_token_and_the_text_in_the_last(
    api: Api, events: EventsOf
) -> None:
    response = await api.generate_stream("Hi", details=True, do_sample=True, seed=3)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-compute-characters"] == "2"
    *rest, last = events(response)
    assert [event["index"] for event in (*rest, last)] == [1, 2, 3, 4]
    assert [event["token"]["text"] for event in rest] == ["Hel", "lo", " there"]
    assert rest[0] == {
        "index": 1,
        "token": {"id": 0, "text": "Hel", "logprob": -0.25, "special": False},
        "generated_text": None,
        "details": None,
    }
    assert last["generated_text"] == "Hello there"
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 4,
        "seed": 3,
        "input_length": 2,
    }


async def test_stream_has_details_only_where_asked(api: Api, events: EventsOf) -> None:
    assert events(await api.generate_stream("Hi"))[-1]["details"] is None


async def test_stream_has_top_tokens_where_asked(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches = [[Token(1, "a", -0.1, False, (TopToken(2, "b", -0.2, False),))]]
    [event] = events(await api.generate_stream("Hi", top_n_tokens=1))
    assert event["top_tokens"] == [{"id": 2, "text": "b", "logprob": -0.2, "special": False}]


async def test_stream_text_equals_the_text_of_the_whole_reply(api: Api, events: EventsOf) -> None:
    whole = (await api.generate("Hi")).json()["generated_text"]
    streamed = events(await api.generate_stream("Hi"))
    texts = [event["token"]["text"] for event in streamed if not event["token"]["special"]]
    assert "".join(texts) == whole


async def test_an_invalid_stream_is_an_error_event_in_a_200(api: Api, events: EventsOf) -> None:
    response = await api.generate_stream("Hi", temperature=-1)
    assert response.status_code == 200
    assert events(response) == [
        {
            "error": "Input validation error: `temperature` must be strictly positive",
            "error_type": "validation",
        }
    ]


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            GenerationError("no luck"),
            {
                "error": "Request failed during generation: Server error: no luck",
                "error_type": "generation",
            },
        ),
        (
            IncompleteGeneration(),
            {
                "error": "Incomplete generation stream",
                "error_type": "incomplete_generation_stream",
            },
        ),
    ],
)
async def test_a_stream_that_fails_ends_with_an_error_event(
    api: Api,
    engine: FakeEngine,
    events: EventsOf,
    error: GenerationError | IncompleteGeneration,
    body: dict[str, Any],
) -> None:
    engine.error, engine.fail_before = error, 1
    *before, last = events(await api.generate_stream("Hi"))
    assert [event["token"]["text"] for event in before] == ["Hel"]
    assert last == body


async def test_a_generation_that_fails_is_a_424(api: Api, engine: FakeEngine) -> None:
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    response = await api.generate("Hi")
    assert response.status_code == 424
    assert response.json()["error_type"] == "generation"


async def test_a_request_that_the_engine_refuses_is_a_422(api: Api, engine: FakeEngine) -> None:
    engine.refusal = ValidationError("needs 9 blocks and there are 8")
    response = await api.generate("Hi")
    assert response.status_code == 422
    assert response.json() == {
        "error": "Input validation error: needs 9 blocks and there are 8",
        "error_type": "validation",
    }


async def test_a_failure_of_one_of_best_of_ends_the_others(api: Api, engine: FakeEngine) -> None:
    engine.batches_in_order = [
        [words("a"), words("b"), words("c")],
        [words("a"), words("b")],
    ]
    engine.error, engine.fail_before = GenerationError("no luck"), 2
    response = await api.generate("Hi", best_of=2, do_sample=True)
    assert response.status_code == 424
    assert all(one.done or one.cancelled for one in engine.generations)
