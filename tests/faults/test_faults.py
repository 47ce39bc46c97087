"""Whatever happens to a worker, every stream ends with its undisturbed text.

The long run is set by the environment: `FAULTS` (200), how many in all, `FAULTS_SEED` (0), and
`FAULTS_MODEL`: a folder, or empty for the embedded model, which those without images serve then.
"""

from __future__ import annotations

import asyncio
import os
import random
from itertools import combinations
from pathlib import Path

import pytest

from tests.faults.asked import Asked, asked
from tests.faults.fault import FAULTS, drawn, named
from tests.faults.serving import (
    CONFIGURATIONS,
    Configuration,
    FaultyServer,
    Outcome,
    read_all,
    table,
    under,
)

N_STREAMS = 32
QUICK = (
    (
        Configuration(1, quantized=True, drafts=True, pressure=True),
        (
            "SIGKILL",
            "error in a grammar's mask",
            "allocation failure in the forward pass",
            "truncated frame",
        ),
    ),
    (Configuration(2, transformers=True), ("stuck collective of rank 1",)),
)
N_FAULTS = int(os.environ.get("FAULTS", "200"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
MODEL = os.environ.get("FAULTS_MODEL", "")


async def suffer(
    server: FaultyServer, names: list[str], requests: list[Asked], draw: random.Random
) -> list[Outcome]:
    """One fault after another, each under all requests."""
    undisturbed = await read_all(server, requests)
    return [await under(named(one), server, requests, undisturbed, draw) for one in names]


def check(outcomes: list[Outcome]) -> None:
    assert [wrong for one in outcomes for wrong in one.wrong] == []
    for one in outcomes:
        assert one.n_restarts >= (not one.fault.survived), one


def folder_for(configuration: Configuration, tiny_chat: Path, tiny_images: Path) -> Path:
    return tiny_images if configuration.images else tiny_chat


def test_any_two_choices_come_together() -> None:
    chosen = [(one.n_ranks == 2, *one[1:]) for one in CONFIGURATIONS]
    for first, second in combinations(range(len(Configuration._fields)), 2):
        assert len({(one[first], one[second]) for one in chosen}) == 4


def test_a_third_is_structured_and_a_third_is_seeded() -> None:
    requests = asked(N_STREAMS)
    assert 3 * sum(one.structured for one in requests) >= N_STREAMS - 3
    assert 3 * sum(one.seeded for one in requests) >= N_STREAMS - 3


@pytest.mark.parametrize(
    ("configuration", "names"), QUICK, ids=lambda one: getattr(one, "name", "")
)
def test_every_stream_ends_with_its_text(
    configuration: Configuration, names: tuple[str, ...], tiny_chat: Path, tmp_path: Path
) -> None:
    with FaultyServer.serving(tiny_chat, tmp_path, *configuration.flags()) as server:
        check(asyncio.run(suffer(server, list(names), asked(N_STREAMS), random.Random(0))))


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_in_every_configuration(
    configuration: Configuration, tiny_chat: Path, tiny_images: Path, tmp_path: Path
) -> None:
    draw = random.Random(configuration.name)
    names = [one.name for one in drawn(6, draw, configuration.has)]
    folder = folder_for(configuration, tiny_chat, tiny_images)
    with FaultyServer.serving(folder, tmp_path, *configuration.flags()) as server:
        requests = asked(N_STREAMS, configuration.images)
        check(asyncio.run(suffer(server, names, requests, draw)))


@pytest.mark.soak
@pytest.mark.timeout(200 * N_FAULTS + 3600)
def test_many_faults(tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind as often as the others, in every configuration."""
    draw = random.Random(SEED)
    outcomes: list[Outcome] = []
    try:
        for at, configuration in enumerate(CONFIGURATIONS):
            n = N_FAULTS // len(CONFIGURATIONS) + (at < N_FAULTS % len(CONFIGURATIONS))
            if not n:
                break
            names = [one.name for one in drawn(n, draw, configuration.has)]
            folder = tiny_images if configuration.images else Path(MODEL) if MODEL else None
            files = tmp_path / str(at)
            files.mkdir()
            requests = asked(N_STREAMS, configuration.images)
            with FaultyServer.serving(folder, files, *configuration.flags()) as server:
                outcomes += asyncio.run(suffer(server, names, requests, draw))
    finally:
        with capsys.disabled():
            print("", *table(outcomes), sep="\n")
    assert len(outcomes) == N_FAULTS
    check(outcomes)


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({one.name for one in FAULTS}) == len(FAULTS)
