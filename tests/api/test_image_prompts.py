"""Images in the texts of routes that take a prompt, for a model that takes images."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from tests.api.conftest import Api, EventsOf, Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tests.doubles.fake_images import FRAMED, IMAGE, FakeImages, family, url, vision_tokenizer
from tgi_async.api.image_prompts import ImagePrompts
from tgi_async.errors import StartError
from tgi_async.images.family import Attends
from tgi_async.images.placeholders import find_placeholders
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Span

TYPED = "Is <image> a tag? </vision>"
LOOK = f"What is ![]({url(3)}) this?"
SHOWN = "What is <image><image><image> this?"
PLACES = [(8, 11, "/shared/a")]


@pytest.fixture
def settings() -> Settings:
    return Settings(kserve=True)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return vision_tokenizer()


@pytest.fixture
def chat_template() -> ChatTemplate | None:
    return None


@pytest.fixture
def placeholder() -> str:
    return "<image>"


@pytest.fixture
def bidirectional() -> Attends:
    return ""


@pytest.fixture
def images(placeholder: str, bidirectional: Attends) -> FakeImages | None:
    return FakeImages(family(placeholder, bidirectional))


def text_of(engine: FakeEngine) -> str:
    return vision_tokenizer().decode(engine.requests[-1].prompt, skip_special_tokens=False)


def places_of(engine: FakeEngine, place: int = -1) -> list[tuple[int, int, str]]:
    return [(one.start, one.end, one.path) for one in engine.requests[place].images]


def kserve_body(text: str) -> dict[str, Any]:
    given = {"name": "a", "shape": [1], "datatype": "BYTES", "data": list(text.encode())}
    return {"id": "1", "inputs": [given], "outputs": [{"name": "b"}]}


ROUTES = {
    "/generate": lambda text: {"inputs": text},
    "/generate_stream": lambda text: {"inputs": text},
    "/": lambda text: {"inputs": text},
    "/v1/completions": lambda text: {"prompt": text},
    "/invocations": lambda text: {"inputs": text},
    "/vertex": lambda text: {"instances": [{"inputs": text}]},
    "/v2/models/m/versions/1/infer": kserve_body,
}


@pytest.mark.parametrize("path", ROUTES)
class TestEveryRoute:
    async def test_takes_markdown_as_images(
        self, client: httpx.AsyncClient, engine: FakeEngine, images: FakeImages, path: str
    ) -> None:
        response = await client.post(path, json=ROUTES[path](LOOK))
        assert response.is_success, response.text
        assert text_of(engine) == SHOWN
        assert places_of(engine) == PLACES
        assert engine.requests[0].prompt.count(IMAGE) == 3
        assert images.asked[0].field == ("prompt" if path == "/v1/completions" else "inputs")
        assert images.clients == ["127.0.0.1"]

    async def test_takes_what_looks_like_one_as_text(
        self, client: httpx.AsyncClient, engine: FakeEngine, path: str
    ) -> None:
        """As in CVE-2026-44222."""
        response = await client.post(path, json=ROUTES[path](TYPED))
        assert response.is_success, response.text
        assert text_of(engine) == TYPED
        assert max(engine.requests[0].prompt) < 256, "one token a byte"
        await client.post(path, json=ROUTES[path](TYPED + LOOK + TYPED))
        assert text_of(engine) == TYPED + SHOWN + TYPED
        assert engine.requests[1].prompt.count(IMAGE) == 3
        assert not engine.requests[0].images

    async def test_refuses_an_image_by_its_field(
        self, client: httpx.AsyncClient, engine: FakeEngine, path: str
    ) -> None:
        response = await client.post(path, json=ROUTES[path]("![](file:///etc/passwd)"))
        assert "has an unknown URL" in response.text
        if path != "/generate_stream":
            assert response.status_code in (400, 422)
        assert not engine.requests


class TestWithoutImages:
    """A model that takes text only."""

    @pytest.fixture
    def images(self) -> FakeImages | None:
        return None

    @pytest.mark.parametrize("path", ROUTES)
    async def test_markdown_is_text(
        self, client: httpx.AsyncClient, engine: FakeEngine, path: str
    ) -> None:
        text = "Look: ![](http://a/b)"
        await client.post(path, json=ROUTES[path](text))
        assert text_of(engine) == text

    async def test_info_has_no_pipeline(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/info")).json()["model_pipeline_tag"] is None


async def test_info_says_that_images_are_taken(client: httpx.AsyncClient) -> None:
    assert (await client.get("/info")).json()["model_pipeline_tag"] == "image-text-to-text"


async def test_a_text_comes_without_its_prompt_unless_asked_for(client: httpx.AsyncClient) -> None:
    """As in TGI, whose `/` shows the prompt for models of text only."""
    (body,) = (await client.post("/", json={"inputs": LOOK})).json()
    assert body["generated_text"] == "Hello there"


async def test_the_prompt_is_shown_as_it_was_sent(api: Api) -> None:
    body = (await api.generate(LOOK, return_full_text=True)).json()
    assert body["generated_text"] == LOOK + "Hello there"
    response = await api.complete(LOOK, echo=True)
    assert response.json()["choices"][0]["text"] == LOOK + "Hello there"
    assert response.json()["usage"]["prompt_tokens"] == 17


async def test_tokens_of_an_image_are_shown_as_what_they_are(api: Api) -> None:
    details = (await api.generate(LOOK, decoder_input_details=True)).json()["details"]
    assert [one["text"] for one in details["prefill"][7:12]] == [" ", *["<image>"] * 3, " "]
    choice = (await api.complete(LOOK, echo=True, logprobs=0)).json()["choices"][0]
    shown = SHOWN + "Hello there"
    assert choice["text"] == shown
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert "".join(tokens) == f"{shown}<|im_end|>"
    assert all(shown.startswith(*one) for one in list(zip(tokens, offsets, strict=True))[:-1])


@pytest.mark.parametrize("prompt", [[1, IMAGE], [[1], [IMAGE, 2]]])
async def test_token_ids_have_no_images(api: Api, engine: FakeEngine, prompt: list[Any]) -> None:
    message = refusal(await api.complete(prompt))
    assert f"`prompt` has the token {IMAGE}, which stands for an image" in message
    assert not engine.requests
    assert (await api.complete([1, 2])).is_success


async def test_each_prompt_has_its_own_images(api: Api, engine: FakeEngine) -> None:
    await api.complete([f"![]({url(1)})a", "b", f"c![]({url(2, 'b')})"])
    assert [places_of(engine, place) for place in range(3)] == [
        [(0, 1, "/shared/a")],
        [],
        [(1, 3, "/shared/b")],
    ]


async def test_several_texts_of_a_prompt_share_its_images(api: Api, engine: FakeEngine) -> None:
    await api.complete(LOOK, n=2, best_of=3, temperature=0.5)
    await api.generate(LOOK, best_of=2, do_sample=True)
    first, *others = engine.requests
    assert len(others) == 4
    assert all(places_of(engine, place) == PLACES for place in range(5))
    assert all(one.held == first.held for one in others[:2])


async def test_a_tokenizer_that_cannot_tell_what_is_typed_ends_the_start(
    app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, **more: [IMAGE])
    with pytest.raises(StartError, match="cannot tell the token"):
        async with app.router.lifespan_context(app):
            pass


class TestTruncate:
    async def test_leaves_out_images_before_what_is_kept(
        self, api: Api, engine: FakeEngine
    ) -> None:
        await api.generate(f"![]({url(9)})an![]({url(2, 'b')})?", truncate=4)
        assert text_of(engine) == "n<image><image>?"
        assert places_of(engine) == [(1, 3, "/shared/b")]

    async def test_refuses_to_cut_within_one(self, api: Api, engine: FakeEngine) -> None:
        response = await api.generate(LOOK, truncate=8)
        assert response.status_code == 422
        assert response.json() == {
            "error": "Input validation error: the prompt would be cut inside of image 1 of 1, "
            "whose tokens are 8 to 10 of 17, and 8 would be kept. Keep more tokens, or send a "
            "smaller image",
            "error_type": "validation",
        }
        response = await api.complete(LOOK, truncate_prompt_tokens=10, truncation_side="right")
        assert "cut inside of image 1 of 1" in refusal(response)
        assert not engine.requests


async def test_an_image_that_does_not_fit_says_how_many_tokens_it_takes(
    api: Api, engine: FakeEngine
) -> None:
    error = (await api.generate(f"![]({url(200)})?")).json()["error"]
    assert "`inputs` tokens + `max_new_tokens` must be <= 128. Given: 201 `inputs` tokens" in error
    assert ". Its image takes 200 tokens: send a smaller one. The limit" in error
    many = "".join(f"![]({url(12)})" for _ in range(9))
    error = (await api.generate(many, max_new_tokens=10)).json()["error"]
    assert "must have less than 100 tokens. Given: 108. Its 9 images take 108 tokens" in error
    assert "(12, 12, 12, 12, 12, 12, 12, 12, ...): send fewer" in error
    assert not engine.requests


class TestTokenize:
    async def test_counts_an_image_as_the_model_does(self, client: httpx.AsyncClient) -> None:
        tokens = (await client.post("/tokenize", json={"inputs": LOOK})).json()
        assert "".join(SHOWN[one["start"] : one["stop"]] for one in tokens) == SHOWN
        assert [one["text"] for one in tokens if one["id"] == IMAGE] == ["<image>"] * 3
        body = {"prompt": LOOK, "return_token_strs": True}
        counted = (await client.post("/tokenize", json=body)).json()
        assert counted["count"] == len(tokens) == 17
        assert counted["tokens"] == [one["id"] for one in tokens]
        assert counted["token_strs"][8] == "<image>"

    async def test_takes_what_looks_like_one_as_text(self, client: httpx.AsyncClient) -> None:
        tokens = (await client.post("/tokenize", json={"inputs": TYPED})).json()
        assert len(tokens) == len(TYPED)
        assert "".join(one["text"] for one in tokens) == TYPED
        tokens = (await client.post("/tokenize", json={"inputs": TYPED + LOOK})).json()
        assert len(tokens) == len(TYPED) + 17
        assert "".join(one["text"] for one in tokens) == TYPED + SHOWN

    class TestOfChats:
        @pytest.fixture
        def chat_template(self) -> ChatTemplate | None:
            return ChatTemplate("{% for m in messages %}{{ m.content }}!{% endfor %}", {})

        async def test_counts_what_the_chat_would_send(
            self, client: httpx.AsyncClient, engine: FakeEngine
        ) -> None:
            body = {"messages": [{"role": "user", "content": TYPED + LOOK}]}
            await client.post("/v1/chat/completions", json=body)
            found = (await client.post("/chat_tokenize", json=body)).json()
            assert found["templated_text"] == TYPED + SHOWN + "!"
            ids = [one["id"] for one in found["tokenize_response"]]
            assert ids == engine.requests[0].prompt
            counted = (await client.post("/tokenize", json=body)).json()
            assert counted["tokens"] == ids


@pytest.mark.parametrize(
    ("placeholder", "bidirectional", "spans"),
    [
        (FRAMED, "", ()),
        ("<image>", "image", (Span(8, 11),)),
        ("<image>", "prompt", (Span(0, 17),)),
    ],
)
async def test_what_attends_in_both_directions_is_as_the_family_has_it(
    api: Api,
    engine: FakeEngine,
    spans: tuple[Span, ...],
) -> None:
    await api.generate(LOOK)
    assert engine.requests[0].spans == spans


class TestAsTgi:
    @pytest.fixture(autouse=True)
    def as_tgi(self, as_tgi: None) -> None:
        """Have `--strict-tgi`."""

    async def test_images_are_taken_all_the_same(
        self, api: Api, engine: FakeEngine, events: EventsOf
    ) -> None:
        await api.generate(LOOK)
        assert text_of(engine) == SHOWN
        response = await api.generate_stream("![](ftp://a)")
        (error,) = events(response)
        assert error["error_type"] == "validation"


PIECES = st.sampled_from(
    ["<image>", "<ima", "ge>", "<vision>", "![](", ")", " ", "ä", "a", "_", "0", "<|im_end|>"]
)


@given(st.lists(st.tuples(st.lists(PIECES, max_size=4), st.integers(1, 3)), max_size=4))
@hypothesis.settings(deadline=None)
def test_any_text_around_images_comes_back_and_has_these_images_alone(
    written: list[tuple[list[str], int]],
) -> None:
    prompts = ImagePrompts(cast(Any, FakeImages(family(FRAMED))), vision_tokenizer())
    # A bracket that is open would take in the image behind it.
    typed = ["".join(pieces).replace("![](", "![]") for pieces, _ in written]
    text = "".join(f"{one}![]({url(n)})" for one, (_, n) in zip(typed, written, strict=True))
    with ThreadPoolExecutor(1) as pool:
        found = asyncio.run(prompts.expanded(text, "", pool, "inputs"))
    ids = prompts.tokenizer.encode(found.written, add_special_tokens=False)
    shown = "".join(
        f"{one}<vision>{'<image>' * n}</vision>" for one, (_, n) in zip(typed, written, strict=True)
    )
    assert found.text == shown
    assert vision_tokenizer().decode(ids, skip_special_tokens=False) == shown
    assert ids.count(IMAGE) == sum(n for _, n in written)
    located = find_placeholders(ids, found.images, prompts.family, start=0, stop=len(ids))
    assert [image.end - image.start for image in located.images] == [n for _, n in written]
