"""What is measured on a GPU, run at tiny size on a CPU, where its figures mean nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch._subclasses import FakeTensorMode

from benchmarks import gpu, gpu_rates, gpu_step, gpu_worker, made_model
from benchmarks.gpu_profile import Profile, Span, covered
from benchmarks.gpu_rates import Rates
from benchmarks.gpu_report import Report
from benchmarks.gpu_step import Case, Decodes
from benchmarks.gpu_worker import Driver, start_of
from tgi_async.wire.messages import CacheConfig, Start
from workers.worker import Worker

SMALL = [
    *("--device", "cpu", "--rows", "1,3", "--contexts", "20,60", "--passes", "6"),
    *("--prompts", "1x50,3x20", "--streams", "1,3"),
    *("--prompt-tokens", "20", "--output-tokens", "8"),
]
RATES = Rates(copy=1e9, read=1e9, product=1e9)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "tiny"
    made_model.make("tiny", folder)
    return folder


def here(part: str, model: Path, folder: Path) -> dict[str, Any]:
    """What a part finds, run in this process."""
    path = folder / "found.json"
    assert gpu.main([*SMALL, "--model", str(model), "--here", part, "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_decode_steps_of_all_batches_are_timed_and_profiled(model: Path, tmp_path: Path) -> None:
    found = here("step", model, tmp_path)
    cases = [(1, 20), (3, 20), (1, 60), (3, 60)]
    assert [(row["rows"], row["context"]) for row in found["kernels"]] == cases
    assert [(row["rows"], row["context"] - 9) for row in found["decode"]] == cases
    # The embedding is not read, and both caches of a token are 2 layers of 2 heads of 16.
    weights = 2 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64) + 2048 * 64)
    copy = found["rates"][0]["copy GB/s"] * 1e9
    row = found["decode"][3]
    assert row["floor ms"] == pytest.approx((weights + 3 * 69 * 256) / copy * 1e3)
    assert row["share"] == pytest.approx(row["floor ms"] / row["step ms"])
    assert row["idle"] is None
    assert row["best ms"] <= row["step ms"] <= row["worst ms"]
    assert found["kernels"][0]["kernels"] > 10
    assert "loading weights" in found["notes"][0]


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_are_handed_over_ahead_where_a_worker_overlaps_them(
    model: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """As on a GPU."""
    serve, send = Worker._serve, Driver.send
    in_flight: list[int] = []

    def overlapping(worker: Worker, runner: Any, overlap: bool) -> None:
        serve(worker, runner, wanted)

    def counting(driver: Driver, message: Any) -> None:
        in_flight.append(driver._in_flight)
        send(driver, message)

    wanted = overlap
    monkeypatch.setattr(Worker, "_serve", overlapping)
    monkeypatch.setattr(Driver, "send", counting)
    report = Report(None)
    Decodes(model, [Case(3, 20), Case(1, 60)], 4, RATES, report).run()
    assert max(in_flight) == (2 if overlap else 1)
    assert [row["rows"] for row in report.found["decode"]] == [3, 1]
    assert [row["rows"] for row in report.found["kernels"]] == [3, 1]


def test_prompts_are_prefilled(model: Path, tmp_path: Path) -> None:
    found = here("prefill", model, tmp_path)["prefill"]
    assert [(row["prompts"], row["tokens"]) for row in found] == [(1, 50), (3, 20)]
    one = found[0]
    layers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64)
    attended = 4 * 2 * 64 * sum(range(1, 51))
    operations = 50 * 2 * layers + attended + 2 * 2048 * 64
    assert one["TFLOP/s"] == pytest.approx(operations / one["ms"] * 1e3 / 1e12)


def test_prompts_longer_than_a_step_takes_come_in_chunks(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu_prefill import Prefills, Prompts

    monkeypatch.setattr("workers.worker.CPU_PREFILL_TOKENS", 32)
    prefills = Prefills(model, [Prompts(2, 50)], 1, RATES, Report(None))
    steps = prefills._driver
    prefills.run()
    # Two prompts of 50 in steps of 32, three times over, and each row says its first token once.
    assert len(steps.done) == 3 * 4
    assert sum(len(done.sampled) for done in steps.done.values()) == 3 * 2


def test_streams_of_transformers_are_counted(model: Path, tmp_path: Path) -> None:
    found = here("transformers", model, tmp_path)
    rows = [(row["streams"], row["choice"], row["tokens"]) for row in found["transformers"]]
    assert rows == [(1, "own", 32), (3, "own", 48)]
    # Asynchronous batching is for GPUs alone, and what it says to that is kept.
    assert ["sync batching requires" in note for note in found["notes"]] == [False, True, True]


@pytest.mark.full
def test_all_parts_one_after_the_other(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert gpu.main([*SMALL, "--model", str(model), "--json", str(path)]) == 0
    found = json.loads(path.read_bytes())
    assert list(found["parts"]) == list(gpu.LIMITS)
    http = found["parts"]["http"]["http"]
    assert [(row["streams"], row["failed"]) for row in http] == [(1, 0), (3, 0)]
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert sorted(found["ratios"]) == ["1", "3"]


def test_a_part_that_takes_too_long_is_ended_and_what_it_found_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(command: list[str], device: str, seconds: float) -> str | None:
        found = Report(Path(command[-1]))
        found.note("so far")
        return run([sys.executable, "-c", "import time; time.sleep(60)"], device, 0.5)

    run = gpu.child
    monkeypatch.setattr(gpu, "child", child)
    path = tmp_path / "found.json"
    given = [*SMALL, "--model", str(model), "--parts", "rates", "--json", str(path)]
    assert gpu.main(given) == 1
    rates = json.loads(path.read_bytes())["parts"]["rates"]
    assert rates["notes"] == ["so far"]
    assert rates["failed"] == "stopped after 0 s"


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    code = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", '''
import pathlib, time
while True:
    pathlib.Path({str(beat)!r}).write_text(str(time.time()))
    time.sleep(0.02)
'''])
import time
while not __import__("pathlib").Path({str(beat)!r}).exists():
    time.sleep(0.02)
time.sleep(60)
"""
    assert gpu.child([sys.executable, "-c", code], "cpu", 3.0) == "stopped after 3 s"
    last = beat.read_text()
    time.sleep(0.2)
    assert beat.read_text() == last


def test_a_part_for_which_no_time_is_left_is_not_started(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(model), "--device", "cpu", "--parts", "rates,step", "--seconds", "0"]
    assert gpu.main(given) == 1
    assert capsys.readouterr().out.count("no time was left") == 2


def test_parts_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.parse(["--parts", "step,rates"]).parts == ["rates", "step"]
    with pytest.raises(SystemExit):
        gpu.parse(["--parts", "step,speed"])
    assert "speed: parts are rates, step, prefill, http, transformers" in capsys.readouterr().err


def test_the_better_of_the_others_ways_is_compared_with() -> None:
    parts = {
        "http": {
            "http": [
                {"streams": 1, "tok/s": 300.0, "failed": 0},
                {"streams": 4, "tok/s": 900.0, "failed": 1},
                {"streams": 16, "tok/s": 9.0, "failed": 0},
            ]
        },
        "transformers": {
            "transformers": [
                {"streams": 1, "tok/s": 50.0},
                {"streams": 1, "tok/s": 100.0},
                {"streams": 4, "tok/s": 100.0},
            ]
        },
    }
    assert gpu.ratios(parts) == {1: 3.0}


def test_time_covered_by_overlapping_kernels_counts_once() -> None:
    spans = [Span("b", 4, 6), Span("a", 0, 2), Span("a", 1, 1.5), Span("c", 5, 7)]
    assert covered(spans) == 5
    profile = Profile(steps=2)
    profile.spans = spans
    assert (profile.kernels, profile.busy) == (2, 2.5)
    assert profile.longest(2) == {"a": 1250.0, "b": 1000.0}


def test_idle_is_what_a_step_takes_less_when_launched_ahead(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With doubles for what only a GPU has; the steps are the CPU's."""
    held: list[int] = []

    class OnGpu(gpu_worker.Clock):
        def __init__(self, device: str) -> None:
            super().__init__("cuda")

    class Event:
        """Each is 10 ms after the one before, or 7 ms once the device was held."""

        now = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.now += 7.0 if held else 10.0
            self.at = Event.now

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    @contextmanager
    def profiled(on_gpu: bool, steps: int) -> Iterator[Profile]:
        assert on_gpu
        found = Profile(steps)
        found.spans = [Span("kernel", n * 0.01, n * 0.01 + 0.008) for n in range(steps)]
        yield found

    monkeypatch.setattr(gpu_worker, "Clock", OnGpu)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", held.append)
    monkeypatch.setattr(gpu_step, "profiled", profiled)
    report = Report(None)
    Decodes(model, [Case(2, 20)], 4, RATES, report).run()
    (row,) = report.found["decode"]
    assert row["step ms"] == 10.0
    assert row["idle"] == pytest.approx(0.3)
    (row,) = report.found["kernels"]
    assert row["busy ms"] == pytest.approx(8.0)
    assert row["between"] == pytest.approx(0.2)


def test_a_gpus_rates_are_measured_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a double for what times on a GPU, and tensors that have no memory."""
    attention = pytest.importorskip("benchmarks.gpu_attention", reason="it needs triton")

    monkeypatch.setattr(attention, "seconds", lambda work: 0.001)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    with FakeTensorMode():
        rates = gpu_rates.measure("cuda")
    assert rates == Rates(copy=2 * 2**31 / 1e-3, read=2**32 / 1e-3, product=2 * 8192**3 / 1e-3)


def test_what_does_not_fit_in_the_cache_is_said_and_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*given: Any) -> Start:
        return replace(start_of(*given), cache=CacheConfig(n_blocks=[10]))

    monkeypatch.setattr(gpu_step, "start_of", small)
    report = Report(None)
    Decodes(model, [Case(2, 20), Case(4, 60)], 2, RATES, report).run()
    assert [row["rows"] for row in report.found["decode"]] == [2]
    assert "4 rows of 60 do not fit in the cache" in report.found["notes"]


def test_contexts_longer_than_the_model_takes_are_refused(model: Path) -> None:
    with pytest.raises(RuntimeError, match="tokens are needed, the model has 512"):
        Decodes(model, [Case(1, 600)], 2, RATES, Report(None)).run()


def test_attention_is_chosen_as_the_server_chooses_it(model: Path) -> None:
    decodes = Decodes(model, [Case(1, 20)], 2, RATES, Report(None), attention="flash")
    with pytest.raises(RuntimeError, match="flash"):
        decodes.run()


def test_a_model_that_is_refused_is_said(tmp_path: Path, model: Path) -> None:
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(RuntimeError, match="cannot be served"):
        Decodes(tmp_path, [Case(1, 20)], 2, RATES, Report(None)).run()
