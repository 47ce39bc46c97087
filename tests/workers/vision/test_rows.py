"""Images of rows: what chunks are given of encodings, each computed once, and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Admit, Image, PixelArray, Sampling
from workers.decodes import Decodes
from workers.table import RowTable
from workers.vision.encodings import Encodings
from workers.vision.pixels import read
from workers.vision.rows import Part, RowImages

CPU = torch.device("cpu")
PLACEHOLDER = 9
PROMPT = [1, 9, 2, 9, 9, 3, 4, 9, 9, 9, 5]


class Sums:
    """A double of a model's vision: rows that say of which image they are, and which of its rows.
    Positions stand still within an image."""

    image_token_id = PLACEHOLDER

    def __init__(self, *, mrope: bool = False, cross: bool = False) -> None:
        self.mrope, self.cross = mrope, cross
        self.n_encoded = 0

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.n_encoded += 1
        numbers = arrays["numbers"]
        if numbers[0] < 0:
            raise ValueError("numbers are at least 0")
        return torch.stack([torch.full((2,), float(number)) for number in numbers])

    def positions(
        self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
    ) -> NDArray[np.int64]:
        still = np.cumsum(tokens != PLACEHOLDER)
        return np.stack([still - 1, still, np.arange(len(tokens))])

    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        return [(image.start, None) for image in images]


def image(folder: Path, digest: int, start: int, end: int, *numbers: int) -> Image:
    path = folder / f"{digest}"
    path.write_bytes(np.array(numbers, np.float32).tobytes())
    array = PixelArray("numbers", "float32", [len(numbers)], 0)
    return Image(bytes([digest]) * 16, start, end, str(path), [array])


def admit(row: int, images: list[Image], tokens: list[int] = PROMPT) -> Admit:
    return Admit(row, tokens, len(PROMPT), 0, [0], Sampling(), images=images)


@pytest.fixture
def two(tmp_path: Path) -> list[Image]:
    """Images whose placeholders are tokens 1, 3 and 4, and 7 to 9."""
    return [image(tmp_path, 1, 1, 5, 10, 11, 12), image(tmp_path, 2, 7, 10, 20, 21, 22)]


def inserted(rows: RowImages, *parts: Part) -> list[tuple[int, float]]:
    found = rows.inserted(parts)
    return (
        []
        if found is None
        else list(zip(found.at.tolist(), found.rows[:, 0].tolist(), strict=True))
    )


def test_a_chunk_is_given_the_rows_of_its_placeholders(two: list[Image]) -> None:
    vision = Sums()
    rows = RowImages(vision, 4, CPU)
    rows.admit(admit(2, two))
    rows.admit(admit(0, []))
    assert inserted(rows, Part(2, 5, 4, 0)) == [(6, 10.0), (8, 11.0)]
    assert inserted(rows, Part(0, 0, 3, 0), Part(2, 3, 5, 4)) == [(3, 12.0), (6, 20.0), (7, 21.0)]
    assert inserted(rows, Part(2, 0, 2, 9)) == [(0, 22.0)]
    assert inserted(rows, Part(2, 0, 2, 5)) == []
    assert vision.n_encoded == rows.n_encoded == 2


def test_rows_with_the_same_image_have_it_encoded_once(two: list[Image]) -> None:
    vision = Sums()
    rows = RowImages(vision, 4, CPU)
    for row in (0, 3):
        rows.admit(admit(row, two))
        assert len(inserted(rows, Part(row, 0, len(PROMPT), 0))) == 6
    assert vision.n_encoded == 2


def test_encodings_that_are_dropped_are_computed_again_but_not_within_a_row(
    two: list[Image],
) -> None:
    vision = Sums()
    rows = RowImages(vision, 4, CPU, max_bytes=1)
    rows.admit(admit(0, two))
    rows.admit(admit(1, two[1:]))
    assert len(inserted(rows, Part(0, 0, 4, 0))) == 2
    assert len(inserted(rows, Part(1, 0, 11, 0))) == 3
    assert len(inserted(rows, Part(0, 0, 2, 4))) == 1
    assert vision.n_encoded == 2
    assert len(inserted(rows, Part(0, 0, 4, 0))) == 2
    assert vision.n_encoded == 3


def test_an_image_that_cannot_be_used_fails_when_its_row_computes(
    two: list[Image], tmp_path: Path
) -> None:
    rows = RowImages(Sums(), 4, CPU)
    gone = image(tmp_path, 3, 1, 5, 1, 2, 3)
    Path(gone.path).unlink()
    bad = image(tmp_path, 4, 1, 5, -1, 2, 3)
    few = image(tmp_path, 5, 1, 5, 1, 2)
    for row, (given, said) in enumerate(
        [(gone, "cannot be read"), (bad, "numbers are at least 0"), (few, "3 placeholders and")]
    ):
        rows.admit(admit(row, [given]))
        assert rows.touches([], [row])
        with pytest.raises(RuntimeError, match=said):
            rows.inserted([Part(row, 0, 8, 0)])
        rows.release(row)
        assert not rows.touches([row], [row])
    rows.admit(admit(0, two))
    assert inserted(rows, Part(0, 0, 2, 0)) == [(1, 10.0)]


def test_positions_have_three_axes_where_a_prompt_has_images_and_one_elsewhere(
    two: list[Image],
) -> None:
    rows = RowImages(Sums(mrope=True), 4, CPU)
    rows.admit(admit(1, two, [*PROMPT, 6, 7]))
    rows.admit(admit(2, []))
    table = RowTable(4, 64, 4, CPU)
    for row in (1, 2):
        table.admit(Admit(row, [*PROMPT, 6, 7], len(PROMPT), 0, [0] * 8, Sampling()))
        table[row].n_computed = 13
    decodes = Decodes.of(table, [1, 2], {})
    # The maximum within the prompt is 10 on one axis, so that what follows goes on at 11.
    assert rows.positions(decodes, [], []).tolist() == [13, 13]
    chunk = np.arange(6, 13)
    found = rows.positions(decodes, [Part(1, 2, 7, 6)], [chunk])
    assert found.tolist() == [
        [13, 13, 3, 3, 3, 3, 4, 11, 12],
        [13, 13, 4, 4, 4, 4, 5, 11, 12],
        [13, 13, 6, 7, 8, 9, 10, 11, 12],
    ]
    assert rows.positions(decodes, [Part(1, 2, 2, 11)], [np.array([11, 12])]).ndim == 1
    assert rows.touches([], [1])
    assert not rows.touches([1, 2], [2])


def test_decodes_go_on_where_the_images_end(two: list[Image]) -> None:
    class Still(Sums):
        def positions(
            self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
        ) -> NDArray[np.int64]:
            return np.tile(np.cumsum(tokens != PLACEHOLDER) - 1, (3, 1))

    rows = RowImages(Still(mrope=True), 4, CPU)
    rows.admit(admit(1, two))
    table = RowTable(4, 64, 4, CPU)
    table.admit(Admit(1, PROMPT, len(PROMPT), 0, [0] * 8, Sampling()))
    table[1].n_computed = 11
    assert rows.positions(Decodes.of(table, [1], {}), [], []).tolist() == [5]
    assert rows.touches([1], [])
    rows.release(1)
    assert not rows.touches([1], [])


def test_decodes_and_chunks_attend_to_the_images_of_their_rows(two: list[Image]) -> None:
    vision = Sums(cross=True)
    rows = RowImages(vision, 4, CPU)
    rows.admit(admit(1, two))
    rows.admit(admit(3, two[:1]))
    table = RowTable(4, 64, 4, CPU)
    for row in (0, 1):
        table.admit(Admit(row, PROMPT, len(PROMPT), 0, [0] * 8, Sampling()))
        table[row].n_computed = 20
    decodes = Decodes.of(table, [0, 1], {})
    found = rows.cross(decodes, [Part(3, 2, 4, 6)])
    assert [(one.start, one.n, one.first) for one in found] == [(1, 1, 20), (2, 4, 6)]
    assert [[image.digest[0] for image in one.images] for one in found] == [[1, 2], [1]]
    assert found[0].images[1].start == 7
    assert found[0].images[0].encoding is found[1].images[0].encoding
    assert rows.inserted([Part(3, 2, 4, 6)]) is None
    assert vision.n_encoded == 2


def test_what_rows_attend_to_is_held_as_long_as_they_are_there(tmp_path: Path) -> None:
    vision = Sums(cross=True)
    rows = RowImages(vision, 4, CPU, max_bytes=0)
    for row in range(3):
        rows.admit(admit(row, [image(tmp_path, row % 2, 1, 2, row % 2)]))
    chunks = [Part(row, row, 1, 3) for row in range(3)]
    none = Decodes.of(RowTable(4, 16, 4, CPU), [], {})
    first, _, again = rows.cross(none, chunks)
    assert first.images[0].encoding is again.images[0].encoding
    del first, _, again
    rows.cross(none, chunks)
    assert vision.n_encoded == 2
    for row in range(3):
        rows.release(row)
    rows.admit(admit(0, [image(tmp_path, 1, 1, 2, 1)]))
    rows.cross(none, chunks[:1])
    assert vision.n_encoded == 3


def test_a_new_image_waits_for_no_memory_that_others_hold(two: list[Image]) -> None:
    vision = Sums(cross=True)
    encodings = Encodings(vision, max_bytes=1)
    first = encodings.of(two[0].digest, read(two[0]))
    held = encodings.of(two[1].digest, read(two[1]), most_held=first.nbytes)
    assert encodings.of(two[0].digest, {}, most_held=0) is first
    other = {"numbers": torch.tensor([1.0])}
    with pytest.raises(ValueError, match=r"take 48 bytes .* above 24\. Try again"):
        encodings.of(bytes(16), other, most_held=24)
    del held
    encodings.of(bytes(16), other, most_held=24)
    encodings.of(b"1" * 16, other, most_held=32)
