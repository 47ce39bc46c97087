"""What a plot of a sweep shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.load_client import LoadError
from benchmarks.load_plot import Point, curves_of, draw


def summary(rate: float, itl: float | None) -> dict[str, float | None]:
    return {
        "output_tokens_per_s": rate,
        "itl_p50_s": itl,
        "itl_p99_s": None if itl is None else 2 * itl,
    }


@pytest.fixture
def kept() -> dict[str, Any]:
    points = {
        "16": {"ours": summary(100.0, 0.020), "other": summary(0.0, None)},
        "2": {"ours": summary(30.0, 0.010), "other": summary(20.0, 0.015)},
    }
    sweep = {streams: {"summaries": summaries} for streams, summaries in points.items()}
    return {"command": "python benchmarks/load.py --streams 2,16", "date": "a day", "sweep": sweep}


def test_points_are_in_order_of_streams_and_those_that_failed_are_left_out(
    kept: dict[str, Any],
) -> None:
    assert curves_of(kept) == {
        "ours": [Point(2, 30.0, 10.0, 20.0), Point(16, 100.0, 20.0, 40.0)],
        "other": [Point(2, 20.0, 15.0, 30.0)],
    }


@pytest.mark.parametrize("kept", [{}, {"sweep": {}}, {"sweep": []}, {"sweep": {"x": {}}}, 7])
def test_what_holds_no_sweep_is_reported(kept: Any) -> None:
    with pytest.raises(LoadError):
        curves_of(kept)


def test_a_plot_tells_its_servers_units_command_and_date(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra `benchmarks`")
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):
        draw(kept, tmp_path / "sweep.svg")
    drawn = (tmp_path / "sweep.svg").read_text()
    for text in ("ours", "other p99", "output tokens / s", "ms", kept["command"], kept["date"]):
        assert text in drawn
