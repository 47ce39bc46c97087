"""Every rule of TGI's validation: its message, status, error_type and place in the order.

All rows run with `strict_tgi` and without. A row that does not hold says in `here` what is answered
instead, in `strict` what is answered with `strict_tgi`, and in `documented` where the table of
differences tells so.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.api.waiting import until
from tests.doubles.fake_engine import FakeEngine
from tgi_async.grammar.checker import GrammarChecker

DOCS = Path(__file__).parents[2] / "docs"
UNSUPPORTED = "grammar is not supported"
SCHEMA = "`grammar`: a schema must be an object or a boolean, at #"
TYPE = (
    "`type` at #/properties/a must be one of null, boolean, number, string, array, object, "
    "integer, or a list of different ones"
)
ANCHORS = (
    "keyword `pattern` at #/properties/a is not supported: `\\A` and `\\Z` are written `^` and `$`"
)
SAMPLED = {"best_of": 2, "do_sample": True}


class Row(NamedTuple):
    """`message` is TGI's; `limits` change the server's settings.

    `flag` is what sets the limit that the message is about: only TGI does not say.
    """

    message: str
    parameters: dict[str, Any] = {}  # noqa: RUF012
    inputs: str = "Hi"
    stream: bool = False
    limits: dict[str, Any] = {}  # noqa: RUF012
    here: str = ""
    strict: str = ""
    documented: str = ""
    flag: str = ""

    def answer(self, *, strict_tgi: bool) -> str:
        instead = self.strict if strict_tgi else self.here
        set_by = f". The limit is set by the server's {self.flag}"
        return (
            f"Input validation error: {instead or self.message}"
            f"{set_by if self.flag and not strict_tgi else ''}"
        )


ROWS = [
    Row(
        "`best_of` must be > 0 and <= 3. Given: 4",
        {"best_of": 4, "do_sample": True},
        flag="--max-best-of",
    ),
    Row(
        "`best_of` != 1 is not allowed for this endpoint",
        SAMPLED,
        limits={"max_best_of": 1},
        flag="--max-best-of",
    ),
    Row("you must use sampling when `best_of` is > 1", {"best_of": 2}),
    Row("`seed` must not be set when `best_of` > 1", {**SAMPLED, "seed": 1}),
    Row("`best_of` != 1 is not supported when streaming tokens", SAMPLED, stream=True),
    Row(
        "`decoder_input_details` == true is not supported when streaming tokens",
        {"decoder_input_details": True},
        stream=True,
    ),
    *(Row("`temperature` must be strictly positive", {"temperature": it}) for it in (0, -1.0)),
    *(
        Row("`repetition_penalty` must be strictly positive", {"repetition_penalty": it})
        for it in (0, -0.5)
    ),
    *(
        Row("`frequency_penalty` must be >= -2.0 and <= 2.0", {"frequency_penalty": it})
        for it in (-2.01, 2.01)
    ),
    *(Row("`top_p` must be > 0.0 and < 1.0", {"top_p": it}) for it in (0, 1.0, -1, 2)),
    *(Row("`typical_p` must be > 0.0 and < 1.0", {"typical_p": it}) for it in (0, 1.0, -1, 2)),
    *(Row("`top_k` must be strictly positive", {"top_k": it}) for it in (0, -1)),
    Row("`max_new_tokens` must be strictly positive", {"max_new_tokens": 0}),
    Row(
        "`stop` supports up to 2 stop sequences. Given: 3",
        {"stop": ["a", "b", "c"]},
        flag="--max-stop-sequences",
    ),
    Row(
        "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
        {"top_n_tokens": 6},
        flag="--max-top-n-tokens",
    ),
    Row("`inputs` cannot be empty", inputs=""),
    *(
        Row(
            f"`truncate` must be strictly positive and less than 100. Given: {it}",
            {"truncate": it},
            flag="--max-input-tokens",
        )
        for it in (0, 101)
    ),
    Row(
        "`inputs` tokens + `max_new_tokens` must be <= 128. "
        "Given: 2 `inputs` tokens and 127 `max_new_tokens`",
        {"max_new_tokens": 127},
        flag="--max-total-tokens",
    ),
    Row(
        "`inputs` tokens + `max_new_tokens` must be <= 128. "
        "Given: 2 `inputs` tokens and 1024 `max_new_tokens`",
        {"max_new_tokens": 5000},
        here="`inputs` tokens + `max_new_tokens` must be <= 128. "
        "Given: 2 `inputs` tokens and 5000 `max_new_tokens`",
        documented="limits in messages",
        flag="--max-total-tokens",
    ),
    Row(
        "`inputs` must have less than 100 tokens. Given: 101",
        {"max_new_tokens": 1},
        inputs="a" * 101,
        flag="--max-input-tokens",
    ),
    *(
        Row(
            f"{message}{reason}",
            {"grammar": {"type": "json", "value": value}},
            here=f"`grammar`: {reason}" if reason else here,
            documented="`grammar`",
        )
        for message, reason, value, here in (
            (UNSUPPORTED, "", 1, SCHEMA),
            ("grammar is not valid: ", "it is not JSON: Input data was truncated", "{", ""),
            ("grammar is not valid: ", TYPE, {"properties": {"a": {"type": "unheard-of"}}}, ""),
            (
                "cannot compile regex from schema: ",
                ANCHORS,
                {"properties": {"a": {"pattern": "\\A"}}},
                "",
            ),
        )
    ),
]
IMAGES = "images in `inputs`"
"""The rules on images are about models that see, as in tests/integration/test_images.py; here every
model reads text only."""


@pytest.fixture(params=[False, True], ids=["default", "strict"])
def mode(request: pytest.FixtureRequest, settings: Settings) -> None:
    settings.strict_tgi = request.param


@pytest.mark.usefixtures("mode")
class TestRules:
    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.message)
    async def test_a_broken_rule_is_reported(
        self, api: Api, engine: FakeEngine, events: EventsOf, settings: Settings, row: Row
    ) -> None:
        for name, value in row.limits.items():
            setattr(settings, name, value)
        answer = row.answer(strict_tgi=settings.strict_tgi)
        reported = {"error": answer, "error_type": "validation"}
        if not row.stream:
            response = await api.generate(row.inputs, **row.parameters)
            assert (response.status_code, response.json()) == (422, reported)
        if row.stream or "best_of" not in row.parameters:
            response = await api.generate_stream(row.inputs, **row.parameters)
            assert (response.status_code, events(response)) == (200, [reported])
        assert engine.requests == []

    async def test_the_first_rule_in_tgis_order_is_reported(
        self, api: Api, settings: Settings
    ) -> None:
        """Each step mends what was reported, and may break more."""
        given: dict[str, Any] = {
            "best_of": 4,
            "repetition_penalty": 0,
            "frequency_penalty": 3,
            "max_new_tokens": 0,
            "stop": ["a", "b", "c"],
            "seed": 1,
            "top_n_tokens": 6,
            "truncate": 0,
            "grammar": {"type": "json", "value": {"type": "unheard-of"}},
        }
        inputs = ""
        steps: list[tuple[dict[str, Any], str]] = [
            ({}, "`best_of` must be > 0"),
            ({"best_of": 2}, "you must use sampling"),
            ({"temperature": 0, "top_p": 1, "typical_p": 1, "top_k": 0}, "`temperature`"),
            ({"temperature": 0.5}, "`repetition_penalty`"),
            ({"repetition_penalty": 1.1}, "`frequency_penalty`"),
            ({"frequency_penalty": 1}, "`top_p`"),
            ({"top_p": 0.5}, "`typical_p`"),
            ({"typical_p": 0.5}, "`top_k`"),
            ({"top_k": 3}, "`max_new_tokens` must be strictly positive"),
            ({"max_new_tokens": 5000}, "`stop`"),
            ({"stop": []}, "`seed`"),
            ({"seed": None}, "`top_n_tokens`"),
            ({"top_n_tokens": 5}, "`inputs` cannot be empty"),
            ({"inputs": "a" * 110}, "`truncate`"),
            ({"truncate": None}, "`inputs` tokens + `max_new_tokens`"),
            ({"max_new_tokens": 1}, "`inputs` must have less than"),
            (
                {"inputs": "a" * 100},
                "grammar is not valid" if settings.strict_tgi else "`grammar`: `type` at # must be",
            ),
        ]
        for mended, message in steps:
            inputs = mended.pop("inputs", inputs)
            given |= mended
            response = await api.generate(inputs, **given)
            assert response.json()["error"].startswith(f"Input validation error: {message}")
        del given["grammar"]
        assert (await api.generate(inputs, **given)).status_code == 200

    async def test_best_of_is_looked_at_before_permits_are_and_nothing_else_is(
        self, live: httpx.AsyncClient, engine: FakeEngine, settings: Settings
    ) -> None:
        engine.wait_before = 0
        body = {"inputs": "Hi"}
        held = [
            asyncio.create_task(live.post("/generate", json=body))
            for _ in range(settings.max_concurrent_requests)
        ]
        await until(lambda: len(engine.requests) == len(held))
        for parameters, status in (({"best_of": 4}, 422), ({"temperature": 0}, 429)):
            response = await live.post("/generate", json={**body, "parameters": parameters})
            assert response.status_code == status
        engine.go.set()
        await asyncio.gather(*held)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("temperature", -1, "`temperature` must be strictly positive"),
            ("frequency_penalty", 2.01, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            ("top_p", -0.5, "`top_p` must be > 0.0 and < 1.0"),
            ("top_p", 2, "`top_p` must be > 0.0 and < 1.0"),
            ("max_tokens", 0, "`max_new_tokens` must be strictly positive"),
            ("stop", ["a", "b", "c"], "`stop` supports up to 2 stop sequences. Given: 3"),
        ],
    )
    async def test_the_openai_routes_share_the_rules(
        self, api: Api, settings: Settings, field: str, value: float | list[str], message: str
    ) -> None:
        for send in (api.chat, api.complete):
            response = await send("Hi", **{field: value})
            if settings.strict_tgi:
                reported = {
                    "error": f"Input validation error: {message}",
                    "error_type": "validation",
                }
                assert (response.status_code, response.json()) == (422, reported)
            else:
                # Under the client's own name of the field.
                assert f"`{field}` " in refusal(response)
                assert response.json()["error"]["param"] == field


class TestStrict:
    @pytest.fixture(autouse=True)
    def strict(self, settings: Settings) -> None:
        settings.strict_tgi = True

    async def test_too_many_prompts_and_a_suffix_have_types_of_their_own(self, api: Api) -> None:
        response = await api.complete(["a", "b", "c", "d"])
        assert response.status_code == 422
        assert response.json() == {
            "error": "Number of prompts exceeds the maximum allowed batch size of 3",
            "error_type": "batch size exceeded",
        }
        response = await api.complete("a", suffix="b")
        assert response.status_code == 422
        assert response.json() == {
            "error": "Suffix is not supported and can be achieved by preprocessing the prompt.",
            "error_type": "suffix not supported",
        }

    async def test_an_empty_list_of_prompts_is_reported_in_plain_text(self, api: Api) -> None:
        response = await api.complete([])
        assert response.status_code == 422
        assert response.text.endswith(
            "Empty array detected. Do not use an empty array for the prompt."
        )

    @pytest.mark.parametrize("send", ["chat", "complete"])
    async def test_a_prompt_that_is_too_long_is_reported_in_tgis_words(
        self, api: Api, send: str
    ) -> None:
        response = await getattr(api, send)("a" * 200, max_tokens=5)
        assert response.status_code == 422
        assert response.json()["error_type"] == "validation"
        assert "`inputs` tokens + `max_new_tokens` must be <= 128" in response.json()["error"]


class TestGrammars:
    @pytest.mark.parametrize("strict", [False, True])
    async def test_only_tgi_wants_properties(
        self, api: Api, engine: FakeEngine, settings: Settings, strict: bool
    ) -> None:
        settings.strict_tgi = strict
        response = await api.generate(grammar={"type": "json", "value": {"type": "array"}})
        if not strict:
            assert response.status_code == 200
            assert engine.requests[0].grammar == '{"kind":"json","schema":{"type":"array"}}'
            return
        message = "grammar is not valid: Grammar must have a 'properties' field"
        reported = {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert (response.status_code, response.json()) == (422, reported)

    @pytest.mark.parametrize("checker", [None])
    @pytest.mark.parametrize("strict", [False, True])
    async def test_a_server_without_grammars_says_so(
        self, api: Api, settings: Settings, checker: GrammarChecker | None, strict: bool
    ) -> None:
        settings.strict_tgi = strict
        response = await api.generate(grammar={"type": "regex", "value": "a"})
        message = (
            UNSUPPORTED
            if strict
            else "`grammar` is not supported: the server was started with "
            "--disable-grammar-support. Remove it from the request"
        )
        reported = {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert (response.status_code, response.json()) == (422, reported)


def test_what_does_not_hold_is_in_the_table_of_differences() -> None:
    files = [DOCS / "differences.md"]
    table = [line for file in files for line in file.read_text().splitlines()]
    for name in {row.documented for row in ROWS if row.here} | {IMAGES}:
        assert any(line.startswith(f"| {name}") for line in table), name
