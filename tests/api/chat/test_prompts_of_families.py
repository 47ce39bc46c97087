"""Prompts of models that take images, as clients send them, against transformers' processors."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.api.conftest import Settings
from tests.doubles.fake_images import FakeImages
from tests.helpers.tiny_processors import KINDS, TEMPLATES, load_processor, save_processor
from tgi_async.images.family import Prepared
from tgi_async.images.images import ImageSource, ReadyImage
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer
from workers.images.decode import decode
from workers.images.model_files import ModelFiles
from workers.images.reader import Reader
from workers.images.readers import reader

SIZES = ((64, 48), (28, 28), (30, 90))
PICTURES = [Image.new("RGB", size, (40, 90, place)) for place, size in enumerate(SIZES)]
BARE = tuple(kind for kind in KINDS if kind not in TEMPLATES)
"""Kinds without a chat template."""


class ReadImages(FakeImages):
    """Reads images as the process does that prepares them, in this one, and keeps no arrays."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader.family())
        self._reader = reader

    def _one(self, source: ImageSource) -> ReadyImage:
        data = io.BytesIO(base64.b64decode(source.url.partition("base64,")[2]))
        image = decode(data, 1_000_000)
        text = self._reader.read(image, "auto").text
        n_tokens = text.count(self.family.image_token)
        return ReadyImage(Prepared(b"0" * 16, text, n_tokens, 0, *image.size), "", [], 0)


@pytest.fixture
def settings() -> Settings:
    return Settings(max_input_tokens=2000, max_total_tokens=2048, payload_limit=100_000)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    return save_processor(kind, tmp_path)


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def chat_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    return ChatTemplate.from_folder(folder, tokenizer.special_tokens)


@pytest.fixture
def images(folder: Path) -> FakeImages:
    return ReadImages(reader(ModelFiles(folder)))


def url_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def message(role: str, *parts: str | Image.Image, url: bool) -> dict[str, Any]:
    """As a client sends it, or without URLs as transformers takes it."""
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif url:
            content.append({"type": "image_url", "image_url": {"url": url_of(part)}})
        else:
            content.append({"type": "image", "image": part})
    return {"role": role, "content": content}


@pytest.mark.parametrize("kind", TEMPLATES)
async def test_a_chats_tokens_are_those_of_the_processor(
    kind: str, folder: Path, client: httpx.AsyncClient
) -> None:
    processor = load_processor(kind, folder)
    first, second, third = PICTURES
    chats: list[list[tuple[str, list[str | Image.Image]]]] = [
        [("user", ["What is it?"])],
        [("user", [first, "What is it?"])],
        [("user", ["What\n", first, second, "and then", third, "?"])],
        [("user", [first, "What?"]), ("assistant", ["Red."]), ("user", ["And ", second])],
    ]
    for chat in chats:
        ours = [message(role, *parts, url=True) for role, parts in chat]
        theirs = [message(role, *parts, url=False) for role, parts in chat]
        expected = processor.apply_chat_template(
            theirs, tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        reply = await client.post("/tokenize", json={"messages": ours})
        assert reply.is_success, reply.text
        assert reply.json()["tokens"] == list(expected[0]), chat


@pytest.mark.parametrize("kind", BARE)
async def test_a_texts_tokens_are_those_of_the_processor(
    kind: str, folder: Path, client: httpx.AsyncClient
) -> None:
    processor = load_processor(kind, folder)
    first, second, _ = PICTURES
    for pieces in ((first, "What is it?"), ("What\n", first, second, " and then?")):
        text = "".join(part if isinstance(part, str) else f"![]({url_of(part)})" for part in pieces)
        shown = [part for part in pieces if not isinstance(part, str)]
        if kind == "idefics":
            expected = processor(text=list(pieces))["input_ids"][0]
        else:
            plain = "".join(part for part in pieces if isinstance(part, str))
            expected = processor(images=[shown], text=[plain])["input_ids"][0]
        reply = await client.post("/tokenize", json={"prompt": text})
        assert reply.json()["tokens"] == list(expected), pieces


@pytest.mark.parametrize("kind", ["llava"])
class TestTheTokenOfTheBeginning:
    """LLaVA's template leaves it to the tokenizer."""

    async def ids(self, client: httpx.AsyncClient, **fields: Any) -> list[int]:
        body = {"messages": [message("user", PICTURES[0], "What?", url=True)], **fields}
        reply = (await client.post("/chat_tokenize", json=body)).json()
        return [token["id"] for token in reply["tokenize_response"]]

    async def test_comes_unless_the_client_wants_none(
        self, client: httpx.AsyncClient, tokenizer: Tokenizer
    ) -> None:
        begin, *rest = await self.ids(client)
        assert begin == tokenizer.special_id("<s>")
        assert await self.ids(client, add_special_tokens=False) == rest
        assert await self.ids(client, add_special_tokens=True) == [begin, *rest]

    async def test_as_tgi_does_not_come(
        self, as_tgi: None, client: httpx.AsyncClient, tokenizer: Tokenizer
    ) -> None:
        assert tokenizer.special_id("<s>") not in await self.ids(client)
