"""What a hostile text costs grows with its length, and no faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.text.tools.samples import FUNCTIONS
from tgi_async.text.tools.events import merged
from tgi_async.text.tools.format import ID, NAME, Format, Marks, Turn
from tgi_async.text.tools.formats import FORMATS
from tgi_async.text.tools.parser import answer_parser
from tgi_async.text.tools.reader import Reader, Reading

THINK = Marks("<think>", "</think>")


class CountingReader(Reader):
    """Counts the characters that are looked at, copied out or run through."""

    n = 0

    def next(self, ahead: int = 0) -> Reading[str]:
        CountingReader.n += 1
        return super().next(ahead)

    def slice(self, start: int, end: int | None = None) -> str:
        text = super().slice(start, end)
        CountingReader.n += len(text)
        return text


def evils(one: Format) -> Iterator[str]:
    """Beginnings without an end, again and again."""
    w = one.written
    opening = (w.begin + w.call).replace(NAME, "searchTool").replace(ID, "0")
    yield from (" ", "\n", "<", "{", "[", '"', "<|", "</", "```json\n", "\\", "'")
    yield w.begin or opening[: len(opening) // 2]
    yield opening
    yield opening.replace("searchTool", "rm_rf")
    yield opening.rpartition("searchTool")[0] + "x" * 40
    yield from (opening + "{", opening + '{"a": "', opening + "{" + " " * 30)
    if one.notation is not None:
        yield from (opening + mark for mark in one.notation.literals)
        yield opening + one.notation.write({"a": "b", "c": [1]})
        yield opening + "(a=[[1, 'b'"
    if one.begin:
        yield one.begin[0][:-1]
    yield w.call.partition(NAME)[2] + w.end_call + w.end


def cost(one: Format, evil: str, size: int, piece: int, *, repeated: bool) -> int:
    """One beginning and what is in it again and again, or all of it again and again."""
    text = (evil * (size // len(evil) + 1))[:size] if repeated else evil + evil[-1] * size
    CountingReader.n = 0
    parser = answer_parser(one, FUNCTIONS, turn=Turn(THINK, "", ("<end>",)))
    events = [
        event
        for place in range(0, len(text), piece)
        for event in parser.feed(text[place : place + piece])
    ]
    merged(events + parser.end())
    return CountingReader.n


@pytest.mark.parametrize("size", [800, pytest.param(8_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_the_cost_grows_with_the_length(
    one: Format, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("parser", "harmony"):
        monkeypatch.setattr(f"tgi_async.text.tools.{module}.Reader", CountingReader)
    for evil in sorted(set(evils(one))):
        for repeated in (True, False):
            half = cost(one, evil, size // 2, 7, repeated=repeated)
            whole = cost(one, evil, size, 7, repeated=repeated)
            assert whole < 2.3 * half + 2_000, (evil, repeated, half, whole)


@pytest.mark.full
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_a_megabyte_is_read(one: Format) -> None:
    for evil in sorted(set(evils(one))):
        for text in (
            (evil * (1_000_000 // len(evil) + 1))[:1_000_000],
            evil + evil[-1] * 1_000_000,
        ):
            parser = answer_parser(one, FUNCTIONS, turn=Turn(THINK))
            for place in range(0, len(text), 64):
                parser.feed(text[place : place + 64])
            parser.end()
