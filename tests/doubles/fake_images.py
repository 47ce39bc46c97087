"""Images that a test makes up, instead of fetching and preparing any."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import tokenizers

from tests.api.tiny_tokenizer import tiny_inner
from tgi_async.errors import ValidationError
from tgi_async.images.family import Attends, Family, Prepared
from tgi_async.images.images import ImageSource, ReadyImage
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import PixelArray

TOKENS = ("<image>", "<vision>", "</vision>")


def vision_inner() -> tokenizers.Tokenizer:
    """The tiny tokenizer, with tokens of images."""
    inner = tiny_inner()
    inner.add_special_tokens(list(TOKENS))
    return inner


def vision_tokenizer() -> Tokenizer:
    return Tokenizer(vision_inner(), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


IMAGE = vision_tokenizer().special_id("<image>") or 0


def family(placeholder: str = "<image>", bidirectional: Attends = "") -> Family:
    """A family as LLaVA is, or with a mark before and behind each image as Qwen is."""
    return Family("tiny", placeholder, "<image>", IMAGE, TOKENS, bidirectional)


FRAMED = "<vision><image></vision>"


def url(n_tokens: int, name: str = "a") -> str:
    """The URL of an image of so many tokens; those of one name have the same digest."""
    return f"data:image/png;base64,{base64.b64encode(f'{n_tokens} {name}'.encode()).decode()}"


class FakeImages:
    """Makes images of URLs that `url` returns, and refuses others. Remembers what it was asked."""

    def __init__(self, family: Family, max_images: int = 6) -> None:
        self.family = family
        self.max_images = max_images
        self.asked: list[ImageSource] = []
        self.clients: list[str] = []
        self.n_more = 0
        """How many more tokens an image claims to have than it has: a bug."""

    async def ready(self, sources: Sequence[ImageSource], client: str) -> list[ReadyImage]:
        self.asked += sources
        self.clients.append(client)
        return [self._one(source) for source in sources]

    def _one(self, source: ImageSource) -> ReadyImage:
        head, _, data = source.url.partition("base64,")
        if head != "data:image/png;":
            raise ValidationError(f"`{source.field}` has an unknown URL", param=source.field)
        n_tokens, name = base64.b64decode(data).decode().split()
        text = self.family.placeholder.replace("<image>", "<image>" * int(n_tokens))
        digest = name.encode().ljust(16)[:16]
        prepared = Prepared(digest, text, int(n_tokens) + self.n_more, 48, 4, 4)
        return ReadyImage(
            prepared,
            f"/shared/{name}",
            [PixelArray("pixel_values", "float32", [1, 3, 2, 2], 0)],
            48,
        )

    def close(self) -> None:
        pass
