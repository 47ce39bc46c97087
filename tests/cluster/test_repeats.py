from __future__ import annotations

from tgi_async.cluster.repeats import EVERY_SECONDS, MOST, Repeats


class Told:
    """What was told, at a time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.repeats = Repeats(self.lines.append, lambda: self.now)


def test_a_line_is_told_at_once_and_again_after_a_minute() -> None:
    told = Told()
    for _ in range(3):
        told.repeats.tell("a")
    told.repeats.tell("b")
    assert told.lines == ["a", "b"]
    told.now = EVERY_SECONDS
    told.repeats.tell("a")
    assert told.lines[2:] == ["a (2 more times since the last such line)"]
    told.now = 2 * EVERY_SECONDS
    told.repeats.tell("a")
    assert told.lines[3:] == ["a"]


def test_strangers_do_not_fill_the_log_or_the_memory() -> None:
    told = Told()
    for n in range(10 * MOST):
        told.repeats.tell(str(n))
    assert told.lines == [str(n) for n in range(MOST)]
    assert len(told.repeats._told) == MOST
    told.now = EVERY_SECONDS
    told.repeats.tell("new")
    assert told.lines[MOST:] == ["new"]
    assert len(told.repeats._told) == 1
