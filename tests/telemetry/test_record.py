from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tgi_async.generation import GenerationRequest
from tgi_async.telemetry import record
from tgi_async.telemetry.record import RequestRecord, duration
from tgi_async.wire.messages import Sampling


def made(path: str = "/generate", **scope: Any) -> RequestRecord:
    """A record of a request that has just come."""
    base = {"method": "POST", "path": path, "headers": [], "client": ("10.0.0.7", 5)}
    return RequestRecord(base | scope)


def done() -> RequestRecord:
    """A record of a request that was answered."""
    seen = made()
    seen.received()
    seen.validated(0.001, 3)
    sampling = Sampling(do_sample=True, temperature=0.5, seed=7)
    seen.requests.append(GenerationRequest([1, 2, 3], sampling, max_new_tokens=20, stop=("x",)))
    seen.finish_reasons.append("length")
    seen.generated(0.5, 2.0, 4)
    seen.status, seen.succeeded, seen.total = 200, True, 2.5
    return seen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ns"),
        (8e-8, "80ns"),
        (3.2e-6, "3.2µs"),
        (0.012345678, "12.345678ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (61.000000001, "61.000000001s"),
    ],
)
def test_times_are_shown_as_tgi_shows_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/generate", "generate"),
        ("/generate_stream", "generate_stream"),
        ("/v1/chat/completions", "chat_completions"),
        ("/v1/completions", "completions"),
        ("/", "generate"),
        ("/invocations", "sagemaker_compatibility"),
        ("/vertex", "vertex_compatibility"),
        ("/of/a/persons/choice", "vertex_compatibility"),
        ("/v2/models/a/versions/1/infer", "kserve_model_infer"),
    ],
)
def test_a_request_is_named_as_tgi_names_its_handler(path: str, name: str) -> None:
    assert made(path).name == name


def test_the_root_is_named_by_what_it_answered() -> None:
    seen = made("/")
    seen.streamed = True
    assert seen.name == "generate_stream"


def test_times_of_several_generations_are_summed() -> None:
    seen = made()
    for n in (4, 6):
        seen.validated(n / 100, 3)
        seen.generated(0.5, 2.0, n)
    assert (seen.n_prompt, seen.n_generated, seen.validation) == (6, 10, 0.06)
    assert (seen.queued, seen.inference, seen.time_per_token) == (1.0, 4.0, 0.4)


def test_the_seed_is_reported_where_it_was_used() -> None:
    seen = done()
    assert seen.tgi_fields()["seed"] == "Some(7)"
    seen.requests[0] = GenerationRequest([1], Sampling(seed=7))
    assert seen.tgi_fields()["seed"] == "None"


def test_the_parameters_have_no_part_of_the_prompt() -> None:
    parameters = json.loads(done().tgi_fields()["parameters"])
    assert parameters["temperature"] == 0.5
    assert (parameters["max_new_tokens"], parameters["stop"]) == (20, ["x"])
    assert "prompt" not in parameters
    assert not {"biased_ids", "banned"} & parameters.keys()  # thousands of tokens


def test_a_request_that_was_refused_has_no_times() -> None:
    fields = made().tgi_fields()
    assert set(fields.values()) == {"", "None"}


async def test_tasks_of_a_request_have_its_record() -> None:
    async def look() -> RequestRecord | None:
        return record.current()

    seen = made()
    before = record.enter(seen)
    inside = asyncio.create_task(look())
    record.leave(before)
    assert await inside is seen
    assert await look() is None
