"""Prompts with images: from what a request has to the text that is tokenized."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from tgi_async.errors import ValidationError
from tgi_async.images import markdown
from tgi_async.images.expansion import expand
from tgi_async.images.family import Family
from tgi_async.images.guard import Guard
from tgi_async.images.images import Images, ImageSource, ReadyImage
from tgi_async.text.aliases import Aliases
from tgi_async.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Marked:
    """A text in which a placeholder stands for each image.

    In what was typed `guard` hides what looks like one.
    """

    text: str
    guard: Guard
    sources: Sequence[ImageSource] = ()


class Expanded(NamedTuple):
    """A text that has all that stands in the places of its images.

    `written` is the same for the tokenizer, and of the same length.
    """

    text: str
    written: str
    images: Sequence[ReadyImage] = ()
    adds_special_tokens: bool = True
    """Whether the tokenizer's special tokens may be around it."""


class ImagePrompts:
    """Makes prompts with images, for a model that takes them."""

    def __init__(self, images: Images, tokenizer: Tokenizer) -> None:
        self.family: Family = images.family
        self.max_images = images.max_images
        """Most images of a request."""
        self._images = images
        self._of_model = tokenizer
        self._reserved = {*self.family.reserved, self.family.image_token}
        self._made: Aliases | None = None
        self._making = threading.Lock()

    def prepare(self) -> Aliases:
        """Make another tokenizer, which takes seconds where the vocabulary is large; the first use
        does so otherwise.

        Raises StartError: the tokenizer cannot do without the names of image tokens.
        """
        with self._making:
            if self._made is None:
                self._made = Aliases(self._of_model, self._reserved)
            return self._made

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of `Expanded.written`, and of what users type."""
        return (self._made or self.prepare()).tokenizer

    def guard(self) -> Guard:
        """Return one for the texts of a request."""
        return Guard(self._reserved)

    def check_shown(self, marked: Marked) -> None:
        """Check a text that a chat template wrote.

        Raises:
            ValidationError: it does not have one placeholder for each image.
        """
        n, placeholder = len(marked.sources), self.family.placeholder
        found = marked.text.count(placeholder)
        if not n:
            return
        if found < n:
            raise ValidationError(
                f"`messages` have {n} images, of which the model's chat template shows {found}. "
                "Put images into messages of the role user"
            )
        token = self.family.image_token
        if found > n or marked.text.count(token) != n * placeholder.count(token):
            raise ValidationError(
                f"`messages` have {n} images, and the model's chat template makes more of them. Do "
                f"not write {placeholder} in parts, such as in two texts of a message"
            )

    async def expanded(
        self, content: str | Marked, client: str, pool: Executor, field: str
    ) -> Expanded:
        """Get the images, and put what stands for each into its place.

        In a text that is not `Marked` they are TGI's markdown; `field` is its name.

        Raises:
            ValidationError: an image cannot be taken.
            Overloaded: there is no room for it.
        """
        loop = asyncio.get_running_loop()
        if isinstance(content, str):
            if markdown.BEGIN not in content:
                return Expanded(content, content)
            content = await loop.run_in_executor(pool, self._in_markdown, content, field)
        ready = await self._images.ready(content.sources, client) if content.sources else []
        return await loop.run_in_executor(pool, self._expanded, content, ready)

    def _in_markdown(self, text: str, field: str) -> Marked:
        guard = self.guard()
        parts = markdown.split(text)
        marked = [
            guard.hidden(part) if place % 2 == 0 else self.family.placeholder
            for place, part in enumerate(parts)
        ]
        sources = [ImageSource(url, field=field) for url in parts[1::2]]
        return Marked("".join(marked), guard, sources)

    def _expanded(self, marked: Marked, ready: Sequence[ReadyImage]) -> Expanded:
        shown: Callable[[str], str] = marked.guard.shown
        if not ready:  # nothing in the text is an image
            text = shown(marked.text)
            return Expanded(text, text)
        text = expand(self.family, marked.text, [one.prepared.text for one in ready])
        written = shown(self.prepare().written(text))
        return Expanded(shown(text), written, ready, self.family.adds_special_tokens)

    def check_ids(self, ids: Sequence[int], field: str) -> None:
        """Check a prompt of token ids, which can have no images.

        Raises:
            ValidationError: it has the token of an image.
        """
        if self.family.image_token_id in ids:
            raise ValidationError(
                f"`{field}` has the token {self.family.image_token_id}, which stands for an image, "
                "and token ids can have none. Send a text with ![](url), or a chat"
            )


def shown_text(content: str | Marked) -> str:
    """Return a prompt's text as its client knows it."""
    return content if isinstance(content, str) else content.guard.shown(content.text)
