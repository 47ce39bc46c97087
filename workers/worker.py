"""The worker process: receive a step, run it, reply.

On a GPU the next step is launched before the results of the one before are fetched, so that the
device never waits for the host; on a CPU there is nothing to overlap within one process.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from tgi_async import cgroups
from tgi_async.cgroups import gigabytes
from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import CachePool, Loading, Ready, Refused, Start, Step, Stop, ToWorker
from workers import memory, native
from workers.attention import registry
from workers.attention.triton_paged import gpu_refusal
from workers.constraints.constraints import Constraints
from workers.constraints.vocabulary import Vocabulary
from workers.draft_models.checkpoint import TargetModel
from workers.draft_models.registry import draft_source, resolved
from workers.errors import UnsupportedModel
from workers.executor import Drafter, Executor
from workers.graphs.capture import CudaGraphCapture
from workers.graphs.decode import GraphPlan, default_sizes
from workers.launched_step import LaunchedStep
from workers.models.loading import Loaded, load
from workers.ranks import Ranks
from workers.runner import Runner
from workers.step_costs import MOST_DECODES, CostPlan
from workers.tensor_parallel import DriverRank, FollowerRank

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POLL_MILLISECONDS = 1
"""Between looks at whether a device is done. Frames end the wait at once."""
CPU_PREFILL_TOKENS = 512
"""Prefill tokens of a step where none are asked for: about a third of a second on two cores."""
CUDA_PREFILL_TOKENS = 4096
CPU_TARGET_SECONDS = 0.15
"""Between two tokens of a text beside prompts, where nothing else is asked for."""
CUDA_TARGET_SECONDS = 0.04
LEAST_TOKENS = 512
"""Of a cache that is planned: a smaller one holds no conversation."""


class Worker:
    """One rank."""

    def __init__(self, channel: WorkerChannel, rank: int = 0) -> None:
        self._channel = channel
        self._rank = rank
        self._ranks: Ranks | None = None
        """All that share the model, where there are several."""
        self._driver: DriverRank | None = None

    def run(self) -> None:
        """Load the model and serve steps until the router stops it. Raises PeerLost."""
        start = self._channel.receive()
        if not isinstance(start, Start):
            raise RuntimeError(f"expected Start as the first frame, got {type(start).__name__}")
        try:
            runner, device = self._load(start)
        except (UnsupportedModel, ValueError, OSError) as error:
            self._channel.send(Refused(f"{start.model.path} cannot be served: {error}"))
            return
        if isinstance(runner, FollowerRank):
            runner.run()
        else:
            self._serve(runner, overlap=device.type == "cuda")
            if self._driver is not None:
                self._driver.end()
        if self._ranks is not None:
            runner.close()
            self._ranks.destroy()

    def _load(self, start: Start) -> tuple[Runner | FollowerRank, torch.device]:
        if start.device.native_kernels:
            native.prefer_compiled()
        device, notes = choose_device(self._rank % start.ranks.n_here, start.ranks.n_here)
        attention, reasons = registry.choose(start.device.attention, device)
        notes += reasons
        dtype = DTYPES[start.model.dtype or "bfloat16"]
        if device.type == "cpu" and dtype is torch.float16:
            dtype = torch.bfloat16
            notes.append("float16 has no fast CPU kernels: serving in bfloat16")
        prefill_tokens = start.batch.max_prefill_tokens or (
            CPU_PREFILL_TOKENS if device.type == "cpu" else CUDA_PREFILL_TOKENS
        )
        notes += _limit_threads(start.ranks.n_here if device.type == "cpu" else 1)
        if start.ranks.world_size > 1:
            self._ranks = Ranks(
                self._rank,
                start.ranks.world_size,
                start.ranks.meeting_place,
                device,
                n_here=start.ranks.n_here,
                interface=start.ranks.interface,
            )
        with self._phase("loading weights", f"{dtype}".removeprefix("torch.")):
            model = load(
                start.model,
                dtype,
                device,
                self._ranks,
                attention,
                # Another one of them was here before, and what little there is may be for now only.
                must_fit=not start.cache.n_blocks or start.beside > 0,
                beside=start.beside,
            )
        if self._ranks is not None:
            # Collectives of GPUs have a timeout, which is not to begin while others still load.
            self._ranks.all_reduce_min(0)
        spec = model.spec
        longest = min(spec.max_total_tokens, start.model.max_total_tokens or spec.max_total_tokens)
        further = [id for id in start.stop_token_ids if id < spec.vocab_size]
        end_ids = list(dict.fromkeys(spec.eos_token_ids + further))
        constraints = Constraints(
            lambda: Vocabulary(Path(start.model.path), spec.vocab_size, end_ids),
            spec.vocab_size,
        )
        if self._ranks is not None and self._rank == 0:
            self._driver = DriverRank(model, self._ranks)
        speculation = resolved(start.speculation)
        drafter = Drafter(None, speculation.max_drafts)
        if speculation.max_drafts and self._rank == 0:
            head = (self._driver or model).head
            target = TargetModel(head, spec.hidden_size, spec.vocab_size, dtype, device)
            source = draft_source(speculation, target)
            drafter = drafter._replace(source=source)
        executor = Executor(
            model,
            device,
            start.batch.max_rows,
            longest,
            min(prefill_tokens, longest),
            start.cache.block_size or attention.page_size,
            constraints,
            self._ranks,
            self._driver,
            drafter,
            _largest_image(model, Path(start.model.path), longest, device),
        )
        # On a CPU it shows whether the model runs, and what memory that takes: both are known of a
        # worker that was here before.
        if device.type != "cpu" or not start.cache.n_blocks:
            with self._phase(
                "warming up", f"{start.batch.max_rows} rows, {prefill_tokens} prefill tokens"
            ):
                executor.warm_up()
        if start.cache.n_blocks:
            (n_blocks,) = start.cache.n_blocks
        else:
            n_blocks = executor.blocks_that_fit(
                start.cache.memory, start.device.cuda_memory_fraction
            )
        if self._ranks is not None:
            n_blocks = self._ranks.all_reduce_min(n_blocks)
        per_block = executor.bytes_per_block
        if device.type == "cpu" and not start.cache.n_blocks:
            notes += _check_cache(
                n_blocks, executor, start.cache.memory, start.model.max_total_tokens
            )
        if n_blocks < 1:
            raise UnsupportedModel(
                f"no block of the KV cache ({per_block} bytes) fits in the memory that is left; "
                "free some, or give it more with --kv-cache-memory"
            )
        gc.collect()
        memory.give_back()
        # What lives now lives as long as the worker: no step is to wait for a look at all of it.
        gc.freeze()
        costs = _cost_plan(start, executor)
        default_target = CPU_TARGET_SECONDS if device.type == "cpu" else CUDA_TARGET_SECONDS
        runner = self._serving(executor, n_blocks, start.device.cuda_graphs, notes, costs)
        self._channel.send(
            Ready(
                pools=[CachePool(n_blocks, spec.cache_group.spec.kind)],
                block_size=executor.block_size,
                max_total_tokens=longest,
                max_batch_prefill_tokens=executor.prefill_tokens,
                device=str(device),
                eos_token_ids=spec.eos_token_ids,
                vocab_size=spec.vocab_size,
                kv_cache_bytes=n_blocks * per_block,
                weight_bytes=model.weight_bytes,
                notes=notes + native.notes + model.notes,
                quantization=model.quantization,
                kv_cache_dtype=spec.cache_group.spec.stored,
                max_drafts=drafter.most,
                speculation=speculation.method,
                prefill_costs=costs.prefill,
                decode_costs=costs.decode,
                target_inter_token_latency=start.target_inter_token_latency or default_target,
                takes_images=model.vision is not None,
            )
        )
        if self._rank == 0:
            constraints.prepare()
        return runner, device

    def _serving(
        self,
        executor: Executor,
        n_blocks: int,
        sizes: list[int] | None,
        notes: list[str],
        costs: CostPlan,
    ) -> Runner | FollowerRank:
        """What serves; decode steps of these numbers of rows are captured on a GPU, None being the
        default and an empty list none."""
        if executor.device.type != "cuda" or sizes == []:
            notes += ["--cuda-graphs has no effect on a CPU"] if sizes else []
            if not costs.asked:
                return executor.serving(n_blocks, None, costs)
            with self._phase("measuring steps"):
                return executor.serving(n_blocks, None, costs)
        sizes = [n for n in sizes or default_sizes(executor.max_lines) if n <= executor.max_lines]
        plan = GraphPlan(CudaGraphCapture(), sizes or [executor.max_rows])
        with self._phase("capturing CUDA graphs", f"of {', '.join(map(str, plan.sizes))} rows"):
            runner = executor.serving(n_blocks, plan, costs)
        notes += plan.notes
        return runner

    @contextmanager
    def _phase(self, name: str, detail: str = "") -> Iterator[None]:
        began = time.perf_counter()
        if self._rank == 0:
            self._channel.send(Loading(name, 0.0, detail))
        yield
        if self._rank == 0:
            self._channel.send(Loading(name, time.perf_counter() - began, detail))

    def _serve(self, runner: Runner, overlap: bool) -> None:
        launched: LaunchedStep | None = None
        while True:
            message = self._next(launched)
            if message is None:
                assert launched is not None
                self._channel.send(runner.collect(launched))
                launched = None
                continue
            if isinstance(message, Stop):
                if launched is not None:
                    self._channel.send(runner.collect(launched))
                return
            if not isinstance(message, Step):
                raise RuntimeError(f"expected a step, got {type(message).__name__}")
            if launched is not None and runner.drafts:
                self._channel.send(runner.collect(launched))
                launched = None
            previous, launched = launched, runner.forward(message)
            if previous is not None and runner.constrained:
                self._channel.send(runner.collect(previous))
                previous = None
            runner.sample(launched)
            if previous is not None:
                self._channel.send(runner.collect(previous))
            if not overlap:
                self._channel.send(runner.collect(launched))
                launched = None

    def _next(self, launched: LaunchedStep | None) -> ToWorker | None:
        """The next frame, or None if the results of what is launched are there before one comes:
        whatever comes meanwhile is to be launched behind it, so that the device never idles."""
        if launched is None:
            return self._channel.receive()
        while not launched.ready:
            message = self._channel.receive(POLL_MILLISECONDS)
            if message is not None:
                return message
        return self._channel.receive(0)


def _largest_image(
    model: Loaded, folder: Path, longest: int, device: torch.device
) -> Mapping[str, torch.Tensor] | None:
    """Return what is encoded while the model warms up: on a GPU, whose memory the cache takes to
    the last part. On a CPU it could take minutes."""
    if model.vision is None or device.type != "cuda":
        return None
    # Only here, as it brings Pillow along.
    from workers.vision.largest import largest_image

    return largest_image(folder, longest)


def _cost_plan(start: Start, executor: Executor) -> CostPlan:
    """Return what is to be measured: chunks of prompts, if they may be beside decodes, and decodes,
    if there are drafts."""
    max_rows, max_drafts = executor.max_rows, executor.drafter.most
    # The router knows what chunks cost from a worker that was here before.
    chunks = max_rows > 1 and not start.cache.n_blocks
    known = start.speculation.decode_costs
    decodes = max_drafts > 0 and not known
    return CostPlan(
        largest_chunk=-(-executor.prefill_tokens // 2) if chunks else 0,
        most_decodes=min(MOST_DECODES, max_rows * (1 + max_drafts)) if decodes else 0,
        decode=known,
    )


def _limit_threads(world_size: int) -> list[str]:
    """Limit the threads of torch and of our kernels to this rank's part of the processors, and
    return what the user should know about it.

    A quota may allow less time than there are processors. Threads that have used it up all stand
    still until the next period, so it is rounded to the nearest whole number.
    """
    before = most = torch.get_num_threads()
    quota = cgroups.cpu_quota()
    notes: list[str] = []
    if quota is not None and quota + 0.5 < before and not os.environ.get("OMP_NUM_THREADS"):
        most = max(1, int(quota + 0.5))
        notes = [f"threads: {most}, not {before}, as the limit is {quota:.3g} processors"]
    wanted = max(1, most // world_size)
    if wanted != before:
        torch.set_num_threads(wanted)
    return notes


def _check_cache(
    n_blocks: int, executor: Executor, kv_cache_memory: int, max_total_tokens: int
) -> list[str]:
    """Return what the user should know about the size of the cache.

    Raises UnsupportedModel for one that was planned (`kv_cache_memory` is 0) and is too small for
    `max_total_tokens`, if they were asked for, or for a conversation.
    """
    n_tokens, longest = n_blocks * executor.block_size, executor.longest
    least = longest if max_total_tokens else min(longest, LEAST_TOKENS)
    room = memory.room_on_cpu()
    if kv_cache_memory:
        enough = kv_cache_memory <= room.size
        return [] if enough else [f"--kv-cache-memory asks for more than there is: {room.because}"]
    if n_tokens < least:
        wanted = -(-least // executor.block_size) * executor.bytes_per_block
        raise UnsupportedModel(
            f"there is no room for a KV cache of {least} tokens ({gigabytes(wanted)}): "
            f"{room.because}. The cache may have a part in {memory.CPU_SHARE} of what is left, and "
            f"{gigabytes(memory.OTHERS)} stay free. Allow more memory, ask for less with "
            "--max-total-tokens, --max-concurrent-requests and --max-batch-prefill-tokens, or give "
            "the size of the cache with --kv-cache-memory"
        )
    if n_tokens < longest:
        return [
            f"texts are limited to {n_tokens} tokens, not {longest}, as the KV cache has no room "
            f"for more: {room.because}"
        ]
    return []


def choose_device(rank: int = 0, world_size: int = 1) -> tuple[torch.device, list[str]]:
    """Choose the device of a rank; return it with notes for the operator.

    Raises UnsupportedModel.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu"), unused_gpus()
    refusal = gpu_refusal()
    if refusal is None:
        if world_size == 1:
            return torch.device("cuda"), []
        if world_size > torch.cuda.device_count():
            raise UnsupportedModel(
                f"--num-shard asks for {world_size} here, and there are "
                f"{torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank), []
    return torch.device("cpu"), [f"there is a GPU, and serving is on the CPU: {refusal}"]


def unused_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Why NVIDIA GPUs that are here are not used by torch, if there are any."""
    if not any(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*")):
        return []
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    built = torch.version.cuda
    reason = (
        "is built without CUDA; install one that is, such as that of PyPI"
        if built is None
        else f"is built for CUDA {built} and cannot use the driver; update it"
    )
    return [f"there is a GPU, and serving is on the CPU: torch {torch.__version__} {reason}"]
