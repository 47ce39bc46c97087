"""Where images are among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from tgi_async.errors import GenerationError, ValidationError
from tgi_async.images.family import Family
from tgi_async.images.images import ReadyImage
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import Image, Span


class Placeholders(NamedTuple):
    """Images and what depends on them, in order of position."""

    images: tuple[Image, ...] = ()
    held: tuple[ReadyImage, ...] = ()
    """The same images, whose files exist as long as these objects."""
    spans: tuple[Span, ...] = ()
    """Positions that attend to each other in both directions."""
    salts: tuple[Salt, ...] = ()
    """Of the prefix cache, in order of position."""

    @property
    def n_tokens_of_each(self) -> list[int]:
        """How many tokens each image takes."""
        return [one.prepared.n_tokens for one in self.held]


def find_placeholders(
    ids: Sequence[int], ready: Sequence[ReadyImage], family: Family, *, start: int = 0, stop: int
) -> Placeholders:
    """Find images in the prompt `ids`, of which the tokens from `start` to `stop - 1` are kept.

    Positions are those among the kept tokens. An image of which nothing is kept is left out.

    Raises:
        ValidationError: a part of an image is kept.
        GenerationError: there are more or fewer placeholders than the images have rows.
    """
    images: list[Image] = []
    held: list[ReadyImage] = []
    token = family.image_token_id
    found = [place for place, id in enumerate(ids) if id == token] if ready else []
    wanted = sum(one.prepared.n_tokens for one in ready)
    if len(found) != wanted:
        raise GenerationError(
            f"the prompt has {len(found)} placeholders for {wanted} rows of images"
        )
    n_seen = 0
    for number, one in enumerate(ready, 1):
        own = found[n_seen : n_seen + one.prepared.n_tokens]
        n_seen += one.prepared.n_tokens
        first, end = own[0], own[-1] + 1
        if end <= start or first >= stop:
            continue
        if first < start or end > stop:
            raise ValidationError(
                f"the prompt would be cut inside of image {number} of {len(ready)}, whose tokens "
                f"are {first} to {end - 1} of {len(ids)}, and {stop - start} would be kept. Keep "
                "more tokens, or send a smaller image"
            )
        held.append(one)
        images.append(
            Image(
                digest=one.prepared.digest,
                start=first - start,
                end=end - start,
                path=str(one.path),
                arrays=list(one.arrays),
            )
        )
    if not images:
        # transformers' code has the types of tokens that say so from images only.
        spans: tuple[Span, ...] = ()
    elif family.bidirectional == "prompt":
        spans = (Span(0, stop - start),)
    elif family.bidirectional == "image":
        spans = tuple(_runs(place - start for place in found if start <= place < stop))
    else:
        spans = ()
    return Placeholders(tuple(images), tuple(held), spans, _salts(images, family))


def _salts(images: Sequence[Image], family: Family) -> tuple[Salt, ...]:
    if family.looks_ahead and images:
        # A prefix is another one's only where all images that are to come are the same.
        together = b"".join(image.digest for image in images)
        return (Salt(0, 1, blake2b(together, digest_size=16).digest()),)
    return tuple(Salt(image.start, image.end, image.digest) for image in images)


def _runs(positions: Iterable[int]) -> list[Span]:
    """Return spans of positions that follow each other."""
    runs: list[Span] = []
    for place in positions:
        if runs and runs[-1].end == place:
            runs[-1] = Span(runs[-1].start, place + 1)
        else:
            runs.append(Span(place, place + 1))
    return runs
