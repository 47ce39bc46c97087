"""The command line of `load.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import main, parse, servers_of
from benchmarks.load_client import LoadError
from benchmarks.load_works import WORKS, sweep_work

SERVER = ["--server", "ours=http://127.0.0.1:8080"]


def test_all_works_run_unless_some_are_named() -> None:
    assert parse(SERVER).work == list(WORKS)
    assert parse([*SERVER, "--work", "prefix", "--work", "prefix"]).work == ["prefix"]


def test_a_sweep_alone_runs_no_other_work() -> None:
    options = parse([*SERVER, "--streams", "16,1,4,1"])
    assert (options.work, options.streams) == ([], [1, 4, 16])
    assert parse([*SERVER, "--streams", "1", "--work", "prefix"]).work == ["prefix"]


@pytest.mark.parametrize("streams", ["", "0", "1,,2", "a", "1,100000", "-1"])
def test_numbers_of_streams_are_bounded(streams: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*SERVER, f"--streams={streams}"])
    assert "give numbers from 1 to 4096" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--server is required"),
        ([*SERVER, "--plot", "a.svg"], "give --streams"),
        (["--replot", "a.json"], "needs --plot"),
        ([*SERVER, "--rounds", "0"], "1 to 1000"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert reason in capsys.readouterr().err


def test_every_stream_of_a_sweep_has_a_request_that_joins_a_running_batch() -> None:
    assert [sweep_work(n).requests for n in (1, 2, 256)] == [4, 4, 512]
    assert sweep_work(256).concurrency == 256


def test_servers_are_asked_at_openais_route_unless_they_are_named_with_the_other() -> None:
    tgi = ["--server", "tgi=http://h:81/generate_stream", "--pid", "tgi=7", "--model", "ours=m"]
    ours, other = servers_of(parse([*SERVER, *tgi]))
    assert (ours.path, ours.port, ours.model, ours.speaks_tgi) == (
        "/v1/completions",
        8080,
        "m",
        False,
    )
    assert (other.host, other.path, other.pid, other.speaks_tgi) == (
        "h",
        "/generate_stream",
        7,
        True,
    )


@pytest.mark.parametrize(
    "wrong", [["--server", "x=ftp://h"], ["--server", "x"], [*SERVER, "--pid", "other=1"]]
)
def test_a_wrong_server_is_reported(wrong: list[str]) -> None:
    with pytest.raises(LoadError):
        servers_of(parse(wrong))


def test_a_plot_that_could_not_be_drawn_is_reported_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"sweep": {}}))
    assert main(["--replot", f"{kept}", "--plot", f"{tmp_path / 'plot.gif'}"]) == 2
    assert ".svg, .png" in capsys.readouterr().err


def test_it_runs_as_a_script_from_any_folder(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "load.py"
    command = [sys.executable, "-I", str(script), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--streams" in shown.stdout
