"""Every rule on parameters, with TGI's words, order and status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings
from tests.doubles.fake_engine import FakeEngine

SET_BY = "The limit is set by the server's "


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"best_of": 4, "do_sample": True},
            f"`best_of` must be > 0 and <= 3. Given: 4. {SET_BY}--max-best-of",
        ),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        (
            {"best_of": 2, "do_sample": True, "seed": 1},
            "`seed` must not be set when `best_of` > 1",
        ),
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"temperature": 1e30}, "`temperature` must be <= 1000.0. Given: 1e+30"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        (
            {"repetition_penalty": 1e-9},
            "`repetition_penalty` must be >= 0.01 and <= 100.0. Given: 1e-09",
        ),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"min_p": -0.1}, "`min_p` must be >= 0.0 and <= 1.0. Given: -0.1"),
        ({"min_p": 1.1}, "`min_p` must be >= 0.0 and <= 1.0. Given: 1.1"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        (
            {"stop": ["a", "b", "c"]},
            f"`stop` supports up to 2 stop sequences. Given: 3. {SET_BY}--max-stop-sequences",
        ),
        ({"stop": [""]}, "`stop` sequences cannot be empty"),
        ({"seed": 2**64}, "`seed` must be >= -2**63 and < 2**64"),
        ({"seed": -(2**63) - 1}, "`seed` must be >= -2**63 and < 2**64"),
        ({"seed": 10**4000}, "`seed` must be >= -2**63 and < 2**64"),
        (
            {"top_n_tokens": 6},
            f"`top_n_tokens` must be >= 0 and <= 5. Given: 6. {SET_BY}--max-top-n-tokens",
        ),
        *(
            (
                {"truncate": it},
                f"`truncate` must be strictly positive and less than 100. Given: {it}. "
                f"{SET_BY}--max-input-tokens",
            )
            for it in (0, 101)
        ),
        (
            {"max_new_tokens": 127},
            "`inputs` tokens + `max_new_tokens` must be <= 128. "
            "Given: 2 `inputs` tokens and 127 `max_new_tokens`. "
            f"{SET_BY}--max-total-tokens",
        ),
        (
            {"grammar": {"type": "regex", "value": "a("}},
            "`grammar`: unclosed group, at '(' (character 2)",
        ),
        (
            {"adapter_id": "mine"},
            "`adapter_id` is not supported by this version of the server. "
            "Remove it from the request",
        ),
    ],
)
async def test_a_broken_rule_is_reported_in_its_words(
    api: Api, engine: FakeEngine, parameters: dict[str, Any], message: str
) -> None:
    response = await api.generate("Hi", **parameters)
    assert response.status_code == 422
    assert response.json() == {
        "error": f"Input validation error: {message}",
        "error_type": "validation",
    }
    assert engine.requests == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("", "`inputs` cannot be empty"),
        (
            "a" * 101,
            f"`inputs` must have less than 100 tokens. Given: 101. {SET_BY}--max-input-tokens",
        ),
    ],
)
async def test_a_prompt_that_does_not_fit_is_refused(api: Api, inputs: str, message: str) -> None:
    response = await api.generate(inputs, max_new_tokens=1)
    assert response.status_code == 422
    assert response.json()["error"] == f"Input validation error: {message}"


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1e-30},
        {"repetition_penalty": 0.01},
        {"frequency_penalty": -2.0},
        {"top_p": 0.999},
        {"typical_p": 0.001},
        {"top_k": 2**31 - 1},
        {"min_p": 0},
        {"min_p": 1},
        {"max_new_tokens": 126},
        {"stop": None},
        {"seed": 0},
        {"seed": 2**64 - 1, "do_sample": True},
        {"seed": -(2**63)},
        {"top_n_tokens": 5},
        {"truncate": 100},
        {"best_of": None},
        {"unknown_to_us": {"deep": [1]}},
    ],
)
async def test_values_at_their_limits_are_accepted(api: Api, parameters: dict[str, Any]) -> None:
    assert (await api.generate("Hi", **parameters)).status_code == 200


@pytest.mark.parametrize(
    ("seed", "drawn"), [(-1, 2**64 - 1), (-(2**63), 2**63), (7, 7), (2**64 - 1, 2**64 - 1)]
)
async def test_a_negative_seed_is_a_seed_too(
    api: Api, engine: FakeEngine, seed: int, drawn: int
) -> None:
    for send in (api.generate, api.chat, api.complete):
        assert (await send("Hi", seed=seed)).status_code == 200
        assert engine.requests.pop().sampling.seed == drawn
    reported = (await api.generate("Hi", seed=seed, do_sample=True, details=True)).json()
    assert reported["details"]["seed"] == drawn


async def test_tgi_knows_no_negative_seed(api: Api, settings: Settings) -> None:
    settings.strict_tgi = True
    response = await api.generate("Hi", seed=-1)
    assert response.status_code == 422
    assert response.json()["error"].endswith("`seed` must be >= 0 and < 2**64")


async def test_the_first_broken_rule_wins(api: Api) -> None:
    response = await api.generate("", top_k=0, temperature=0, max_new_tokens=0)
    assert response.json()["error"].endswith("`temperature` must be strictly positive")


async def test_a_prompt_of_the_longest_length_is_accepted(api: Api) -> None:
    assert (await api.generate("a" * 100, max_new_tokens=28)).status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 2**32},
        {"max_new_tokens": 1.5},
        {"top_k": 2**31},
        {"seed": 1.5},
        {"best_of": "two"},
        {"temperature": "hot"},
        {"do_sample": 1},
        {"stop": [1]},
        {"top_n_tokens": -1},
    ],
)
async def test_a_number_out_of_its_type_is_a_422_in_plain_text(
    api: Api, parameters: dict[str, Any]
) -> None:
    response = await api.generate("Hi", **parameters)
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("text/plain")
    [name] = parameters
    assert response.text.startswith(
        f"Failed to deserialize the JSON body into the target type: parameters.{name}"
    )


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
async def test_a_number_that_is_none_is_not_json(client: httpx.AsyncClient, literal: str) -> None:
    body = '{"inputs": "Hi", "parameters": {"temperature": %s}}' % literal  # noqa: UP031
    headers = {"content-type": "application/json"}
    response = await client.post("/generate", content=body, headers=headers)
    assert response.status_code == 400


async def test_a_float_that_overflows_is_refused(client: httpx.AsyncClient) -> None:
    body = '{"inputs": "Hi", "parameters": {"temperature": 1e999}}'
    headers = {"content-type": "application/json"}
    response = await client.post("/generate", content=body, headers=headers)
    assert response.status_code == 422


async def test_best_of_is_refused_where_it_is_turned_off(api: Api, settings: Settings) -> None:
    settings.max_best_of = 1
    response = await api.generate("Hi", best_of=2, do_sample=True)
    reported = f"`best_of` != 1 is not allowed for this endpoint. {SET_BY}--max-best-of"
    assert response.json()["error"].endswith(reported)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"best_of": 0}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
async def test_what_a_stream_cannot_have(
    api: Api, events: EventsOf, parameters: dict[str, Any], message: str
) -> None:
    [event] = events(await api.generate_stream("Hi", **parameters))
    assert event["error"] == f"Input validation error: {message}"


async def test_more_new_tokens_than_there_is_room_end_at_the_room(
    api: Api, engine: FakeEngine, settings: Settings
) -> None:
    """TGI admits what has room for 1024 new tokens, whatever is asked beyond that."""
    settings.max_input_tokens, settings.max_total_tokens = 1000, 2000
    await api.generate("a" * 900, max_new_tokens=1500)
    assert engine.requests[0].max_new_tokens == 1100


async def test_max_new_tokens_beyond_1024_is_exact(
    api: Api, engine: FakeEngine, settings: Settings
) -> None:
    settings.max_input_tokens, settings.max_total_tokens = 1000, 4000
    await api.generate("Hi", max_new_tokens=1500)
    assert engine.requests[0].max_new_tokens == 1500


@pytest.mark.parametrize(
    ("parameters", "sampled"),
    [
        ({}, False),
        ({"temperature": 1.0}, False),
        ({"temperature": 0.5}, True),
        ({"top_k": 3}, True),
        ({"top_p": 0.5}, True),
        ({"typical_p": 0.5}, True),
        ({"min_p": 0.5}, True),
        ({"min_p": 0.0}, False),
        ({"do_sample": True}, True),
    ],
)
async def test_a_value_that_changes_the_distribution_means_sampling(
    api: Api, engine: FakeEngine, parameters: dict[str, Any], sampled: bool
) -> None:
    await api.generate("Hi", **parameters)
    assert engine.requests[0].sampling.do_sample is sampled


async def test_a_tiny_temperature_is_raised_to_one_that_divides_safely(
    api: Api, engine: FakeEngine
) -> None:
    await api.generate("Hi", temperature=1e-300)
    assert engine.requests[0].sampling.temperature == 1e-6
