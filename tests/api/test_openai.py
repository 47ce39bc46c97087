"""What both OpenAI routes take and answer."""

from __future__ import annotations

import pytest

from tests.api.conftest import refusal
from tgi_async.errors import GenerationError, Overloaded

BEST_OF = "The limit is set by the server's --max-best-of"


@pytest.fixture(params=["chat", "complete"])
def ask(api, request):
    """One of the routes."""
    return getattr(api, request.param)


async def test_penalties_are_openais(ask, engine):
    await ask("Hi", frequency_penalty=0.5, presence_penalty=-1.5)
    sampling = engine.requests[0].sampling
    assert sampling.output_frequency_penalty == 0.5
    assert sampling.output_presence_penalty == -1.5
    assert (sampling.frequency_penalty, sampling.repetition_penalty) == (0.0, 1.0)


async def test_logit_bias_maps_token_ids(ask, engine):
    await ask("Hi", logit_bias={"5": -100, "70000": 1.5})
    sampling = engine.requests[0].sampling
    assert (sampling.biased_ids, sampling.biases) == ([5, 70000], [-100.0, 1.5])


async def test_a_request_without_these_has_the_neutral_values(ask, engine):
    await ask("Hi", temperature=0)
    sampling = engine.requests[0].sampling
    assert not sampling.do_sample
    assert (sampling.output_frequency_penalty, sampling.output_presence_penalty) == (0.0, 0.0)
    assert (sampling.biased_ids, sampling.biases) == ([], [])
    assert not sampling.model_logprobs


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": 1}])
async def test_log_probabilities_are_the_models_own(api, engine, fields):
    await (api.chat if fields["logprobs"] is True else api.complete)("Hi", **fields)
    assert engine.requests[0].sampling.model_logprobs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"presence_penalty": 2.5}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
        ({"frequency_penalty": -2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"min_p": 1.5}, "`min_p` must be >= 0.0 and <= 1.0. Given: 1.5"),
        ({"n": 0}, f"`n` must be > 0 and <= 3. Given: 0. {BEST_OF}"),
        ({"n": 4}, f"`n` must be > 0 and <= 3. Given: 4. {BEST_OF}"),
        (
            {"logit_bias": {"1": 100.5}},
            "`logit_bias` values must be >= -100 and <= 100. Given: 100.5 for the token 1",
        ),
        (
            {"logit_bias": {"one": 1}},
            "`logit_bias` maps token ids, which are numbers from 0. Given: 'one'",
        ),
        (
            {"logit_bias": {"-1": 1}},
            "`logit_bias` maps token ids, which are numbers from 0. Given: '-1'",
        ),
        (
            {"logit_bias": {"9" * 999: 1}},
            f"`logit_bias` maps token ids, which are numbers from 0. Given: '{'9' * 20}'",
        ),
        (
            {"logit_bias": {str(id): 1 for id in range(301)}},
            "`logit_bias` supports up to 300 tokens. Given: 301",
        ),
        ({"logit_bias": [1.0]}, "`logit_bias` must map token ids to numbers. Given: a list"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_rule_is_told_before_a_stream(ask, engine, fields, message, stream):
    response = await ask("Hi", stream=stream, **fields)
    assert refusal(response) == f"Input validation error: {message}"
    assert response.json()["error"]["param"] == next(iter(fields))
    assert response.json()["error_type"] == "validation"
    assert engine.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2, "frequency_penalty": -2, "min_p": 1},
        {"n": 3, "temperature": 0},
        {"logit_bias": {str(id): 100 for id in range(300)}},
        {"logit_bias": {str(2**31 - 1): -100}},
        {"n": None, "logit_bias": None, "presence_penalty": None, "stop": None},
    ],
)
async def test_values_at_their_limits_are_accepted(ask, fields):
    assert (await ask("Hi", **fields)).status_code == 200


async def test_the_last_choice_to_end_ends_the_stream(ask, engine, events):
    *chunks, done = events(await ask("Hi", n=3, stream=True))
    assert done == "[DONE]"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons.count("stop") == 3
    assert reasons[-1] == "stop"


async def test_a_failure_of_one_choice_ends_all(ask, engine, events):
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    *_, failure, done = events(await ask("Hi", n=2, stream=True))
    assert failure["error"]["http_status_code"] == 424
    assert done == "[DONE]"
    assert all(generation.cancelled for generation in engine.generations)


class TestUsage:
    """Tokens that were not computed, of each prompt once."""

    @pytest.fixture(autouse=True)
    def cached(self, engine):
        engine.n_cached = 5

    async def test_cached_tokens_are_told(self, ask, events):
        assert (await ask("Hi", n=3)).json()["usage"]["prompt_tokens_details"] == {
            "cached_tokens": 5
        }
        streamed = await ask("Hi", n=3, stream=True, stream_options={"include_usage": True})
        *_, last, _ = events(streamed)
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}

    async def test_those_of_several_prompts_are_added(self, api, events):
        body = (await api.complete(["a", "b"], n=2)).json()
        assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 10}
        options = {"include_usage": True}
        *_, last, _ = events(
            await api.complete(["a", "b"], n=2, stream=True, stream_options=options)
        )
        assert last["usage"] == body["usage"]

    async def test_a_stream_of_completions_tells_those_of_each(self, api, events):
        *chunks, _ = events(await api.complete(["a", "b"], stream=True))
        told = [chunk["usage"] for chunk in chunks if "usage" in chunk]
        assert [one["prompt_tokens_details"] for one in told] == [{"cached_tokens": 5}] * 2

    async def test_tgi_has_no_details(self, ask, settings):
        settings.strict_tgi = True
        usage = (await ask("Hi")).json()["usage"]
        assert usage.keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


class TestStrictTgi:
    @pytest.fixture(autouse=True)
    def strict(self, settings):
        settings.strict_tgi = True

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"top_p": 1.0}, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
            ({"max_tokens": 0}, "Input validation error: `max_new_tokens` must be strictly"),
        ],
    )
    async def test_what_is_wrong_is_told_in_the_stream(self, ask, events, fields, message):
        response = await ask("Hi", stream=True, **fields)
        assert response.status_code == 200
        [failure, done] = events(response)
        assert failure["error"]["message"].startswith(message)
        assert failure["error"]["http_status_code"] == 422
        assert done == "[DONE]"
        assert (await ask("Hi", **fields)).status_code == 422

    async def test_overload_is_told_in_the_stream(self, ask, engine, events):
        engine.refusal = Overloaded()
        response = await ask("Hi", stream=True)
        assert response.status_code == 200
        assert events(response)[0]["error"] == {
            "message": "Model is overloaded",
            "http_status_code": 422,
        }

    async def test_any_failure_in_a_stream_says_422(self, ask, engine, events):
        engine.error, engine.fail_before = GenerationError("no luck"), 1
        *_, failure, _ = events(await ask("Hi", stream=True))
        assert failure["error"]["http_status_code"] == 422

    @pytest.mark.parametrize(
        ("reason", "shown"),
        [("eos_token", "stop"), ("stop_sequence", "stop_sequence"), ("length", "length")],
    )
    async def test_a_stop_sequence_is_a_reason_and_stays_in_the_text(
        self, ask, engine, reason, shown
    ):
        engine.finish_reason = reason
        assert (await ask("Hi", stop=["END"])).json()["choices"][0]["finish_reason"] == shown
        assert engine.requests[0].include_stop

    async def test_the_frequency_penalty_is_tgis(self, ask, engine):
        await ask("Hi", frequency_penalty=0.5)
        sampling = engine.requests[0].sampling
        assert (sampling.frequency_penalty, sampling.output_frequency_penalty) == (0.5, 0.0)

    async def test_log_probabilities_are_of_the_processed_distribution(self, api, engine):
        await api.chat("Hi", logprobs=True)
        sampling = engine.requests[0].sampling
        assert sampling.logprobs
        assert not sampling.model_logprobs

    async def test_a_presence_penalty_of_a_chat_is_a_repetition_penalty(self, api, engine):
        await api.chat("Hi", presence_penalty=0.0)
        assert engine.requests[0].sampling.repetition_penalty == 2.0
        response = await api.chat("Hi", presence_penalty=-2.0)
        assert response.json()["error"].endswith("`repetition_penalty` must be strictly positive")

    async def test_fields_of_a_chat_that_tgi_ignores_do_nothing(self, api, engine):
        await api.chat("Hi", n=9, logit_bias={"x": 1}, top_k=-7, min_p=9, repetition_penalty=0)
        [request] = engine.requests
        assert (request.sampling.top_k, request.sampling.min_p) == (0, 0.0)
