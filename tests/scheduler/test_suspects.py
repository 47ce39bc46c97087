from __future__ import annotations

import pytest

from tgi_async.scheduler.request import Request, Status
from tgi_async.scheduler.suspects import MOST_WAITING, N_ALONE, N_SHORT, SHORT_LIFE, Suspects


def running(n: int) -> list[Request]:
    found = [Request(id, [1], 100) for id in range(n)]
    for one in found:
        one.arrival, one.status = one.id, Status.RUNNING
    return found


def survive(suspects: Suspects) -> list[Request]:
    """Have the workers live on for as long as a trial takes."""
    for _ in range(SHORT_LIFE + 1):
        suspects.stepped(settled=True)
    return suspects.released(idle=False)


def hunted(suspects: Suspects, requests: list[Request], poison: Request) -> int:
    """Have the workers die of `poison` some steps after it runs. Return how often, until it is
    found."""
    n_deaths = 0
    for _ in range(200):
        ran = [one for one in requests if one not in suspects.held]
        if poison not in ran:
            survive(suspects)
            continue
        n_deaths += 1
        if (culprit := suspects.died(None, ran, 5)) is not None:
            assert culprit is poison
            return n_deaths
    raise AssertionError("it is never found")


@pytest.mark.parametrize("n", [1, 2, 3, 8, 32, 100])
def test_who_kills_some_steps_later_is_found_in_few_deaths(n: int) -> None:
    requests = running(n)
    for poison in requests:
        assert hunted(Suspects(), requests, poison) <= N_SHORT + N_ALONE + n.bit_length()


def test_who_kills_with_its_first_step_is_found_at_its_second_death() -> None:
    suspects, requests = Suspects(), running(3)
    assert suspects.died(None, requests, 5) is None
    assert suspects.died(requests[2], requests, 1) is None
    assert suspects.accused is requests[2]
    assert suspects.died(requests[2], [requests[2]], 1) is requests[2]


def test_who_is_only_next_in_line_when_another_one_kills_is_not_the_culprit() -> None:
    suspects, (innocent, poison, other) = Suspects(), running(3)
    culprit = None
    for _ in range(20):
        if poison in suspects.held:
            survive(suspects)
            continue
        # The poison kills with its second step, in which the next one begins.
        both = [one for one in (poison, innocent) if one not in suspects.held]
        culprit = suspects.died(both[-1] if innocent in both else None, both, 2)
        if culprit is not None:
            break
    assert culprit is poison
    assert other not in suspects.held


def test_workers_that_live_longer_clear_everybody() -> None:
    suspects, requests = Suspects(), running(4)
    for n_steps in (3, 3, SHORT_LIFE + 1, 3, 3):
        assert suspects.died(None, requests, n_steps) is None
    assert not suspects.on_trial
    suspects.died(None, requests, 3)
    assert suspects.on_trial == requests[:2]
    assert suspects.held == requests[2:]


def test_deaths_of_workers_with_nothing_to_do_accuse_nobody() -> None:
    suspects = Suspects()
    for _ in range(10):
        assert suspects.died(None, [], 0) is None
    assert not suspects.on_trial


def test_deaths_without_a_common_request_accuse_nobody() -> None:
    suspects = Suspects()
    for request in running(10):
        assert suspects.died(None, [request], 3) is None
    assert not suspects.on_trial


def test_a_death_while_no_suspect_runs_puts_on_trial_what_ran() -> None:
    suspects, (one, other, new) = Suspects(), running(3)
    for _ in range(N_SHORT):
        suspects.died(None, [one, other], 3)
    assert suspects.on_trial == [one]
    suspects.died(None, [new], 3)
    assert (suspects.on_trial, suspects.held) == ([new], [other])


def test_those_held_are_released_when_those_on_trial_have_ended() -> None:
    suspects, (one, other) = Suspects(), running(2)
    for _ in range(N_SHORT):
        suspects.died(None, [one, other], 3)
    assert suspects.released(idle=False) == []
    one.status = Status.ENDED
    assert suspects.released(idle=False) == [other]
    assert suspects.on_trial == [other]
    other.status = Status.ENDED
    assert suspects.released(idle=False) == []
    assert suspects.on_trial == []


def test_a_trial_that_cannot_begin_ends() -> None:
    suspects, (one, other) = Suspects(), running(2)
    for _ in range(N_SHORT):
        suspects.died(None, [one, other], 3)
    one.status = Status.WAITING
    for _ in range(MOST_WAITING + 1):
        assert suspects.released(idle=False) == []
        suspects.stepped(settled=True)
    assert suspects.released(idle=False) == [other]
    assert suspects.on_trial == []


def tried_alone(suspects: Suspects, suspect: Request) -> None:
    """Have the workers die until there is one suspect, which is left out."""
    while suspect not in suspects.held:
        assert suspects.died(None, [suspect], 3) is None


def test_a_death_without_the_suspect_puts_on_trial_what_ran() -> None:
    suspects, (innocent, poison) = Suspects(), running(2)
    tried_alone(suspects, innocent)
    assert suspects.died(None, [poison], 3) is None
    assert suspects.on_trial == [poison]
    assert suspects.held == [innocent]
    # Once that one is found, the other is as free as before.
    while suspects.died(None, [poison], 3) is None:
        assert survive(suspects) == [poison]
    assert suspects.held == []


def test_a_suspect_without_which_workers_live_on_is_tried_again() -> None:
    suspects, (one,) = Suspects(), running(1)
    tried_alone(suspects, one)
    assert suspects.released(idle=False) == []
    assert survive(suspects) == [one]
    assert (suspects.on_trial, suspects.held) == ([one], [])
    survive(suspects)
    assert not suspects.trying


def test_a_suspect_does_not_wait_for_others_where_there_are_none() -> None:
    suspects, (one,) = Suspects(), running(1)
    tried_alone(suspects, one)
    assert suspects.released(idle=True) == [one]
    assert suspects.on_trial == [one]
