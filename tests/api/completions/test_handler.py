"""`/v1/completions`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.errors import GenerationError
from tgi_async.generation import FinishReason, Token, TopToken
from tgi_async.text.tokenizer import Tokenizer


async def test_answers_as_openai_does(api: Api, engine: FakeEngine) -> None:
    body = (await api.complete("Hi", max_tokens=9, model="any")).json()
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "tiny/model"
    assert body["choices"] == [
        {"index": 0, "text": "Hello there", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert engine.requests[0].max_new_tokens == 9
    assert not engine.requests[0].include_stop


async def test_several_prompts_have_a_choice_each_in_order(api: Api, engine: FakeEngine) -> None:
    body = (await api.complete(["a", "bb", "ccc"])).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [len(request.prompt) for request in engine.requests] == [1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 12


async def test_a_prompt_may_be_token_ids(api: Api, engine: FakeEngine) -> None:
    body = (await api.complete([72, 105], echo=True)).json()
    assert engine.requests[0].prompt == [72, 105]
    assert len(body["choices"]) == 1
    assert body["usage"]["prompt_tokens"] == 2


async def test_several_prompts_may_be_token_ids(
    api: Api, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    ids = [tokenizer.encode("Hi"), [257, *tokenizer.encode("é")]]
    response = await api.complete(ids, echo=True)
    assert [request.prompt for request in engine.requests] == ids
    texts = [choice["text"] for choice in response.json()["choices"]]
    assert texts == ["HiHello there", "<|im_end|>éHello there"]
    assert response.headers["x-compute-characters"] == str(2 + len("<|im_end|>é"))


@pytest.mark.parametrize(
    "prompt", [["Hi", 5], [5, [6]], ["Hi", [5]], [-1], [2**31], [[True]], [1.5], [[[1]]], [None]]
)
async def test_a_prompt_that_is_neither_is_refused(
    api: Api, engine: FakeEngine, prompt: Any
) -> None:
    reported = refusal(await api.complete(prompt))
    assert reported.startswith("Failed to deserialize the JSON body into the target type: ")
    assert engine.requests == []


async def test_no_token_ids_are_no_prompt(api: Api) -> None:
    assert refusal(await api.complete([[]])).endswith("`prompt` cannot be empty")


async def test_too_many_prompts_are_refused(api: Api) -> None:
    response = await api.complete(["a"] * 4)
    assert refusal(response) == (
        "Number of prompts exceeds the maximum allowed batch size of 3. "
        "The limit is set by the server's --max-client-batch-size"
    )
    assert response.json()["error"]["param"] == "prompt"
    assert response.json()["error_type"] == "batch size exceeded"


async def test_no_prompt_is_refused(api: Api) -> None:
    reported = refusal(await api.complete([]))
    assert "Empty array detected. Do not use an empty array for the prompt." in reported


async def test_suffix_is_refused(api: Api) -> None:
    response = await api.complete("Hi", suffix="!")
    assert refusal(response) == (
        "Suffix is not supported and can be achieved by preprocessing the prompt."
    )
    assert response.json()["error"]["param"] == "suffix"
    assert response.json()["error_type"] == "suffix not supported"


@pytest.mark.parametrize("fields", [{"echo": False}, {"logprobs": None}, {"n": 1}, {"best_of": 1}])
async def test_what_asks_for_nothing_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    assert (await api.complete("Hi", **fields)).status_code == 200


async def test_n_choices_of_each_prompt_are_numbered_through(api: Api, engine: FakeEngine) -> None:
    engine.batches_by_choice = {0: [words("x")], 1: [words("y")]}
    body = (await api.complete(["a", "bb"], n=2)).json()
    assert [(one["index"], one["text"]) for one in body["choices"]] == [
        (0, "x"),
        (1, "y"),
        (2, "x"),
        (3, "y"),
    ]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 4


async def test_n_choices_take_a_row_each(api: Api) -> None:
    assert (await api.complete(["a", "b"], n=2)).status_code == 200
    refused = await api.complete(["a", "b"], n=3)
    assert refused.status_code == 400
    assert "at most 4 generations (prompts times choices) at once. Given: 6" in refused.text


class TestBestOf:
    @pytest.fixture(autouse=True)
    def three_choices(self, engine: FakeEngine) -> None:
        engine.batches_by_choice = {
            choice: [[Token(1, f"{choice}", logprob, False)]]
            for choice, logprob in enumerate([-3.0, -1.0, -2.0])
        }

    async def test_the_likeliest_ones_are_reported(self, api: Api, engine: FakeEngine) -> None:
        body = (await api.complete("Hi", n=2, best_of=3)).json()
        assert [(one["index"], one["text"]) for one in body["choices"]] == [(0, "1"), (1, "2")]
        assert all(request.sampling.logprobs for request in engine.requests)
        assert body["choices"][0]["logprobs"] is None
        assert body["usage"]["completion_tokens"] == 3

    async def test_as_many_as_are_reported_stay_in_their_order(self, api: Api) -> None:
        body = (await api.complete("Hi", n=3, best_of=3)).json()
        assert [one["text"] for one in body["choices"]] == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"n": 2, "best_of": 1},
                "`best_of` must be >= `n`, which is 2, and <= 3. Given: 1. "
                "The limit is set by the server's --max-best-of",
            ),
            (
                {"best_of": 4},
                "`best_of` must be >= `n`, which is 1, and <= 3. Given: 4. "
                "The limit is set by the server's --max-best-of",
            ),
            (
                {"best_of": 2, "stream": True},
                "`best_of` != `n` is not supported when streaming tokens",
            ),
        ],
    )
    async def test_what_cannot_be_is_refused(
        self, api: Api, engine: FakeEngine, fields: dict[str, Any], message: str
    ) -> None:
        response = await api.complete("Hi", **fields)
        assert refusal(response) == f"Input validation error: {message}"
        assert engine.requests == []


TOLD = [
    [Token(1, "ab", -0.1, False, (TopToken(1, "ab", -0.1, False), TopToken(2, "x", -2.0, False)))],
    [Token(3, "", -0.2, False, (TopToken(4, "\ufffd", -0.3, False),))],
    [Token(5, "é", -0.4, False), EOS],
]


async def test_logprobs_are_openais_lists(api: Api, engine: FakeEngine) -> None:
    engine.batches = TOLD
    body = (await api.complete("Hi", logprobs=2)).json()
    assert body["choices"][0]["text"] == "abé"
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["ab", "", "é", "<|im_end|>"],
        "token_logprobs": [-0.1, -0.2, -0.4, -0.5],
        "top_logprobs": [
            {"ab": -0.1, "x": -2.0},
            {"": -0.2, "\ufffd": -0.3},
            {"é": -0.4},
            {"<|im_end|>": -0.5},
        ],
        "text_offset": [0, 2, 2, 3],
    }
    sampling = engine.requests[0].sampling
    assert (sampling.logprobs, sampling.top_n_tokens) == (True, 2)


async def test_logprobs_of_a_stream_go_on_where_the_last_chunk_ended(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.batches = TOLD
    *chunks, _ = events(await api.complete("Hi", logprobs=0, stream=True))
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert offsets == [[0], [2], [2, 3]]


async def test_more_logprobs_than_allowed_are_refused(api: Api) -> None:
    response = await api.complete("Hi", logprobs=6)
    assert "`logprobs` must be >= 0 and <= 5. Given: 6" in refusal(response)


async def test_echo_puts_the_prompt_before_the_text(api: Api, engine: FakeEngine) -> None:
    body = (await api.complete(["Hi", "Oh"], echo=True)).json()
    assert [one["text"] for one in body["choices"]] == ["HiHello there", "OhHello there"]
    assert not engine.requests[0].prompt_logprobs


async def test_echo_with_logprobs_tells_those_of_the_prompt(api: Api, engine: FakeEngine) -> None:
    engine.batches = [words("!")]
    prompt = "é <|im_end|>?"
    body = (await api.complete(prompt, echo=True, logprobs=0)).json()
    assert engine.requests[0].prompt_logprobs
    [choice] = body["choices"]
    assert choice["text"] == prompt + "!"
    # One token a byte: the first half of the character adds nothing to the text.
    assert choice["logprobs"] == {
        "tokens": ["", "é", " ", "<|im_end|>", "?", "!"],
        "token_logprobs": [None, -1.0, -1.0, -1.0, -1.0, -0.25],
        "top_logprobs": [
            None,
            {"é": -1.0},
            {" ": -1.0},
            {"<|im_end|>": -1.0},
            {"?": -1.0},
            {"!": -0.25},
        ],
        "text_offset": [0, 0, 1, 2, 12, 13],
    }
    assert engine.requests[0].prompt_top_n_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_tells_the_likeliest_tokens_of_the_prompt(
    api: Api, engine: FakeEngine, events: EventsOf, stream: bool
) -> None:
    response = await api.complete("Hi", echo=True, logprobs=2, stream=stream)
    body = events(response)[0] if stream else response.json()
    logprobs = body["choices"][0]["logprobs"]
    assert engine.requests[0].prompt_top_n_tokens == 2
    assert logprobs["tokens"][:2] == ["H", "i"]
    assert logprobs["top_logprobs"][:2] == [None, {"i": -1.0, "a": 0.0, "b": -0.5}]


async def test_the_likeliest_tokens_of_a_prompt_are_not_computed_where_nobody_asks(
    api: Api, engine: FakeEngine
) -> None:
    await api.complete("Hi", logprobs=2)
    await api.generate("Hi", decoder_input_details=True, top_n_tokens=2)
    assert [request.prompt_top_n_tokens for request in engine.requests] == [0, 0]


async def test_echo_in_a_stream_comes_with_the_first_chunk(api: Api, events: EventsOf) -> None:
    *chunks, _ = events(await api.complete("Hi", echo=True, logprobs=1, stream=True))
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert texts == ["HiHel", "lo there", ""]
    tokens = [chunk["choices"][0]["logprobs"]["tokens"] for chunk in chunks]
    assert tokens == [["H", "i", "Hel"], ["lo", " there"], ["<|im_end|>"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_without_new_tokens_scores_the_prompt(
    api: Api, engine: FakeEngine, events: EventsOf, stream: bool
) -> None:
    engine.batches, engine.finish_reason = [words("x")], "length"
    response = await api.complete("Hi", echo=True, logprobs=0, max_tokens=0, stream=stream)
    body = events(response)[0] if stream else response.json()
    [choice] = body["choices"]
    assert choice["text"] == "Hi"
    assert choice["logprobs"]["tokens"] == ["H", "i"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 0
    assert body["usage"]["total_tokens"] == 2
    assert engine.requests[0].max_new_tokens == 1


async def test_no_new_tokens_without_echo_are_refused(api: Api) -> None:
    response = await api.complete("Hi", max_tokens=0)
    assert refusal(response).endswith("`max_tokens` must be strictly positive")


class TestStrictTgi:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_fields_that_tgi_ignores_do_nothing(self, api: Api, engine: FakeEngine) -> None:
        ignored: dict[str, Any] = {
            "n": 2,
            "best_of": 9,
            "echo": True,
            "logprobs": 2,
            "presence_penalty": 9,
        }
        ignored |= {"logit_bias": {"1": 1}, "min_p": 0.5, "top_k": 3}
        body = (await api.complete("Hi", **ignored, frequency_penalty=0.5)).json()
        [choice] = body["choices"]
        assert (choice["text"], choice["logprobs"]) == ("Hello there", None)
        [request] = engine.requests
        assert request.include_stop
        sampling = request.sampling
        assert (sampling.frequency_penalty, sampling.output_frequency_penalty) == (0.5, 0.0)
        assert (sampling.top_k, sampling.min_p, sampling.biased_ids) == (0, 0.0, [])
        assert sampling.output_presence_penalty == 0.0

    @pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "length"])
    async def test_finish_reasons_of_a_stream_are_the_engines(
        self, api: Api, engine: FakeEngine, events: EventsOf, reason: FinishReason
    ) -> None:
        engine.finish_reason = reason
        options = {"include_usage": True}
        *chunks, _ = events(await api.complete("Hi", stream=True, stream_options=options))
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == ["", "", reason]
        assert "usage" in chunks[-1]


async def test_stream_ends_each_prompt_with_its_reason_and_usage(
    api: Api, events: EventsOf
) -> None:
    *chunks, done = events(await api.complete("Hi", stream=True))
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == "Hello there"
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert ["usage" in chunk for chunk in chunks] == [False, False, True]
    assert chunks[-1]["usage"]["total_tokens"] == 6


async def test_stream_of_several_prompts_has_all_of_each(api: Api, events: EventsOf) -> None:
    *chunks, _ = events(await api.complete(["a", "b"], stream=True))
    for index in (0, 1):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in choices) == "Hello there"
        assert choices[-1]["finish_reason"] == "stop"


async def test_usage_comes_once_for_all_prompts_where_asked(api: Api, events: EventsOf) -> None:
    options = {"include_usage": True}
    *chunks, last, _ = events(await api.complete(["a", "b"], stream=True, stream_options=options))
    assert not any("usage" in chunk for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 2
    assert last["usage"]["completion_tokens"] == 8


async def test_a_failure_of_one_prompt_ends_the_stream_and_the_others(
    api: Api, engine: FakeEngine, events: EventsOf
) -> None:
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    *_, failure, done = events(await api.complete(["a", "b"], stream=True))
    assert failure["error"]["http_status_code"] == 424
    assert done == "[DONE]"
    assert all(generation.cancelled for generation in engine.generations)


async def test_a_stream_over_capacity_is_a_429(api: Api, engine: FakeEngine) -> None:
    engine.reserve("other", 2, 0, lambda: None)
    response = await api.complete(["a"] * 3, stream=True)
    assert response.status_code == 429
    assert response.json()["error"] == {
        "message": "Model is overloaded: it serves 4 requests at once "
        "(--max-concurrent-requests), and none may wait (--max-queued-requests 0)",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }


async def test_a_refused_prompt_leaves_none_running(api: Api, engine: FakeEngine) -> None:
    assert "your prompt resulted in 101 tokens" in refusal(await api.complete(["fits", "a" * 101]))
    assert engine.requests == []
