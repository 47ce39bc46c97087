"""Families read by transformers' processors without their tokenizers, against those with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.more_processors import KINDS, load_more, save_more
from tests.helpers.vision_tokens import token_id
from tgi_async.images.expansion import expand
from tgi_async.text.tokenizer import Tokenizer
from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.readers import reader


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_prompts_and_arrays_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind = save_more(name, tmp_path)
    processor = load_more(kind, tmp_path)
    ours = reader(ModelFiles(tmp_path))
    family = ours.family()
    assert family.placeholder == kind.placeholder
    assert family.image_token_id == token_id(kind.repeated)
    assert {kind.placeholder, kind.repeated} <= set(family.reserved)
    tokenizer = Tokenizer.from_folder(tmp_path)
    images = [noise(64, 48), noise(40, 90), noise(17, 16)]
    for pieces in (["", "What is it?"], ["What\n ", " Say"], ["First ", "", " and ", "then?"]):
        shown = images[: len(pieces) - 1]
        read = [ours.read(image, "auto") for image in shown]
        text = kind.placeholder.join(pieces)
        whole = processor(images=shown, text=[text], return_tensors="pt")
        ids = tokenizer.encode(expand(family, text, [one.text for one in read]))
        assert ids == whole["input_ids"][0].tolist()
        for image, one in zip(shown, read, strict=True):
            alone = processor(images=[image], text=[kind.placeholder], return_tensors="pt")
            for array in ("pixel_values", "image_sizes", "image_grid_thw", "pixel_mask"):
                assert (array in one.arrays) == (array in alone)
                if array in alone:
                    assert np.array_equal(one.arrays[array], alone[array].numpy()), array


def test_a_processor_that_lacks_a_token_is_refused(tmp_path: Path) -> None:
    save_more("internvl", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UnsupportedImages, match="no processor for it that works without torch"):
        reader(ModelFiles(tmp_path))
