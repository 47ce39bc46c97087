from __future__ import annotations

import asyncio

import pytest

from tests.doubles.fake_engine import words
from tgi_async.api.encoding import Events
from tgi_async.api.resume.event_id import EventId, prefix_of
from tgi_async.api.resume.trail import Told, Trail
from tgi_async.errors import NotResumable
from tgi_async.generation import Emitted, FinishReason

PREFIX = prefix_of(5, b"request")
TOKENS = words(*"abcdefgh")


def emitted(start: int, end: int, reason: FinishReason | None = None) -> Emitted:
    return Emitted(TOKENS[start:end], reason)


def texts(one: Emitted) -> Events:
    """An event for what came together; none for the letter c."""
    text = "".join(token.text for token in one.tokens)
    return [text] if text != "c" else []


def twice(one: Emitted) -> Events:
    return [one.tokens[0].text, one.tokens[0].text.upper()]


def told(trail: Trail, events: Events) -> list[tuple[object, bytes]]:
    """What is sent of events, with the ids."""
    found = [(event, trail.id_of(event)) for event in events]
    return [
        (event.payload if isinstance(event, Told) else event, id)
        for event, id in found
        if id is not None
    ]


def after(id: bytes, n_choices: int = 1, then: list[str] | None = None) -> Trail:
    def caught_up() -> None:
        if then is not None:
            then.append("here")

    return Trail(PREFIX, n_choices, EventId.parse(id), caught_up)


def test_an_id_does_not_depend_on_how_tokens_came() -> None:
    one, other = Trail(PREFIX, 1), Trail(PREFIX, 1)
    apart = one.numbered(texts, 0, each=False)
    together = other.numbered(texts, 0, each=False)
    ids = [id for start in range(4) for _, id in told(one, apart(emitted(start, start + 1)))]
    assert len(set(ids)) == 3  # the third letter has no event of its own
    assert told(other, together(emitted(0, 4))) == [("abcd", ids[-1])]
    assert EventId.parse(ids[-1]).counts == (4,)


def test_other_tokens_have_other_hashes() -> None:
    hashes = set()
    for ids in ([1, 2], [2, 1], [1, 3], [256], [1, 0]):
        trail = Trail(PREFIX, 1)
        id = trail.id_of(Told("x", 0, ids))
        assert id is not None
        hashes.add(EventId.parse(id).hash)
    assert len(hashes) == 5


@pytest.mark.parametrize("sizes", [(1,) * 8, (8,), (3, 5), (5, 3), (2, 2, 4)])
def test_a_stream_goes_on_behind_the_event_with_the_id(sizes: tuple[int, ...]) -> None:
    first = Trail(PREFIX, 1)
    events_of = first.numbered(texts, 0, each=False)
    (_, id), *_ = told(first, events_of(emitted(0, 5)))
    then: list[str] = []
    trail = after(id, then=then)
    events_of = trail.numbered(texts, 0, each=False)
    place, found = 0, []
    for size in sizes:
        assert trail.is_behind == (place < 5)
        found += told(trail, events_of(emitted(place, place + size)))
        place += size
    assert "".join(str(text) for text, _ in found) == "fgh"
    assert then == ["here"]
    assert found[-1][1] == told(first, first.numbered(texts, 0, each=False)(emitted(5, 8)))[0][1]


def test_a_token_with_several_events_goes_on_in_the_middle_of_them() -> None:
    first = Trail(PREFIX, 1)
    sent = told(first, first.numbered(twice, 0, each=True)(emitted(0, 3)))
    assert [text for text, _ in sent] == ["a", "A", "b", "B", "c", "C"]
    for place, (_, id) in enumerate(sent, 1):
        trail = after(id)
        assert told(trail, trail.numbered(twice, 0, each=True)(emitted(0, 3))) == sent[place:]


def test_events_without_tokens_have_places_too() -> None:
    first = Trail(PREFIX, 1)
    sent = told(first, ["begun", *first.numbered(texts, 0, each=False)(emitted(0, 1))])
    sent += told(first, ["usage", "done"])
    assert [EventId.parse(id).extra for _, id in sent] == [0, 0, 1, 2]
    for place, (_, id) in enumerate(sent, 1):
        trail = after(id)
        found = told(trail, ["begun"])
        found += told(trail, trail.numbered(texts, 0, each=False)(emitted(0, 1)))
        assert [*found, *told(trail, ["usage", "done"])] == sent[place:]


def test_the_last_event_says_so() -> None:
    id = Trail(PREFIX, 1).id_of("done", last=True)
    assert id is not None
    assert EventId.parse(id).ended


def test_other_tokens_than_before_are_a_mismatch() -> None:
    first = Trail(PREFIX, 1)
    ((_, id),) = told(first, first.numbered(texts, 0, each=False)(emitted(0, 5)))
    trail = after(id)
    with pytest.raises(NotResumable, match="begins differently"):
        trail.numbered(texts, 0, each=False)(emitted(1, 6))


def test_a_text_that_ends_before_is_a_mismatch() -> None:
    first = Trail(PREFIX, 1)
    ((_, id),) = told(first, first.numbered(texts, 0, each=False)(emitted(0, 5)))
    trail = after(id)
    with pytest.raises(NotResumable, match="begins differently"):
        trail.numbered(texts, 0, each=False)(emitted(0, 4, "length"))


async def test_choices_wait_until_all_of_them_are_there() -> None:
    first = Trail(PREFIX, 2)
    one, other = (first.numbered(texts, choice, each=False) for choice in range(2))
    told(first, one(emitted(0, 2)))
    ((_, id),) = told(first, other(emitted(4, 7)))
    assert EventId.parse(id).counts == (2, 3)
    trail = after(id, 2)
    one, other = (trail.numbered(texts, choice, each=False) for choice in range(2))
    early = one(emitted(0, 5))
    waiting = asyncio.create_task(trail.caught_up())
    await asyncio.sleep(0)
    assert trail.is_behind
    assert not waiting.done()
    assert other(emitted(4, 7)) == ()
    await waiting
    assert [text for text, _ in told(trail, early)] == ["cde"]


def test_the_tokens_of_two_choices_are_not_taken_for_each_other() -> None:
    first = Trail(PREFIX, 2)
    one, other = (first.numbered(texts, choice, each=False) for choice in range(2))
    told(first, one(emitted(0, 2)))
    ((_, id),) = told(first, other(emitted(4, 6)))
    trail = after(id, 2)
    trail.numbered(texts, 0, each=False)(emitted(4, 6))
    with pytest.raises(NotResumable):
        trail.numbered(texts, 1, each=False)(emitted(0, 2))


def test_another_number_of_choices_is_another_stream() -> None:
    with pytest.raises(NotResumable, match="another number of choices"):
        after(b"%b.1,2.0.abcdefgh" % PREFIX, 3)
