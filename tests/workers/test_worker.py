from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch
from msgspec import structs
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.tiny_llama import EOS, VOCABULARY, save_tiny_llama
from tgi_async import cgroups
from tgi_async.wire.messages import (
    Admit,
    BatchConfig,
    CacheConfig,
    Loading,
    ModelConfig,
    Ready,
    Refused,
    Run,
    Sampling,
    Start,
    Step,
    StepDone,
    Stop,
    ToRouter,
    ToWorker,
)
from workers import worker as module
from workers.attention.cache import PagedCache
from workers.memory import Room
from workers.models.weights import Weights
from workers.runner import Runner
from workers.worker import Worker, choose_device, unused_gpus

PROMPT = [11, 12, 13]
GIB = 2**30
BYTES_PER_BLOCK = 2 * 2 * 16 * 2 * 16 * 4
"""Keys and values, layers, positions, heads, numbers a head, bytes."""


class Channel:
    """Hands a worker its frames, and keeps what it says.

    `None` among the frames: nothing has come yet when the worker looks.
    """

    def __init__(self, frames: Sequence[ToWorker | None]) -> None:
        self._frames = list(frames)
        self.sent: list[ToRouter] = []
        self.sent_before: list[int] = []
        """How many results had been sent when each frame was read."""

    def receive(self, milliseconds: int | None = None) -> ToWorker | None:
        while self._frames[0] is None and milliseconds is None:
            self._frames.pop(0)
        self.sent_before.append(len(self.results))
        return self._frames.pop(0)

    def send(self, message: ToRouter) -> None:
        self.sent.append(message)

    @property
    def results(self) -> list[StepDone]:
        return [one for one in self.sent if isinstance(one, StepDone)]

    @property
    def ready(self) -> Ready:
        (found,) = (one for one in self.sent if isinstance(one, Ready))
        return found


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the CPU, whatever the machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Any:
    """The model with another config."""

    def edit(**changes: Any) -> Path:
        for file in folder.iterdir():
            (tmp_path / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text()) | changes
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return edit


def start(folder: Path, **changes: Any) -> Start:
    """A start with `changes` in whatever struct of it has a field of the name."""
    made = Start(
        ModelConfig(str(folder), "float32"), BatchConfig(max_rows=4), CacheConfig(n_blocks=[20])
    )
    parts: dict[str, Any] = {name: getattr(made, name) for name in made.__struct_fields__}
    for name, value in changes.items():
        if name in parts:
            parts[name] = value
            continue
        (owner,) = (one for one in parts if name in getattr(parts[one], "__struct_fields__", ()))
        parts[owner] = structs.replace(parts[owner], **{name: value})
    return Start(**parts)


def run(*frames: ToWorker | None) -> Channel:
    channel = Channel(frames)
    Worker(channel).run()  # type: ignore[arg-type]
    return channel


def refusal(folder: Path, **changes: Any) -> str:
    channel = run(start(folder, **changes))
    last = channel.sent[-1]
    assert isinstance(last, Refused), last
    return last.message


def steps(n: int, sampling: Sampling | None = None) -> list[Step]:
    """Prefill of a prompt, then decodes."""
    admit = Admit(0, PROMPT, 3, 0, [4, 2], sampling or Sampling())
    first = Step(1, [], [admit], [], [Run(0, 3)])
    return [first, *(Step(number, [], [], [], [Run(0, 1)]) for number in range(2, n + 1))]


def greedy(folder: Path, n: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[3:]


def test_it_loads_says_what_it_has_and_serves_until_it_is_stopped(folder: Path) -> None:
    channel = run(start(folder), *steps(6), Stop())
    loading = [one for one in channel.sent if isinstance(one, Loading)]
    assert [(one.phase, one.seconds > 0) for one in loading] == [
        ("loading weights", False),
        ("loading weights", True),
    ]
    ready = channel.ready
    assert (ready.n_blocks, ready.block_size, ready.max_total_tokens) == (20, 16, 128)
    assert ready.max_batch_prefill_tokens == 128
    assert (ready.device, ready.vocab_size) == ("cpu", VOCABULARY)
    assert tuple(ready.eos_token_ids) == EOS
    assert ready.kv_cache_bytes == 20 * BYTES_PER_BLOCK
    assert ready.weight_bytes > 4 * VOCABULARY * 64
    assert [one.sampled[0].tokens[0] for one in channel.results] == greedy(folder, 6)


def test_texts_under_grammars_may_end_by_the_ends_of_chats_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Queue[list[int]] = Queue()
    monkeypatch.setattr(module, "Vocabulary", lambda *given: made.put(given[-1]))
    channel = run(start(folder, stop_token_ids=[EOS[1], 96, VOCABULARY]), Stop())
    assert made.get(timeout=10) == [*EOS, 96]
    assert tuple(channel.ready.eos_token_ids) == EOS


def test_on_a_cpu_each_step_is_answered_before_the_next_is_read(folder: Path) -> None:
    channel = run(start(folder), *steps(3), Stop())
    assert channel.sent_before == [0, 0, 1, 2, 3]


class RunnerOf:
    """The runner that a worker builds, without the worker."""

    def __init__(self, folder: Path, channel: Channel) -> None:
        self.worker = Worker(channel)  # type: ignore[arg-type]
        runner, _ = self.worker._load(start(folder))
        assert isinstance(runner, Runner)
        self.runner = runner


@pytest.mark.parametrize("quiet", [0, 1, 3])
def test_on_a_gpu_the_next_step_is_launched_before_the_last_is_fetched(
    folder: Path, quiet: int
) -> None:
    frames: list[ToWorker | None] = list(steps(4))
    frames.insert(quiet, None)
    channel = Channel([*frames, Stop()])
    made = RunnerOf(folder, channel)
    made.worker._serve(made.runner, overlap=True)
    assert [one.step for one in channel.results] == [1, 2, 3, 4]
    assert [one.sampled[0].tokens[0] for one in channel.results] == greedy(folder, 4)
    if not quiet:
        assert channel.sent_before == [0, 0, 1, 2, 3]


def test_costs_of_chunks_are_measured_where_there_may_be_decodes_beside_them(folder: Path) -> None:
    """And not by a worker that takes the place of another, which has said how many blocks."""
    channel = run(start(folder, n_blocks=[], memory=40 * BYTES_PER_BLOCK), Stop())
    costs = channel.ready.prefill_costs
    assert (costs[0].n_tokens, costs[-1].n_tokens) == (16, 64)
    assert all(one.seconds > 0 for one in costs)
    assert "measuring steps" in [one.phase for one in channel.sent if isinstance(one, Loading)]
    alone = start(folder, n_blocks=[], memory=40 * BYTES_PER_BLOCK, max_rows=1)
    assert run(alone, Stop()).ready.prefill_costs == []
    assert run(start(folder), Stop()).ready.prefill_costs == []


def test_the_target_between_tokens_is_the_devices_unless_one_is_given(folder: Path) -> None:
    assert run(start(folder), Stop()).ready.target_inter_token_latency == 0.15
    given = start(folder, target_inter_token_latency=0.5)
    assert run(given, Stop()).ready.target_inter_token_latency == 0.5


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"memory": 7 * BYTES_PER_BLOCK + 5, "n_blocks": []}, {"n_blocks": 7}),
        ({"n_blocks": [9], "memory": 1}, {"n_blocks": 9}),
        ({"block_size": 8}, {"block_size": 8}),
        ({"max_total_tokens": 50}, {"max_total_tokens": 50, "max_batch_prefill_tokens": 50}),
        ({"max_total_tokens": 5000}, {"max_total_tokens": 128}),
        ({"max_prefill_tokens": 7}, {"max_batch_prefill_tokens": 7}),
        ({"max_rows": 1, "max_prefill_tokens": 1}, {"max_batch_prefill_tokens": 1}),
    ],
)
def test_what_is_asked_for_is_what_there_is(
    folder: Path, asked: dict[str, Any], found: dict[str, int]
) -> None:
    ready = run(start(folder, **asked), *steps(2), Stop()).ready
    assert {name: getattr(ready, name) for name in found} == found


def test_the_cache_fills_a_share_of_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.for_cache", lambda device, fraction: 11 * BYTES_PER_BLOCK)
    assert run(start(folder, n_blocks=[]), Stop()).ready.n_blocks == 11


@pytest.mark.parametrize(
    ("name", "n_blocks"), [("fp8_e4m3fn", 4 * 11), ("fp8_e5m2", 4 * 11), ("int8", 64 * 11 // 20)]
)
def test_a_cache_of_bytes_has_more_blocks_in_the_same_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_blocks: int
) -> None:
    """Of heads of 16 float32 numbers, 64 bytes: 16, and 4 for a scale of int8."""
    monkeypatch.setattr("workers.memory.for_cache", lambda device, fraction: 11 * BYTES_PER_BLOCK)
    ready = run(start(folder, n_blocks=[], kv_cache_dtype=name), *steps(2), Stop()).ready
    assert (ready.n_blocks, ready.kv_cache_dtype) == (n_blocks, name)
    assert 11 * BYTES_PER_BLOCK - ready.kv_cache_bytes < BYTES_PER_BLOCK
    assert run(start(folder), Stop()).ready.kv_cache_dtype == "float32"


def test_a_small_cache_shortens_the_texts_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_TOKENS", 64)
    monkeypatch.setattr("workers.memory.for_cache", lambda device, fraction: 4 * BYTES_PER_BLOCK)
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(GIB, "it is small"))
    ready = run(start(folder, n_blocks=[]), Stop()).ready
    assert ready.n_blocks == 4
    note = "texts are limited to 64 tokens, not 128, as the KV cache has no room for more"
    assert f"{note}: it is small" in ready.notes


@pytest.mark.parametrize(
    ("blocks", "asked", "tokens"), [(0, 0, 64), (3, 0, 64), (4, 128, 128), (4, 65, 65)]
)
def test_a_cache_that_is_of_no_use_is_refused_with_the_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, asked: int, tokens: int
) -> None:
    monkeypatch.setattr(module, "LEAST_TOKENS", 64)
    size = blocks * BYTES_PER_BLOCK
    monkeypatch.setattr("workers.memory.for_cache", lambda device, fraction: size)
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(GIB, "it is small"))
    message = refusal(folder, n_blocks=[], max_total_tokens=asked)
    assert f"there is no room for a KV cache of {tokens} tokens (" in message
    assert ": it is small. " in message
    ready = run(start(folder, n_blocks=[], memory=5 * BYTES_PER_BLOCK), Stop()).ready
    assert ready.n_blocks == 5


def test_a_cache_larger_than_the_memory_is_made_and_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(GIB, "it is small"))
    ready = run(start(folder, n_blocks=[], memory=GIB + 1), Stop()).ready
    assert "--kv-cache-memory asks for more than there is: it is small" in ready.notes
    ready = run(start(folder, n_blocks=[], memory=2**20), Stop()).ready
    assert not any("--kv-cache-memory" in note for note in ready.notes)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(1000, "it is tiny"))
    monkeypatch.setattr(Weights, "fill", lambda *_, **__: pytest.fail("they are read"))
    message = refusal(folder, n_blocks=[])
    assert "its weights take 0.00 GB, and there is no room for them: it is tiny" in message


def test_one_that_stands_by_is_refused_where_there_is_no_room_beside_the_one_that_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(GIB, "it is small"))
    waiting = start(folder, beside=GIB // 2)
    assert run(waiting, Stop()).ready.n_blocks == 20
    message = refusal(folder, beside=GIB)
    assert "there is no room for them beside 1.07 GB for the worker that serves" in message


def test_on_a_cpu_a_worker_that_follows_another_neither_warms_up_nor_measures(
    folder: Path,
) -> None:
    assert phases(run(start(folder, n_blocks=[]), Stop())) == [
        "loading weights",
        "warming up",
        "measuring steps",
    ]
    assert phases(run(start(folder), Stop())) == ["loading weights"]
    drafting = start(folder, max_drafts=3)
    assert phases(run(drafting, Stop())) == ["loading weights", "measuring steps"]
    costs = run(drafting, Stop()).ready.decode_costs
    assert len(costs) > 1
    again = run(start(folder, max_drafts=3, decode_costs=costs), Stop())
    assert phases(again) == ["loading weights"]
    assert again.ready.decode_costs == costs


def phases(channel: Channel) -> list[str]:
    """Those that it went through, in order."""
    return [one.phase for one in channel.sent if isinstance(one, Loading) and one.seconds]


def test_a_worker_that_takes_the_place_of_another_is_not_refused_for_lack_of_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.room_on_cpu", lambda swap=False: Room(1000, "it is tiny"))
    assert run(start(folder, n_blocks=[20]), Stop()).ready.n_blocks == 20


@pytest.mark.parametrize(
    ("quota", "variable", "world_size", "threads"),
    [
        (None, "", 1, 8),
        (2.0, "", 1, 2),
        (1.5, "", 1, 2),
        (1.4, "", 1, 1),
        (0.2, "", 1, 1),
        (64.0, "", 1, 8),
        (6.0, "", 2, 3),
        (1.0, "", 2, 1),
        (1.0, "8", 1, 8),
    ],
)
def test_threads_are_those_that_the_quota_has_time_for(
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    variable: str,
    world_size: int,
    threads: int,
) -> None:
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        notes = module._limit_threads(world_size)
        assert torch.get_num_threads() == threads
        assert bool(notes) == (quota is not None and quota < 8 and not variable)
    finally:
        torch.set_num_threads(before)


def test_the_warm_up_is_the_worst_admitted_shape(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[list[Run]] = []
    launch = Runner.launch

    def seen(self: Runner, step: Step) -> Any:
        shapes.append(step.run)
        return launch(self, step)

    monkeypatch.setattr(Runner, "launch", seen)
    run(start(folder, n_blocks=[], max_prefill_tokens=40), Stop())
    assert shapes[1] == [Run(0, 1), Run(1, 1), Run(2, 1), Run(3, 40)]


def test_bfloat16_is_the_default_and_stands_in_for_float16(folder: Path) -> None:
    ready = run(start(folder, dtype=""), *steps(2), Stop()).ready
    assert not any("float16" in note.split() for note in ready.notes)
    ready = run(start(folder, dtype="float16"), *steps(2), Stop()).ready
    assert any("serving in bfloat16" in note for note in ready.notes)
    assert ready.kv_cache_bytes == 20 * BYTES_PER_BLOCK // 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the checkpoint has none"),
        (
            {"quantization_config": {"quant_method": "exl2"}},
            "quantized (exl2), which is not served",
        ),
        ({"model_type": "no_such_model"}, "does not know this model"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    edited: Any, changes: dict[str, Any], reason: str
) -> None:
    folder = edited(**changes)
    message = refusal(folder)
    assert message.startswith(f"{folder} cannot be served: ")
    assert reason in message


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("t5", {}, "t5 is an encoder-decoder model"),
        ("ovis2", {}, "ovis2 takes images"),
    ],
)
def test_another_kind_of_model_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], reason: str
) -> None:
    AutoConfig.for_model(kind, **changes).save_pretrained(tmp_path)
    assert reason in refusal(tmp_path)


def test_a_folder_without_weights_or_config_is_refused(folder: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "model.safetensors" in refusal(tmp_path)


def test_a_cache_of_no_block_is_refused(folder: Path) -> None:
    message = refusal(folder, n_blocks=[], memory=BYTES_PER_BLOCK - 1)
    assert f"no block of the KV cache ({BYTES_PER_BLOCK} bytes)" in message
    assert PagedCache.bytes_per_block(2, 16, 2, 16, torch.float32) == BYTES_PER_BLOCK


def test_weights_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    assert "the model does not run" in refusal(tmp_path, n_blocks=[])


def test_the_first_frame_must_be_a_start(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="expected Start as the first frame, got Stop"):
        run(Stop())


def test_a_second_start_is_an_error(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="expected a step, got Start"):
        run(start(folder), start(folder))


@pytest.fixture
def gpu(_no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has all that serving on its GPU needs."""
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda *names: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_served_on() -> None:
    assert choose_device() == (torch.device("cuda"), [])


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (util, "find_spec", lambda name: None, "install the package triton"),
        (shutil, "which", lambda name: None, "needs a C compiler"),
        (sysconfig, "get_path", lambda *names: "/nowhere", "install Python's headers"),
        (torch.cuda, "get_device_capability", lambda: (7, 5), "Some GPU has compute capability"),
    ],
)
def test_a_gpu_that_cannot_be_served_on_is_left_alone_and_the_reason_said(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, value: Any, said: str
) -> None:
    monkeypatch.setattr(where, name, value)
    device, (note,) = choose_device()
    assert device.type == "cpu"
    assert note.startswith("there is a GPU, and serving is on the CPU: ")
    assert said in note


@pytest.mark.parametrize(
    ("devices", "visible", "built", "said"),
    [
        ([], None, None, None),
        (["nvidiactl", "nvidia-uvm"], None, None, None),
        (["nvidia0"], "", None, None),
        (["nvidia0"], None, None, "is built without CUDA"),
        (["nvidia0"], "0", "13.0", "is built for CUDA 13.0 and cannot use the driver"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    devices: list[str],
    visible: str | None,
    built: str | None,
    said: str | None,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in devices:
        (tmp_path / name).touch()
    notes = unused_gpus(tmp_path)
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


class Launching:
    """A step on a device that is done after some looks at it."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    @property
    def ready(self) -> bool:
        self._looks -= 1
        return self._looks < 0


@pytest.mark.parametrize(
    ("looks", "frames", "found"),
    [
        (0, [None], None),
        (0, [Stop()], Stop()),
        (3, [None, None, None, None], None),
        (3, [None, Stop()], Stop()),
    ],
)
def test_while_a_device_is_busy_the_next_frame_is_not_left_waiting(
    looks: int, frames: list[ToWorker | None], found: ToWorker | None
) -> None:
    worker = Worker(Channel(frames))  # type: ignore[arg-type]
    assert worker._next(Launching(looks)) == found  # type: ignore[arg-type]


def test_graphs_are_given_up_before_the_ranks_are_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # NCCL would wait for them.
    said: list[str] = []

    class Left:
        def destroy(self) -> None:
            said.append("left")

    def load(self: Worker, start: Start) -> tuple[Any, torch.device]:
        runner, device = loaded(self, start)
        self._ranks = Left()  # type: ignore[assignment]
        return runner, device

    loaded = Worker._load
    monkeypatch.setattr(Worker, "_load", load)
    monkeypatch.setattr(Runner, "close", lambda self: said.append("given up"))
    run(start(folder), Stop())
    assert said == ["given up", "left"]
