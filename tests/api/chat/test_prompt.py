"""Images in the messages of a chat, for a model that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import EventsOf, Settings, refusal
from tests.doubles.fake_engine import FakeEngine
from tests.doubles.fake_images import FRAMED, IMAGE, FakeImages, family, url, vision_tokenizer
from tgi_async.generation import GenerationRequest
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

TEXTS_ONLY = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
"""As of a model whose template takes texts."""
LISTS = (
    "{% for m in messages %}[{{ m.role }}] {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}" + "<image>"
    "{% else %}{{ p.text | trim }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if documents %}{{ documents | tojson }}{% endif %}{{ tone or '' }}"
)
"""As of a model whose template writes an image where a list has one."""
IMAGES_FIRST = (
    "{% for m in messages %}[{{ m.role }}] "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
)
"""As LLaVA's, which takes lists only."""
FRAMES = LISTS.replace("<image>", FRAMED)
BLIND = (
    "{% for m in messages %}[{{ m.role }}] {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{{ '\n' }}"
    "{% endfor %}"
)
"""Takes lists, and shows no images."""


@pytest.fixture
def settings() -> Settings:
    return Settings(max_input_tokens=1000, max_total_tokens=1024)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return vision_tokenizer()


@pytest.fixture
def placeholder() -> str:
    return "<image>"


@pytest.fixture
def images(placeholder: str) -> FakeImages:
    return FakeImages(family(placeholder))


@pytest.fixture
def source() -> str:
    return LISTS


class Templates(dict[str, ChatTemplate]):
    """By source; each has processes, which are started once."""

    def __missing__(self, source: str) -> ChatTemplate:
        return self.setdefault(source, ChatTemplate(source, {}))


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    made = Templates()
    yield made
    for template in made.values():
        template.close()


@pytest.fixture
def chat_template(templates: Templates, source: str) -> ChatTemplate:
    return templates[source]


async def ask(client: httpx.AsyncClient, *messages: Any, **fields: Any) -> httpx.Response:
    """Ask with these messages, of the user where one is a content alone."""
    sent = [one if isinstance(one, dict) else {"role": "user", "content": one} for one in messages]
    return await client.post("/v1/chat/completions", json={"messages": sent, **fields})


def image(n_tokens: int = 3, name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(n_tokens, name), **fields}}


def text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def prompt_of(engine: FakeEngine) -> str:
    (request,) = engine.requests
    return vision_tokenizer().decode(request.prompt, skip_special_tokens=False)


def places_of(request: GenerationRequest) -> list[tuple[int, int, str]]:
    return [(one.start, one.end, one.path) for one in request.images]


async def test_an_image_stands_where_its_part_is(
    client: httpx.AsyncClient, engine: FakeEngine, images: FakeImages
) -> None:
    response = await ask(client, [text("What is"), image(3), text("?")])
    assert response.is_success, response.text
    (request,) = engine.requests
    assert prompt_of(engine) == "[user] What is<image><image><image>?\n"
    assert places_of(request) == [(14, 17, "/shared/a")]
    assert request.prompt[14:17] == [IMAGE] * 3
    assert [(one.start, one.end, one.digest) for one in request.salts] == [(14, 17, b"a".ljust(16))]
    assert len(request.held) == 1
    (asked,) = images.asked
    assert (asked.detail, asked.field) == ("auto", "messages[0].content[1].image_url.url")
    assert response.json()["usage"]["prompt_tokens"] == len(request.prompt) == 19


async def test_several_images_of_several_messages_keep_their_order(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await ask(
        client,
        {"role": "system", "content": [image(1, "s"), text("Look.")]},
        [image(2, "a"), text("and"), image(1, "b")],
        {"role": "assistant", "content": [text("I draw"), image(1, "c")]},
        {"role": "tool", "content": [image(2, "d")], "tool_call_id": "1"},
        [image(2, "a")],
    )
    (request,) = engine.requests
    assert [path[-1] for _, _, path in places_of(request)] == list("sabcda")
    assert [end - start for start, end, _ in places_of(request)] == [1, 2, 1, 1, 2, 2]
    assert prompt_of(engine).startswith("[system] <image>Look.\n[user] <image><image>and<image>\n")


@pytest.mark.parametrize(
    "part",
    [
        image(2),
        image(2, detail="auto"),
        {"type": "image_url", "image_url": url(2)},
        {"type": "input_image", "image_url": url(2)},
        {"type": "image", "image": url(2)},
        {"type": "image", "url": url(2)},
    ],
)
async def test_all_forms_of_a_part_are_taken(
    client: httpx.AsyncClient, engine: FakeEngine, part: dict[str, Any]
) -> None:
    response = await ask(client, [part, text("What?")])
    assert prompt_of(engine) == "[user] <image><image>What?\n"
    assert "x-tgi-ignored" not in response.headers


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
async def test_the_detail_goes_on(
    client: httpx.AsyncClient, images: FakeImages, detail: str
) -> None:
    await ask(client, [image(1, detail=detail)])
    await ask(client, [{"type": "input_image", "image_url": url(1), "detail": detail}])
    assert [one.detail for one in images.asked] == [detail] * 2


@pytest.mark.parametrize(
    ("part", "reported"),
    [
        (image(1, detail="best"), "`messages[0].content[0].image_url.detail` must be one of auto"),
        ({"type": "image_url", "image_url": ""}, "`messages[0].content[0].image_url` must be"),
        ({"type": "image", "source": {"data": "AA=="}}, "`messages[0].content[0].image` must be"),
        (
            {"type": "image_url", "image_url": {"url": ""}},
            "`messages[0].content[0].image_url.url` must be the image's URL",
        ),
    ],
)
async def test_parts_that_are_no_image_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, part: dict[str, Any], reported: str
) -> None:
    response = await ask(client, [part])
    assert reported in refusal(response)
    assert response.json()["error"]["param"].startswith("messages[0].content[0].image")
    assert not engine.requests


@pytest.mark.parametrize("content", [[image(1)] * 300, f"![]({url(1)})" * 300])
async def test_no_more_images_than_allowed_are_looked_at(
    client: httpx.AsyncClient, settings: Settings, images: FakeImages, content: Any
) -> None:
    settings.payload_limit = 100_000
    response = await ask(client, content)
    assert "is one too many: a request may have at most 6 images. The limit is set by" in refusal(
        response
    )
    assert response.json()["error"]["param"].startswith("messages[0].content")
    assert not images.asked


class TestMarkdown:
    async def test_of_clients_is_an_image(
        self, client: httpx.AsyncClient, engine: FakeEngine, images: FakeImages
    ) -> None:
        await ask(
            client,
            {"role": "system", "content": f"![]({url(1, 's')})"},
            f"What is ![]({url(2)}) there?",
            [text(f"And ![]({url(1, 'b')})![]({url(1, 'c')})"), image(1, "d")],
        )
        assert prompt_of(engine) == (
            "[system] <image>\n[user] What is<image><image>there?\n"
            "[user] And<image><image><image>\n"
        )
        assert [one.field for one in images.asked] == [
            "messages[0].content",
            "messages[1].content",
            *["messages[2].content[0].text"] * 2,
            "messages[2].content[1].image_url.url",
        ]

    async def test_of_models_and_tools_is_text(
        self, client: httpx.AsyncClient, engine: FakeEngine, images: FakeImages
    ) -> None:
        said = f"![]({url(1)})"
        await ask(
            client,
            "Draw.",
            {"role": "assistant", "content": said},
            {"role": "tool", "content": [text(said)], "tool_call_id": "1"},
            "Well?",
        )
        assert prompt_of(engine).count(said) == 2
        assert not images.asked

    async def test_with_an_alternative_text_is_text(
        self, client: httpx.AsyncClient, engine: FakeEngine, images: FakeImages
    ) -> None:
        await ask(client, f"![a cat]({url(1)})")
        assert prompt_of(engine) == f"[user] ![a cat]({url(1)})\n"
        assert not images.asked


class TestTemplates:
    @pytest.mark.parametrize("source", [TEXTS_ONLY, BLIND])
    async def test_that_show_no_images_get_the_placeholder_in_the_text(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        await ask(client, [image(2), text("What? "), image(1)], "Well")
        assert prompt_of(engine) == "[user] <image><image>What? <image>\n[user] Well\n"

    @pytest.mark.parametrize("source", [IMAGES_FIRST])
    async def test_that_take_lists_get_lists(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        await ask(client, [text("What?"), image(2), image(1)], "Well")
        assert prompt_of(engine) == "[user] <image><image>\n<image>\nWhat?\n[user] Well\n"

    @pytest.mark.parametrize(("source", "placeholder"), [(FRAMES, FRAMED), (TEXTS_ONLY, FRAMED)])
    async def test_may_write_more_around_an_image(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        response = await ask(client, [text("<vision>"), image(2)])
        assert response.is_success, response.text
        assert prompt_of(engine) == "[user] <vision><vision><image><image></vision>\n"
        (request,) = engine.requests
        assert places_of(request) == [(16, 18, "/shared/a")]

    @pytest.mark.parametrize("source", ["{% for m in messages if m.role == 'user' %}" + LISTS[25:]])
    async def test_that_leave_an_image_out_are_told_of(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        tool = {"role": "tool", "content": [image(1)], "tool_call_id": "1"}
        response = await ask(client, [image(1)], tool)
        assert "`messages` have 2 images, of which the model's chat template shows 1" in refusal(
            response
        )
        assert not engine.requests


class TestWhatLooksLikeAnImage:
    """A user who types an image's tokens crashed other servers' workers (CVE-2026-44222)."""

    typed = "Is <image> a tag, <vision></vision>? <image><image>"

    async def test_is_text_without_images(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        response = await ask(client, self.typed)
        assert response.is_success
        assert prompt_of(engine) == f"[user] {self.typed}\n"
        (request,) = engine.requests
        assert max(request.prompt) < 256, "one token a byte"
        assert not request.images
        assert not request.salts

    async def test_is_text_beside_images(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        await ask(client, [text(self.typed), image(2), text("<image>")])
        (request,) = engine.requests
        assert prompt_of(engine) == f"[user] {self.typed}<image><image><image>\n"
        assert request.prompt.count(IMAGE) == 2
        assert places_of(request) == [(58, 60, "/shared/a")]

    async def test_is_text_wherever_a_client_can_write(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        function = {"name": "f", "description": "<image>", "parameters": {"type": "object"}}
        called = {"name": "<image>", "arguments": '{"<image>": "<image>", "a": 1}'}
        call = {"id": "<image>", "type": "function", "function": called}
        response = await ask(
            client,
            {"role": "<image>", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "<image>", "name": "<image>", "tool_call_id": "<image>"},
            [image(2)],
            tools=[{"type": "function", "function": function}],
            documents=[{"<image>": ["<image>"]}],
            chat_template_kwargs={"tone": "<image>"},
        )
        assert response.is_success, response.text
        (request,) = engine.requests
        assert prompt_of(engine).count("<image>") == 12
        assert request.prompt.count(IMAGE) == 2

    @pytest.mark.parametrize("source", ["{{ raise_exception('Not ' + messages[0].role) }}"])
    async def test_is_what_it_was_in_the_words_of_an_error(self, client: httpx.AsyncClient) -> None:
        response = await ask(client, {"role": "a <image>", "content": "Hi"})
        assert "Not a <image> (in <string>:1)" in refusal(response)

    async def test_that_parts_make_up_together_is_no_image(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        made_up = [text("<ima "), text(" ge>")]
        assert (await ask(client, made_up)).is_success
        assert max(engine.requests[0].prompt) < 256
        response = await ask(client, [image(1), *made_up])
        assert "have 1 images, and the model's chat template makes more of them" in refusal(
            response
        )
        assert len(engine.requests) == 1

    async def test_is_text_in_an_answer_that_is_continued(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        await ask(client, [image(2)], {"role": "assistant", "content": "A <image>"})
        assert prompt_of(engine) == "[user] <image><image>\n[assistant] A <image>"
        (request,) = engine.requests
        assert request.prompt.count(IMAGE) == 2


async def test_n_choices_share_the_images(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await ask(client, [image(2)], n=3)
    assert len(engine.requests) == 3
    assert {id(one) for request in engine.requests for one in request.held} == {
        id(engine.requests[0].held[0])
    }
    assert all(places_of(one) == [(7, 9, "/shared/a")] for one in engine.requests)


async def test_prompt_log_probabilities_show_what_tokens_are(
    client: httpx.AsyncClient,
) -> None:
    body = (await ask(client, [image(2)], prompt_logprobs=0)).json()
    shown = [one and next(iter(one.values()))["decoded_token"] for one in body["prompt_logprobs"]]
    assert shown[7:9] == ["<image>"] * 2


async def test_an_image_that_does_not_fit_says_how_many_tokens_it_takes(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await ask(client, [image(2000)])
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "resulted in 2008 tokens" in refusal(response)
    assert "Its image takes 2000 tokens: send a smaller one" in refusal(response)
    response = await ask(client, [image(600), image(700)])
    assert "Its 2 images take 1300 tokens (600, 700): send fewer or smaller" in refusal(response)
    assert not engine.requests


async def test_cutting_the_prompt_leaves_images_out_or_whole(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    content = [image(4, "a"), text("and"), image(4, "b"), text("?")]
    await ask(client, content, truncate_prompt_tokens=8)
    assert prompt_of(engine) == "nd" + "<image>" * 4 + "?\n"
    (request,) = engine.requests
    assert [path for _, _, path in places_of(request)] == ["/shared/b"]
    response = await ask(client, content, truncate_prompt_tokens=11)
    assert "cut inside of image 1 of 2, whose tokens are 7 to 10 of 20" in refusal(response)


async def test_a_refused_image_is_an_error_before_a_stream(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    part = {"type": "image_url", "image_url": {"url": "ftp://a"}}
    response = await ask(client, [part], stream=True)
    assert "has an unknown URL" in refusal(response)
    assert response.json()["error"]["param"] == "messages[0].content[0].image_url.url"
    assert not engine.requests


async def test_a_stream_has_images_too(
    client: httpx.AsyncClient, engine: FakeEngine, events: EventsOf
) -> None:
    response = await ask(client, [image(2)], stream=True, stream_options={"include_usage": True})
    assert events(response)[-2]["usage"]["prompt_tokens"] == 10
    assert engine.requests[0].images


async def test_placeholders_that_do_not_agree_are_an_error_of_this_request_alone(
    client: httpx.AsyncClient, images: FakeImages, caplog: pytest.LogCaptureFixture
) -> None:
    images.n_more = 1
    response = await ask(client, [image(2)])
    assert response.status_code >= 500 or response.status_code == 424
    assert "a prompt's images were not found among its tokens" in caplog.text
    assert (await ask(client, "Hi")).is_success


class TestAsTgi:
    @pytest.fixture(autouse=True)
    def as_tgi(self, as_tgi: None) -> None:
        """Have `--strict-tgi`."""

    async def test_the_detail_is_ignored(
        self, client: httpx.AsyncClient, images: FakeImages
    ) -> None:
        assert (await ask(client, [image(1, detail="best")])).is_success
        assert images.asked[0].detail == "auto"

    async def test_tools_and_images_go_together(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        tool = {"type": "function", "function": {"name": "f", "arguments": {}}}
        await ask(client, [image(2), text("<image>")], tools=[tool], stream=True)
        assert engine.requests[0].prompt.count(IMAGE) == 2
