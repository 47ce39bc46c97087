"""A router that lives long, over a fake worker and real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.long_life import ALLOWED_GROWTH, live


async def test_clients_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    report = await live(tmp_path, 24, 0.5, 0.002, count_tasks=False)
    assert report.lost_nothing, report
    assert report.n_texts > 24
    assert report.n_left > 0


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_thousand_streams_for_ten_minutes(tmp_path: Path) -> None:
    report = await live(tmp_path, 1000, 600.0, 0.15)
    assert report.lost_nothing, report
    assert report.growth <= ALLOWED_GROWTH
