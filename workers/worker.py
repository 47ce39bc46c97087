"""The worker process: receive a step, run it, reply.

On a GPU the next step is launched before the results of the one before are fetched, so that the
device never waits for the host; on a CPU there is nothing to overlap within one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import (
    Admit,
    Loading,
    Ready,
    Refused,
    Run,
    Sampling,
    Start,
    Step,
    Stop,
)
from workers import memory
from workers.attention import registry
from workers.attention.cache import PagedCache
from workers.attention.cuda import CudaAttention
from workers.constraints.constraints import Constraints
from workers.constraints.vocabulary import Vocabulary
from workers.following import Follower, Leader
from workers.launched import Launched
from workers.models.description import Unsupported
from workers.models.loading import load
from workers.models.rope import Scaling
from workers.ranks import Ranks
from workers.runner import Model, Runner
from workers.sampling import Sampler
from workers.table import RowTable

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CPU_PREFILL_TOKENS = 512
"""Prefill tokens of a step where none are asked for: about a third of a second on two cores."""
CUDA_PREFILL_TOKENS = 4096


class Worker:
    """One rank."""

    def __init__(self, channel: WorkerChannel, rank: int = 0) -> None:
        self._channel = channel
        self._rank = rank
        self._ranks: Ranks | None = None
        """All that share the model, where there are several."""
        self._leader: Leader | None = None

    def run(self) -> None:
        """Load the model and serve steps until told to stop. Raises PeerLost."""
        start = self._channel.receive()
        if not isinstance(start, Start):
            raise RuntimeError(f"expected Start as the first frame, got {type(start).__name__}")
        try:
            runner, device = self._load(start)
        except (Unsupported, ValueError, OSError) as error:
            self._channel.send(Refused(f"{start.model_path} can not be served: {error}"))
            return
        if isinstance(runner, Follower):
            runner.run()
        else:
            self._serve(runner, overlap=device.type == "cuda")
            if self._leader is not None:
                self._leader.end()
        if self._ranks is not None:
            self._ranks.leave()

    def _load(self, start: Start) -> tuple[Runner | Follower, torch.device]:
        device, notes = choose_device(self._rank, start.world_size)
        dtype = DTYPES[start.dtype or "bfloat16"]
        if device.type == "cpu" and dtype is torch.float16:
            dtype = torch.bfloat16
            notes.append("float16 has no fast CPU kernels: serving in bfloat16")
        prefill_tokens = start.max_batch_prefill_tokens or (
            CPU_PREFILL_TOKENS if device.type == "cpu" else CUDA_PREFILL_TOKENS
        )
        if start.world_size > 1:
            if device.type == "cpu":
                torch.set_num_threads(max(1, torch.get_num_threads() // start.world_size))
            self._ranks = Ranks(self._rank, start.world_size, start.meeting_place, device)
        with self._phase("loading weights", f"{dtype}".removeprefix("torch.")):
            model = load(
                Path(start.model_path),
                dtype,
                device,
                start.trust_remote_code,
                start.model_impl,
                self._ranks,
                Scaling(start.rope_scaling, start.rope_factor) if start.rope_scaling else None,
                start.max_total_tokens,
            )
        served: Model = model
        shape = model.shape
        longest = min(shape.max_total_tokens, start.max_total_tokens or shape.max_total_tokens)
        block_size = start.block_size or registry.block_size(device)

        constraints = Constraints(
            lambda: Vocabulary(
                start.grammar_engine, Path(start.model_path), shape.vocab_size, shape.eos_token_ids
            ),
            shape.vocab_size,
        )

        def pools(n_blocks: int) -> PagedCache:
            return PagedCache(
                shape.n_layers,
                n_blocks,
                block_size,
                shape.n_kv_heads,
                shape.head_dim,
                dtype,
                device,
            )

        def build(n_blocks: int) -> Runner:
            table = RowTable(start.max_rows, longest, block_size, device)
            sampler = Sampler(start.max_rows, shape.vocab_size, device)
            return Runner(served, table, pools(n_blocks), sampler, constraints)

        with self._phase("warming up", f"{start.max_rows} rows, {prefill_tokens} prefill tokens"):
            prefill_tokens = min(prefill_tokens, longest)
            _warm_up(build, start.max_rows, prefill_tokens, block_size)
        per_block = PagedCache.bytes_per_block(
            shape.n_layers, block_size, shape.n_kv_heads, shape.head_dim, dtype
        )
        here = start.world_size if device.type == "cpu" else 1
        room = start.kv_cache_memory // start.world_size or memory.for_cache(device) // here
        n_blocks = start.n_blocks or room // per_block
        if self._ranks is not None:
            n_blocks = self._ranks.least(n_blocks)
        if n_blocks < 1:
            raise Unsupported(
                f"no block of the KV cache ({per_block} bytes) fits in the memory that is left; "
                "free some, or give it more with --kv-cache-memory"
            )
        memory.give_back()
        runner: Runner | Follower
        if self._ranks is not None and self._rank:
            runner = Follower(model, self._ranks, pools(n_blocks), device)
        else:
            if self._ranks is not None:
                served = self._leader = Leader(model, self._ranks)
            runner = build(n_blocks)
        self._channel.send(
            Ready(
                n_blocks=n_blocks,
                block_size=block_size,
                max_total_tokens=longest,
                max_batch_prefill_tokens=prefill_tokens,
                device=str(device),
                eos_token_ids=shape.eos_token_ids,
                vocab_size=shape.vocab_size,
                kv_cache_bytes=n_blocks * per_block,
                weight_bytes=model.weight_bytes,
                notes=notes + model.notes,
            )
        )
        if self._rank == 0:
            constraints.prepare()
        return runner, device

    @contextmanager
    def _phase(self, name: str, detail: str = "") -> Iterator[None]:
        began = time.perf_counter()
        if self._rank == 0:
            self._channel.send(Loading(name, 0.0, detail))
        yield
        if self._rank == 0:
            self._channel.send(Loading(name, time.perf_counter() - began, detail))

    def _serve(self, runner: Runner, overlap: bool) -> None:
        launched: Launched | None = None
        while True:
            message = self._channel.receive(wait=launched is None)
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


def choose_device(rank: int = 0, world_size: int = 1) -> tuple[torch.device, list[str]]:
    """Where a rank serves, and what a person should know of the choice. Raises Unsupported."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), []
    refusal = CudaAttention.refusal()
    if refusal is None:
        if world_size == 1:
            return torch.device("cuda"), []
        if world_size > torch.cuda.device_count():
            raise Unsupported(
                f"--num-shard is {world_size}, and there are {torch.cuda.device_count()} GPUs here"
            )
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank), []
    return torch.device("cpu"), [f"there is a GPU, and serving is on the CPU: {refusal}"]


def _warm_up(
    build: Callable[[int], Runner], max_rows: int, prefill_tokens: int, block_size: int
) -> None:
    """Run the worst admitted shape: a full prefill budget beside a full batch of decodes."""
    n_prefill_blocks = -(-prefill_tokens // block_size)
    n_decode = max_rows - 1
    runner = build(n_prefill_blocks + max(1, n_decode))
    greedy = Sampling()
    prompt = [0] * prefill_tokens
    blocks = list(range(n_decode, n_decode + n_prefill_blocks))
    short = [Admit(row, [0], 1, 0, [row], greedy) for row in range(n_decode)]
    if short:
        runner.launch(Step(1, [], short, [], [Run(row, 1) for row in range(n_decode)]))
    wide = Admit(n_decode, prompt, prefill_tokens, 0, blocks, greedy)
    decodes = [Run(row, 1) for row in range(n_decode)] if block_size > 1 else []
    launched = runner.launch(Step(2, [], [wide], [], [*decodes, Run(n_decode, prefill_tokens)]))
    done = runner.collect(launched)
    if done.errors:
        raise Unsupported(f"the model does not run: {done.errors[0].message}")
