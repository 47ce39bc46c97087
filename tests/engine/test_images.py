"""Images on their way through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.fake_engine_run import running
from tests.doubles.fake_worker import VOCABULARY, Behaviour
from tgi_async.errors import ValidationError
from tgi_async.wire.messages import Image

BEYOND = VOCABULARY + 3
PROMPT = [65, BEYOND, 66, BEYOND, 67]


def image(start: int, end: int) -> Image:
    return Image(bytes(16), start, end, "/nowhere", [])


async def test_a_placeholder_may_be_a_token_that_the_model_cannot_emit(tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        text = await run.generate(PROMPT, 4, images=(image(1, 2), image(3, 4)))
        assert len(text.ids) == 4


@pytest.mark.parametrize("images", [(), (image(1, 2),), (image(3, 4),), (image(2, 4),)])
async def test_such_a_token_elsewhere_is_refused(images: tuple[Image, ...], tmp_path: Path) -> None:
    async with running(Behaviour(), tmp_path) as run:
        with pytest.raises(ValidationError, match=f"has the token {BEYOND}, and the model knows"):
            run.submit(PROMPT, 4, images=images)
