"""What both OpenAI routes take and answer."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import processors

from tests.api.conftest import Api, Ask, EventsOf, Settings, refusal
from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_engine import EOS, FakeEngine, words
from tgi_async.errors import GenerationError, Overloaded
from tgi_async.generation import FinishReason
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.text.tokenizer import Tokenizer

BEST_OF = "The limit is set by the server's --max-best-of"


@pytest.fixture(params=["chat", "complete"])
def ask(api: Api, request: pytest.FixtureRequest) -> Ask:
    """One of the routes."""
    return api.chat if request.param == "chat" else api.complete


async def test_penalties_are_openais(ask: Ask, engine: FakeEngine) -> None:
    await ask("Hi", frequency_penalty=0.5, presence_penalty=-1.5)
    sampling = engine.requests[0].sampling
    assert sampling.output_frequency_penalty == 0.5
    assert sampling.output_presence_penalty == -1.5
    assert (sampling.frequency_penalty, sampling.repetition_penalty) == (0.0, 1.0)


async def test_logit_bias_maps_token_ids(ask: Ask, engine: FakeEngine) -> None:
    await ask("Hi", logit_bias={"5": -100, "70000": 1.5})
    sampling = engine.requests[0].sampling
    assert (sampling.biased_ids, sampling.biases) == ([5, 70000], [-100.0, 1.5])


async def test_a_request_without_these_has_the_neutral_values(ask: Ask, engine: FakeEngine) -> None:
    await ask("Hi", temperature=0)
    sampling = engine.requests[0].sampling
    assert not sampling.do_sample
    assert (sampling.output_frequency_penalty, sampling.output_presence_penalty) == (0.0, 0.0)
    assert (sampling.biased_ids, sampling.biases) == ([], [])
    assert not sampling.model_logprobs


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": 1}])
async def test_log_probabilities_are_the_models_own(
    api: Api, engine: FakeEngine, fields: dict[str, Any]
) -> None:
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
            {"logit_bias": {str(id): 1 for id in range(1025)}},
            "`logit_bias` supports up to 1024 tokens. Given: 1025",
        ),
        ({"logit_bias": [1.0]}, "`logit_bias` must map token ids to numbers. Given: a list"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_rule_is_reported_before_a_stream(
    ask: Ask, engine: FakeEngine, fields: dict[str, Any], message: str, stream: bool
) -> None:
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
        {"logit_bias": {str(id): 1 for id in range(1023)} | {"1023": 100}},
        {"logit_bias": {str(2**31 - 1): -100}},
        {"n": None, "logit_bias": None, "presence_penalty": None, "stop": None},
    ],
)
async def test_values_at_their_limits_are_accepted(ask: Ask, fields: dict[str, Any]) -> None:
    assert (await ask("Hi", **fields)).status_code == 200


async def test_the_last_choice_to_end_ends_the_stream(
    ask: Ask, engine: FakeEngine, events: EventsOf
) -> None:
    *chunks, done = events(await ask("Hi", n=3, stream=True))
    assert done == "[DONE]"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons.count("stop") == 3
    assert reasons[-1] == "stop"


async def test_a_failure_of_one_choice_ends_all(
    ask: Ask, engine: FakeEngine, events: EventsOf
) -> None:
    engine.error, engine.fail_before = GenerationError("no luck"), 1
    *_, failure, done = events(await ask("Hi", n=2, stream=True))
    assert failure["error"]["http_status_code"] == 424
    assert done == "[DONE]"
    assert all(generation.cancelled for generation in engine.generations)


def begins_with_a_mark() -> Tokenizer:
    """Puts `<|im_start|>` before a text."""
    inner = tiny_inner()
    inner.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 256)]
    )
    return Tokenizer(inner)


class TestFieldsOfVllm:
    async def test_ends_and_bans_reach_the_engine(
        self, ask: Ask, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await ask(
            "Hi",
            max_tokens=9,
            min_tokens=5,
            stop_token_ids=[7, 9],
            bad_words=["ab", " c", "ab"],
            include_stop_str_in_output=True,
        )
        [request] = engine.requests
        assert request.sampling.min_tokens == 5
        assert request.stop_token_ids == (7, 9)
        encode = tokenizer.encode
        # A space makes one token more of a word here: those of a byte each are not what is meant.
        assert request.sampling.banned == [encode("ab"), encode("c")]
        assert request.include_stop

    async def test_without_them_nothing_is_asked_for(self, ask: Ask, engine: FakeEngine) -> None:
        await ask("Hi", min_tokens=None, stop_token_ids=None, bad_words=None, no_stop_trim=False)
        [request] = engine.requests
        assert (request.sampling.min_tokens, request.sampling.banned) == (0, [])
        assert (request.stop_token_ids, request.special_texts, request.include_stop) == (
            (),
            {},
            False,
        )
        assert not request.prompt_logprobs

    async def test_special_tokens_are_shown(
        self, ask: Ask, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        await ask("Hi", skip_special_tokens=False)
        await ask("Hi", skip_special_tokens=True)
        shown = [request.special_texts for request in engine.requests]
        assert shown == [tokenizer.special_texts, {}]

    async def test_a_prompt_is_cut(
        self, ask: Ask, engine: FakeEngine, tokenizer: Tokenizer
    ) -> None:
        text = "".join(chr(97 + i % 26) for i in range(150))
        whole = text
        if ask.__name__ == "chat":
            whole = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for fields, kept in (
            ({"truncate_prompt_tokens": 3}, slice(-3, None)),
            ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, slice(-3, None)),
            ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, slice(3)),
            ({"truncate_prompt_tokens": -1, "max_tokens": 100}, slice(-28, None)),
            ({"truncate_prompt_tokens": -1, "max_tokens": 5}, slice(-100, None)),
            ({"truncate_prompt_tokens": -1}, slice(-100, None)),
            ({"truncate_prompt_tokens": 99}, slice(-99, None)),
        ):
            assert (await ask(text, **fields)).status_code == 200
            assert engine.requests.pop().prompt == tokenizer.encode(whole)[kept]

    async def test_an_echo_is_what_was_kept(self, api: Api) -> None:
        response = await api.complete("abcdef", echo=True, truncate_prompt_tokens=2)
        assert response.json()["choices"][0]["text"].startswith("efHello")

    async def test_names_of_max_tokens(self, ask: Ask, engine: FakeEngine) -> None:
        for name in ("max_completion_tokens", "max_tokens", "max_new_tokens", "n_predict"):
            await ask("Hi", **{name: 7})
            assert engine.requests.pop().max_new_tokens == 7

    async def test_the_newest_name_counts_and_llama_cpps_minus_1_is_no_limit(
        self, ask: Ask, engine: FakeEngine
    ) -> None:
        await ask("Hi", max_tokens=5, max_completion_tokens=6, max_new_tokens=7)
        await ask("Hi", n_predict=-1)
        assert engine.requests[0].max_new_tokens == 6
        assert engine.requests[1].max_new_tokens == 128 - len(engine.requests[1].prompt)

    async def test_a_broken_rule_is_reported(self, ask: Ask, engine: FakeEngine) -> None:
        for fields, message in (
            (
                {"min_tokens": 9, "max_tokens": 8},
                "`min_tokens` must be <= `max_tokens`, which is 8. Given: 9",
            ),
            ({"min_tokens": 128}, "`min_tokens` must be < 128, which is as long as a prompt and"),
            ({"prompt_logprobs": 6}, "`prompt_logprobs` must be >= 0 and <= 5. Given: 6"),
            (
                {"truncate_prompt_tokens": 0},
                "`truncate_prompt_tokens` must be -1, or from 1 to 100. Given: 0",
            ),
            (
                {"truncate_prompt_tokens": 101},
                "`truncate_prompt_tokens` must be -1, or from 1 to 100. Given: 101",
            ),
            ({"truncation_side": "right"}, "`truncation_side` needs `truncate_prompt_tokens`"),
            (
                {"bad_words": ["x"] * 513},
                "`bad_words` supports up to 512 words. Given: 513",
            ),
            (
                {"bad_words": [" "]},
                "`bad_words` must be words of 1 to 64 tokens. Given: ' ', which has 0",
            ),
            (
                {"bad_words": ["y" * 65]},
                f"`bad_words` must be words of 1 to 64 tokens. Given: '{'y' * 40}', which has 65",
            ),
        ):
            response = await ask("Hi", **fields)
            assert refusal(response).startswith(f"Input validation error: {message}")
        assert engine.requests == []

    async def test_numbers_are_bounded(self, ask: Ask) -> None:
        for name, value in (
            ("stop_token_ids", [-1]),
            ("stop_token_ids", [2**31]),
            ("stop_token_ids", [1] * 257),
            ("truncate_prompt_tokens", -2),
            ("truncation_side", "middle"),
            ("prompt_logprobs", -1),
            ("min_tokens", -1),
        ):
            response = await ask("Hi", **{name: value})
            assert response.status_code == 400
            assert name in response.text

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("n", [1, 2])
    async def test_prompt_logprobs_are_in_vllms_form(
        self,
        ask: Ask,
        engine: FakeEngine,
        events: EventsOf,
        tokenizer: Tokenizer,
        stream: bool,
        n: int,
    ) -> None:
        response = await ask("abc", prompt_logprobs=2, n=n, stream=stream)
        one, *others = engine.requests
        assert (one.prompt_logprobs, one.prompt_top_n_tokens) == (True, 2)
        assert not any(other.prompt_logprobs for other in others)
        chunks = events(response)[:-1] if stream else [response.json()]
        places = [
            place
            for chunk in chunks
            for place in ([chunk] if "chat" in chunk["object"] else chunk["choices"])
            if "prompt_logprobs" in place
        ]
        whole = "chat" in chunks[0]["object"] or stream
        assert len(places) == (1 if whole else n)
        id = one.prompt[1]
        likeliest = {
            "97": {"logprob": 0.0, "rank": 1, "decoded_token": "a"},
            "98": {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
        }
        own = {str(id): {"logprob": -1.0, "rank": 2, "decoded_token": tokenizer.token_text(id)}}
        for place in places:
            first, second, *others = place["prompt_logprobs"]
            assert (first, len(others)) == (None, len(one.prompt) - 2)
            assert second == likeliest | own

    async def test_prompt_logprobs_beside_an_echo_are_as_many_as_asked_for(self, api: Api) -> None:
        response = await api.complete("abc", prompt_logprobs=2, echo=True, logprobs=1)
        [choice] = response.json()["choices"]
        assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:3]] == [2, 2]
        assert [len(place) for place in choice["prompt_logprobs"][1:]] == [3, 3]

    @pytest.mark.parametrize("tokenizer", [begins_with_a_mark()])
    async def test_special_tokens_before_a_prompt_are_the_routes_or_as_asked_for(
        self, api: Api, engine: FakeEngine
    ) -> None:
        for ask, added in ((api.complete, True), (api.chat, False)):
            for asked in (None, True, False):
                await ask("Hi", add_special_tokens=asked)
                marked = engine.requests[-1].prompt[:2].count(256)
                # The template of a chat writes one itself.
                assert marked == (added if asked is None else asked) + (ask == api.chat)

    async def test_an_empty_suffix_asks_for_nothing(self, api: Api) -> None:
        assert (await api.complete("Hi", suffix="")).status_code == 200

    @pytest.mark.usefixtures("as_tgi")
    async def test_tgi_refuses_an_empty_suffix_too(self, api: Api) -> None:
        assert (await api.complete("Hi", suffix="")).status_code == 422


class TestUsage:
    """Tokens that were not computed, of each prompt once."""

    @pytest.fixture(autouse=True)
    def cached(self, engine: FakeEngine) -> None:
        engine.n_cached = 5

    async def test_cached_tokens_are_reported(self, ask: Ask, events: EventsOf) -> None:
        assert (await ask("Hi", n=3)).json()["usage"]["prompt_tokens_details"] == {
            "cached_tokens": 5
        }
        streamed = await ask("Hi", n=3, stream=True, stream_options={"include_usage": True})
        *_, last, _ = events(streamed)
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}

    async def test_those_of_several_prompts_are_added(self, api: Api, events: EventsOf) -> None:
        body = (await api.complete(["a", "b"], n=2)).json()
        assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 10}
        options = {"include_usage": True}
        *_, last, _ = events(
            await api.complete(["a", "b"], n=2, stream=True, stream_options=options)
        )
        assert last["usage"] == body["usage"]

    async def test_a_stream_of_completions_tells_those_of_each(
        self, api: Api, events: EventsOf
    ) -> None:
        *chunks, _ = events(await api.complete(["a", "b"], stream=True))
        reported = [chunk["usage"] for chunk in chunks if "usage" in chunk]
        assert [one["prompt_tokens_details"] for one in reported] == [{"cached_tokens": 5}] * 2

    @pytest.fixture
    def speculating(self, settings: Settings) -> None:
        settings.max_drafts = 3

    @pytest.mark.usefixtures("speculating")
    async def test_drafts_of_all_choices_are_reported(self, ask: Ask, events: EventsOf) -> None:
        details = (await ask("Hi", n=3)).json()["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] == 6
        assert details["rejected_prediction_tokens"] == 9
        streamed = await ask("Hi", n=3, stream=True, stream_options={"include_usage": True})
        *_, last, _ = events(streamed)
        assert last["usage"]["completion_tokens_details"] == details

    @pytest.mark.usefixtures("speculating")
    async def test_a_stream_of_completions_tells_the_drafts_of_each(
        self, api: Api, events: EventsOf
    ) -> None:
        *chunks, _ = events(await api.complete(["a", "b"], stream=True))
        reported = [chunk["usage"] for chunk in chunks if "usage" in chunk]
        expected = {"accepted_prediction_tokens": 2, "rejected_prediction_tokens": 3}
        assert [one["completion_tokens_details"] for one in reported] == [expected] * 2

    @pytest.mark.usefixtures("speculating")
    async def test_tokens_that_drafts_brought_together_have_an_event_each(
        self, ask: Ask, engine: FakeEngine, events: EventsOf
    ) -> None:
        engine.batches = [words("a", "b", "c"), [*words("d"), EOS]]
        *chunks, _ = events(await ask("Hi", stream=True))
        assert len(chunks) == 5
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * 4 + ["stop"]

    async def test_without_speculation_there_is_nothing_of_drafts(self, ask: Ask) -> None:
        assert "prediction" not in (await ask("Hi")).text

    @pytest.mark.usefixtures("speculating")
    async def test_whose_a_request_is_is_told_where_drafts_are_made(
        self, ask: Ask, engine: FakeEngine, settings: Settings
    ) -> None:
        await ask("Hi")
        settings.max_drafts = 0
        await ask("Hi")
        assert [bool(one.tenant) for one in engine.requests] == [True, False]

    async def test_tgi_has_no_details(self, ask: Ask, settings: Settings) -> None:
        settings.strict_tgi = True
        usage = (await ask("Hi")).json()["usage"]
        assert usage.keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


class TestStrictTgi:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"top_p": 1.0}, "Input validation error: `top_p` must be > 0.0 and < 1.0"),
            ({"max_tokens": 0}, "Input validation error: `max_new_tokens` must be strictly"),
        ],
    )
    async def test_what_is_wrong_is_reported_in_the_stream(
        self, ask: Ask, events: EventsOf, fields: dict[str, Any], message: str
    ) -> None:
        response = await ask("Hi", stream=True, **fields)
        assert response.status_code == 200
        [failure, done] = events(response)
        assert failure["error"]["message"].startswith(message)
        assert failure["error"]["http_status_code"] == 422
        assert done == "[DONE]"
        assert (await ask("Hi", **fields)).status_code == 422

    async def test_overload_is_reported_in_the_stream(
        self, ask: Ask, engine: FakeEngine, events: EventsOf
    ) -> None:
        engine.refusal = Overloaded()
        response = await ask("Hi", stream=True)
        assert response.status_code == 200
        assert events(response)[0]["error"] == {
            "message": "Model is overloaded",
            "http_status_code": 422,
        }

    async def test_any_failure_in_a_stream_says_422(
        self, ask: Ask, engine: FakeEngine, events: EventsOf
    ) -> None:
        engine.error, engine.fail_before = GenerationError("no luck"), 1
        *_, failure, _ = events(await ask("Hi", stream=True))
        assert failure["error"]["http_status_code"] == 422

    @pytest.mark.parametrize(
        ("reason", "shown"),
        [("eos_token", "stop"), ("stop_sequence", "stop_sequence"), ("length", "length")],
    )
    async def test_a_stop_sequence_is_a_reason_and_stays_in_the_text(
        self, ask: Ask, engine: FakeEngine, reason: FinishReason, shown: str
    ) -> None:
        engine.finish_reason = reason
        assert (await ask("Hi", stop=["END"])).json()["choices"][0]["finish_reason"] == shown
        assert engine.requests[0].include_stop

    async def test_the_frequency_penalty_is_tgis(self, ask: Ask, engine: FakeEngine) -> None:
        await ask("Hi", frequency_penalty=0.5)
        sampling = engine.requests[0].sampling
        assert (sampling.frequency_penalty, sampling.output_frequency_penalty) == (0.5, 0.0)

    async def test_log_probabilities_are_of_the_processed_distribution(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.chat("Hi", logprobs=True)
        sampling = engine.requests[0].sampling
        assert sampling.logprobs
        assert not sampling.model_logprobs

    async def test_a_presence_penalty_of_a_chat_is_a_repetition_penalty(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.chat("Hi", presence_penalty=0.0)
        assert engine.requests[0].sampling.repetition_penalty == 2.0
        response = await api.chat("Hi", presence_penalty=-2.0)
        assert response.json()["error"].endswith("`repetition_penalty` must be strictly positive")

    async def test_fields_of_a_chat_that_tgi_ignores_do_nothing(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.chat("Hi", n=9, logit_bias={"x": 1}, top_k=-7, min_p=9, repetition_penalty=0)
        [request] = engine.requests
        assert (request.sampling.top_k, request.sampling.min_p) == (0, 0.0)


class TestLeftOpen:
    """What is sampled where a request leaves the temperature open."""

    @pytest.fixture
    def greedy_makers(self, settings: Settings) -> None:
        settings.sampling_defaults = SamplingDefaults(temperature=0.0)

    async def test_makers_who_recommend_the_likeliest_token(
        self, ask: Ask, engine: FakeEngine, greedy_makers: None
    ) -> None:
        await ask("Hi", seed=1)
        assert not engine.requests.pop().sampling.do_sample

    @pytest.mark.parametrize(
        "fields",
        [{"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"typical_p": 0.5}, {"n": 2}],
    )
    async def test_a_request_that_asks_for_sampling_has_it(
        self, ask: Ask, engine: FakeEngine, greedy_makers: None, fields: dict[str, Any]
    ) -> None:
        await ask("Hi", **fields)
        assert engine.requests.pop().sampling.do_sample

    @pytest.mark.parametrize("fields", [{"top_p": 1}, {"top_k": -1}, {"min_p": 0}, {"n": 1}])
    async def test_one_that_turns_it_off_has_not(
        self, ask: Ask, engine: FakeEngine, greedy_makers: None, fields: dict[str, Any]
    ) -> None:
        await ask("Hi", **fields)
        assert not engine.requests.pop().sampling.do_sample

    async def test_wrong_values_are_wrong_all_the_same(self, ask: Ask, greedy_makers: None) -> None:
        assert "`top_p` must be" in refusal(await ask("Hi", top_p=2))
        assert "`top_p` must be" in refusal(await ask("Hi", top_p=2, temperature=0))

    @pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"temperature": 0.7}])
    async def test_a_top_p_of_0_is_greedy(
        self, ask: Ask, engine: FakeEngine, fields: dict[str, Any]
    ) -> None:
        assert (await ask("Hi", top_p=0, **fields)).status_code == 200
        assert not engine.requests.pop().sampling.do_sample

    @pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"temperature": 0.7}])
    @pytest.mark.usefixtures("as_tgi")
    async def test_tgi_refuses_a_top_p_of_0(self, ask: Ask, fields: dict[str, Any]) -> None:
        assert (await ask("Hi", top_p=0, **fields)).status_code == 422

    async def test_max_tokens_of_minus_1_are_no_limit(self, ask: Ask, engine: FakeEngine) -> None:
        for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
            assert (await ask("Hi", **{name: -1})).status_code == 200
            assert (engine.requests.pop().max_new_tokens or 0) > 100
            assert (await ask("Hi", **{name: -2})).status_code == 400

    @pytest.mark.usefixtures("as_tgi")
    async def test_tgi_refuses_max_tokens_of_minus_1(self, ask: Ask) -> None:
        assert (await ask("Hi", max_tokens=-1)).status_code == 422
