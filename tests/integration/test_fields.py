"""What fields of vLLM's and others' do to the real model's texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
)

from tests.integration.prompts import mixed
from tests.integration.reference import Reference
from tests.integration.running_engine import BLOCK_SIZE, finish_all, running_engine
from tests.integration.server import Server
from tgi_async.generation import GenerationRequest
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling

pytestmark = pytest.mark.model

FRANCE = "The capital of France is"
END = "<|im_end|>"


def processors(prompt: list[int], sampling: Sampling, ends: list[int]) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if sampling.banned:
        made.append(NoBadWordsLogitsProcessor(sampling.banned, eos_token_id=ends))
    if sampling.min_tokens:
        made.append(MinNewTokensLengthLogitsProcessor(len(prompt), sampling.min_tokens, ends))
    return made


@pytest.mark.full
async def test_min_tokens_and_bad_words_are_transformers_also_when_preempted(
    model_folder: Path, reference: Reference, tokenizer: Tokenizer
) -> None:
    (end,) = tokenizer.encode(END)
    cases = mixed(tokenizer, 4, longest=40, new_tokens=(40, 40))
    longest = max(len(case.prompt) + case.max_new_tokens for case in cases)
    async with running_engine(
        model_folder, n_blocks=longest // BLOCK_SIZE + 2, crowded=True
    ) as engine:
        plain = await finish_all(
            engine,
            [GenerationRequest(case.prompt, Sampling(), max_new_tokens=8) for case in cases],
            within=0.0,
        )
        # Of what each would say: a token that ends it, one that is banned, and a pair.
        asked = [
            GenerationRequest(
                case.prompt,
                Sampling(min_tokens=12, banned=[text.tokens[3:4], text.tokens[5:7]]),
                max_new_tokens=case.max_new_tokens,
                stop_token_ids=(text.tokens[2],),
            )
            for case, text in zip(cases, plain, strict=True)
        ]
        texts = await finish_all(engine, asked, within=0.0)
        assert engine.core.n_preemptions > 0

    for request, text in zip(asked, texts, strict=True):
        # The model's own end is among those that may not come, as in transformers.
        ends = [end, *request.stop_token_ids]
        made = processors(request.prompt, request.sampling, ends)
        reference.compare(request.prompt, text.tokens, made)
        assert len(text.tokens) > 12
        assert not set(ends) & set(text.tokens[:12])
        assert (text.tokens[-1] in ends) == (text.finish_reason == "eos_token")
    assert "eos_token" in {text.finish_reason for text in texts}


def test_the_reference_is_what_generate_says(reference: Reference, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(FRANCE)
    (end,) = tokenizer.encode(END)
    plain = reference.generate(prompt, 6)
    sampling = Sampling(min_tokens=6, banned=[[plain[0]], plain[3:5]])
    emitted = reference.generate(
        prompt, 8, min_new_tokens=6, bad_words_ids=sampling.banned, ends=[end, plain[2]]
    )
    assert emitted[: len(plain)] != plain
    assert reference.compare(prompt, emitted, processors(prompt, sampling, [end, plain[2]])) == 0
    with pytest.raises(AssertionError, match="token 0 of 6"):
        reference.compare(prompt, plain, processors(prompt, sampling, [end, plain[2]]))


@pytest.fixture(scope="module")
def ask(server: Server) -> Any:
    """Answers of a completion, or of a chat for messages: choices, whole and from a stream."""
    client = httpx.Client(base_url=server.url, timeout=60)

    def choices(prompt: Any, **fields: Any) -> list[dict[str, Any]]:
        chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        body = {"messages" if chat else "prompt": prompt, "temperature": 0, "max_tokens": 16}
        reply = client.post(path, json={**body, **fields})
        assert reply.status_code == 200, reply.text
        assert "x-tgi-ignored" not in reply.headers
        reported = [
            {
                "text": one["message"]["content"] if chat else one["text"],
                "finish_reason": one["finish_reason"],
            }
            for one in reply.json()["choices"]
        ]
        streamed: dict[int, dict[str, Any]] = {}
        with client.stream("POST", path, json={**body, **fields, "stream": True}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data: {"):
                    continue
                for one in json.loads(line[6:])["choices"]:
                    into = streamed.setdefault(one["index"], {"text": "", "finish_reason": None})
                    piece = one["delta"].get("content") if chat else one["text"]
                    into["text"] += piece or ""
                    into["finish_reason"] = one["finish_reason"] or into["finish_reason"]
        assert [streamed[index] for index in sorted(streamed)] == reported
        return reported

    yield choices
    client.close()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_text_ends_where_a_token_is_named(ask: Any, tokenizer: Tokenizer) -> None:
    [free] = ask(FRANCE)
    ids = tokenizer.encode(free["text"])
    place = next(i for i in range(3, len(ids)) if ids[i] not in ids[:i])
    ended = {"text": tokenizer.decode(ids[:place]), "finish_reason": "stop"}
    asked = {"stop_token_ids": [ids[place]]}
    assert ask(FRANCE, **asked, n=2) == [ended] * 2
    [shown] = ask(FRANCE, **asked, include_stop_str_in_output=True)
    assert shown == {**ended, "text": tokenizer.decode(ids[: place + 1])}
    assert ask(FRANCE, **asked, min_tokens=16)[0]["finish_reason"] == "length"


def test_a_stop_sequence_is_shown_where_it_is_asked_for(ask: Any) -> None:
    [free] = ask(FRANCE)
    stop = free["text"][5:8]
    before = free["text"][: free["text"].index(stop)]
    [cut] = ask(FRANCE, stop=[stop])
    [shown] = ask(FRANCE, stop=[stop], include_stop_str_in_output=True)
    assert (cut["text"], shown["text"]) == (before, before + stop)
    [late] = ask(FRANCE, stop=[stop], min_tokens=16)
    assert late == {**free, "finish_reason": "length"}


def test_words_do_not_come(ask: Any) -> None:
    [free] = ask(FRANCE)
    words = re.findall(r"[A-Za-z]{3,}", free["text"])
    [without] = ask(FRANCE, max_tokens=16, bad_words=words)
    assert not set(re.findall(r"[A-Za-z]+", without["text"])) & set(words)
    assert len(without["text"]) > 16


def test_a_chat_goes_on_to_min_tokens_and_shows_its_marks(ask: Any) -> None:
    question = user("What is 1 + 1? Answer with one number.")
    [answer] = ask(question, max_tokens=32)
    assert answer["finish_reason"] == "stop"
    assert END not in answer["text"]
    [longer] = ask(question, max_tokens=32, min_tokens=28)
    assert len(longer["text"]) > len(answer["text"])
    [shown] = ask(question, max_tokens=32, ignore_eos=True, skip_special_tokens=False)
    assert shown["text"].startswith(answer["text"] + END)
    [hidden] = ask(question, max_tokens=32, skip_special_tokens=False)
    assert hidden == answer
    [end] = ask(question, max_tokens=32, skip_special_tokens=False, include_stop_str_in_output=True)
    assert end["text"] == answer["text"] + END


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"guided_choice": ["Berlin", "Rome", "Oslo"]}, "Berlin|Rome|Oslo"),
        ({"guided_regex": "[A-Z][a-z]{3,9}!"}, "[A-Z][a-z]{3,9}!"),
        ({"guided_grammar": 'root ::= " " [A-Z] [a-z]+ "."'}, r" [A-Z][a-z]+\."),
        ({"structured_outputs": {"grammar": 'start: "<" /[a-z]+/ ">"'}}, "<[a-z]+>"),
        (
            {"response_format": {"type": "json_object", "schema": {"enum": [1, "two"]}}},
            '1|"two"',
        ),
        (
            {
                "structural_tag": {
                    "format": {
                        "type": "triggered_tags",
                        "triggers": ["<city"],
                        "tags": [
                            {
                                "type": "tag",
                                "begin": "<city>",
                                "content": {"type": "regex", "pattern": "[A-Z][a-z]+"},
                                "end": "</city>",
                            }
                        ],
                        "at_least_one": True,
                        "stop_after_first": True,
                    }
                }
            },
            "<city>[A-Z][a-z]+</city>",
        ),
    ],
)
def test_texts_are_held_to_what_is_asked(ask: Any, fields: dict[str, Any], form: str) -> None:
    prompt = user(FRANCE) if "response_format" in fields else FRANCE
    for one in ask(prompt, n=2, max_tokens=24, temperature=1.5, seed=3, **fields):
        assert re.fullmatch(form, one["text"]), one
        assert one["finish_reason"] == "stop"


def test_a_grammar_counts_more_than_min_tokens_and_bad_words(ask: Any) -> None:
    asked = {"guided_choice": ["Paris"], "min_tokens": 12, "bad_words": ["Paris"]}
    assert ask(FRANCE, **asked) == [{"text": "Paris", "finish_reason": "stop"}]
    # What can go on goes on.
    [longer] = ask(FRANCE, guided_regex="[a-z ]+", min_tokens=12)
    assert longer["finish_reason"] == "length"


def test_prompts_are_scored_as_in_an_echo(server: Server, tokenizer: Tokenizer) -> None:
    body = {"prompt": FRANCE, "max_tokens": 1, "temperature": 0}
    asked = {**body, "echo": True, "logprobs": 2, "prompt_logprobs": 2}
    [choice] = httpx.post(f"{server.url}/v1/completions", json=asked).json()["choices"]
    ids = tokenizer.encode(FRANCE)
    scores = choice["prompt_logprobs"]
    assert scores[0] is None
    for place in range(1, len(ids)):
        own = scores[place][str(ids[place])]
        assert own["logprob"] == choice["logprobs"]["token_logprobs"][place]
        assert own["decoded_token"] == tokenizer.token_text(ids[place])
        by_rank = sorted(scores[place].values(), key=lambda one: one["rank"])
        assert [one["rank"] for one in by_rank[:2]] == [1, 2]
        assert by_rank == sorted(by_rank, key=lambda one: -one["logprob"])
        assert len(by_rank) == (2 if own["rank"] <= 2 else 3)


def test_a_prompt_that_is_cut_is_another_prompt(ask: Any, tokenizer: Tokenizer) -> None:
    long = "One two three four five six. " * 20 + FRANCE
    kept = len(tokenizer.encode(FRANCE)) + 1
    assert ask(long, truncate_prompt_tokens=kept) == ask(tokenizer.encode(long)[-kept:])
