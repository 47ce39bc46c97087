"""The server without what listens: an engine with its model, and the application in front of it.

The phases of the start are shown with their times: preparing the model, loading and warming up in
the worker. Whoever has clients, `launcher` or Ray Serve, puts `gate_for` at their disposal first,
and then enters `serving`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from starlette.types import ASGIApp

from tgi_async.api.access_log import AccessLog
from tgi_async.api.app import create_app
from tgi_async.api.dialect import dialect_of
from tgi_async.api.gate import Gate
from tgi_async.api.limits import Limits
from tgi_async.api.root_path import RootPath
from tgi_async.cluster.fingerprint import fingerprint
from tgi_async.cluster.leader import Cluster
from tgi_async.engine import Engine
from tgi_async.errors import StartError
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.images.preparer import COMMAND as IMAGES
from tgi_async.keys import KeyFile
from tgi_async.listener import Answering
from tgi_async.preparation import PREPARE, Prepared, prepare
from tgi_async.proxies import Proxies
from tgi_async.scheduler.reservations import Capacity
from tgi_async.settings import DEFAULT_DRAFTS, MODEL_METHODS, Settings
from tgi_async.shards import n_shards
from tgi_async.starting_images import StartingImages, likely
from tgi_async.supervisor import WORKER
from tgi_async.telemetry import traces
from tgi_async.telemetry.images import ImageCounts
from tgi_async.telemetry.metrics import Metrics
from tgi_async.telemetry.nodes import NodesUp
from tgi_async.telemetry.observer import Observer
from tgi_async.tenants import Tenants
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.chat_files import read_template_config
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.text.tokenizer import Tokenizer, special_tokens_of
from tgi_async.upgrade.upgrade import Upgrade
from tgi_async.wire.messages import (
    BatchConfig,
    CacheConfig,
    DeviceConfig,
    Loading,
    ModelConfig,
    RankConfig,
    Ready,
    SpeculationConfig,
    Start,
)
from tgi_async.worker_restarter import Restarts

log = logging.getLogger(__name__)

WORKER_EXIT_SECONDS = 5.0


class Commands(NamedTuple):
    """What starts the processes that prepare the model, run it, and prepare its images."""

    prepare: tuple[str, ...] = PREPARE
    worker: tuple[str, ...] = WORKER
    images: tuple[str, ...] = IMAGES


COMMANDS = Commands()


class Front(NamedTuple):
    """What listens in front of the gate, where it is ours."""

    http: Answering
    upgrade: Upgrade


def gate_for(settings: Settings) -> Gate:
    """Return the application that answers while the model loads."""
    dialect = dialect_of(strict_tgi=settings.strict_tgi)
    return Gate(settings.cors_allow_origin, kserve=settings.kserve, dialect=dialect)


def outside(gate: Gate, settings: Settings) -> ASGIApp:
    """Return `gate` with what the settings put around it."""
    app: ASGIApp = gate
    if settings.access_log:
        app = AccessLog(app, probes=[os.environ.get("AIP_HEALTH_ROUTE", "")])
    if settings.root_path is not None:
        app = RootPath(app, settings.root_path)
    if (trusted := settings.trusted_proxies) is not None:
        app = Proxies(app, trusted)
        if settings.tenant_header is not None:
            app = Tenants(app, settings.tenant_header, trusted)
    return app


@contextlib.asynccontextmanager
async def serving(
    gate: Gate,
    address: str,
    settings: Settings,
    scratch: str,
    *,
    front: Front | None = None,
    commands: Commands = COMMANDS,
    tell: Callable[[str], None] | None = None,
    cluster: Cluster | None = None,
) -> AsyncIterator[Engine]:
    """Load the model, and have `gate` answer with it until the end of the context.

    `address` is where clients reach it, and `scratch` a folder for files that the cache cannot
    take. `tell` gets what the preparation of the model prints, instead of stderr. `cluster`
    has the other nodes that run a part of the model, if any. Raises StartError.
    """
    began = time.perf_counter()
    keys = None if settings.api_keys_file is None else KeyFile(settings.api_keys_file)
    n_nodes = 1 if cluster is None else cluster.n_nodes
    world_size = n_shards(settings.sharded, settings.num_shard, os.environ, nnodes=n_nodes)
    spans = traces.sending_to(settings.otlp_endpoint) if settings.otlp_endpoint else None
    gate.phase("preparing the model")
    prepared = await prepare(settings, commands.prepare, scratch, tell)
    gate.phase("reading the tokenizer")
    tokenizer = Tokenizer.from_folder(prepared.path)
    chat_template = _chat_template(settings, prepared, tokenizer)
    chat_ends: list[int] = []
    if chat_template is not None:
        chat_ends = await asyncio.to_thread(chat_template.ends, tokenizer)
    payload_limit = settings.payload_limit_for(images=likely(prepared.path))
    log.info("serving %s from %s", prepared.model_id, prepared.path)
    if world_size > 1:
        where = f" on {n_nodes} nodes" if n_nodes > 1 else ""
        log.info("the model is spread over %d processes%s", world_size, where)
    if cluster is not None:
        cluster.open(fingerprint(prepared.path), world_size // n_nodes)
    engine = Engine(
        tokenizer=tokenizer,
        start=_start(settings, prepared, world_size, chat_ends),
        command=commands.worker,
        max_batch_total_tokens=settings.max_batch_total_tokens,
        capacity=Capacity.of(
            settings.max_concurrent_requests,
            settings.queue_size,
            payload_limit,
            settings.max_queued_tokens,
        ),
        restarts=Restarts(standby=settings.standby, nodes=cluster),
    )
    async with contextlib.AsyncExitStack() as closing:
        closing.push_async_callback(engine.stop, WORKER_EXIT_SECONDS)
        image_counts = ImageCounts()
        starting = StartingImages(
            settings, prepared.path, scratch, image_counts, command=commands.images
        )
        closing.push_async_callback(starting.end)
        before = None if front is None else front.upgrade.parent
        if front is not None and before is not None and before.waits:
            closing.callback(gate.hold(settings.max_concurrent_requests + settings.queue_size))
            await front.http.begin()
            log.info("holding requests until the server before this one has ended")
            await before.wait()
        gate.phase("starting the worker")
        ready = await engine.launch(partial(_show, gate))
        images = await starting.images(taken=ready.takes_images)
        limits = _limits(settings, prepared, ready, engine.max_total_tokens, payload_limit, keys)
        metrics = Metrics(
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            max_batch_total_tokens=engine.n_blocks * ready.block_size,
            speculation=ready.speculation,
            max_drafts=ready.max_drafts,
            images=None if images is None else image_counts,
            nodes=None if cluster is None else NodesUp(cluster),
        )
        engine.serve(metrics)
        if keys is not None:
            closing.callback(asyncio.create_task(keys.follow()).cancel)
        app = create_app(
            engine=engine,
            tokenizer=tokenizer,
            chat_template=chat_template,
            limits=limits,
            metrics=metrics,
            checker=_checker(settings, prepared, ready, chat_ends),
            chat_stop_token_ids=tuple(chat_ends),
            images=images,
        )
        collector = None
        if spans is not None:
            collector = traces.OpenTelemetry(
                spans, service_name=settings.otlp_service_name, model_id=limits.model_id
            )
            closing.push_async_callback(asyncio.to_thread, collector.close)
        _show_ends(tokenizer, ready.eos_token_ids, chat_ends)
        await closing.enter_async_context(app.router.lifespan_context(app))
        # What lives now lives as long as the server: the garbage collector need not scan it again.
        gc.collect()
        gc.freeze()
        gate.open(Observer(app, collector))
        if front is not None:
            if not front.http.begun:
                await front.http.begin()
            front.upgrade.is_ready(ready.device)
        beside_decode = engine.core.budget.prefill_tokens(1)
        _welcome(settings, ready, limits, beside_decode, address, time.perf_counter() - began)
        yield engine


def _start(settings: Settings, prepared: Prepared, world_size: int, chat_ends: list[int]) -> Start:
    """Return the workers' configuration; they replace zeros and empty texts by values of their
    own."""
    rows = settings.max_batch_size or settings.max_concurrent_requests
    return Start(
        ModelConfig(
            str(prepared.path),
            dtype=settings.dtype or "",
            implementation=settings.model_impl,
            trust_remote_code=settings.trust_remote_code,
            max_total_tokens=settings.max_total_tokens or 0,
            rope_scaling=settings.rope_scaling or "",
            rope_factor=settings.rope_factor or 1.0,
            quantize=settings.quantize or "",
            kv_cache_dtype=settings.kv_cache_dtype or "",
            round_activations=settings.cpu_activations == "int8",
        ),
        BatchConfig(
            max_rows=min(rows, settings.max_concurrent_requests),
            max_prefill_tokens=settings.max_batch_prefill_tokens or 0,
        ),
        CacheConfig(memory=settings.kv_cache_memory or 0),
        DeviceConfig(
            attention=settings.attention,
            cuda_graphs=settings.graph_sizes,
            cuda_memory_fraction=settings.cuda_memory_fraction,
            native_kernels=settings.native_kernels,
        ),
        RankConfig(world_size),
        stop_token_ids=chat_ends,
        target_inter_token_latency=(settings.target_inter_token_latency or 0) / 1000,
        speculation=_speculation(settings, prepared),
    )


def _speculation(settings: Settings, prepared: Prepared) -> SpeculationConfig:
    """Return which drafts the workers make. Raises StartError for a model without the heads that
    are asked for."""
    n, method = settings.speculate, settings.speculation or ""
    if n == 0:
        return SpeculationConfig()
    if method in MODEL_METHODS and not prepared.speculator:
        raise StartError(
            f"--speculation {method} needs a model of that kind. Given: {prepared.model_id}. Give "
            "the heads or the speculator as --model-id, which names its base model, or leave "
            "--speculation out."
        )
    if prepared.speculator and (not method or method in MODEL_METHODS):
        return SpeculationConfig(n or 0, method, prepared.speculator)
    return SpeculationConfig(n or (DEFAULT_DRAFTS if method else 0), method)


def _chat_template(
    settings: Settings, prepared: Prepared, tokenizer: Tokenizer
) -> ChatTemplate | None:
    if settings.tokenizer_config_path is None:
        return ChatTemplate.from_folder(prepared.path, tokenizer.special_tokens)
    templates, config = read_template_config(Path(settings.tokenizer_config_path))
    return ChatTemplate(templates, tokenizer.special_tokens | special_tokens_of(config))


def _checker(
    settings: Settings, prepared: Prepared, ready: Ready, chat_ends: list[int]
) -> GrammarChecker | None:
    if settings.disable_grammar_support:
        return None
    further = [id for id in chat_ends if id < ready.vocab_size]
    end_ids = list(dict.fromkeys(ready.eos_token_ids + further))
    return GrammarChecker(str(prepared.path), ready.vocab_size, end_ids)


def _limits(
    settings: Settings,
    prepared: Prepared,
    ready: Ready,
    most: int,
    payload_limit: int,
    keys: KeyFile | None = None,
) -> Limits:
    """Return the limits of requests. Raises StartError where the settings exceed the model or the
    memory."""
    total = settings.max_total_tokens or most
    if total > most:
        raise StartError(
            f"--max-total-tokens must be at most {most}, which is what this model and the KV cache "
            f"allow. Given: {total}. Less is possible, or more memory (--kv-cache-memory)."
        )
    longest = settings.input_limit or total - 1
    if longest >= total:
        raise StartError(
            f"--max-input-tokens must be less than max-total-tokens, here {total}. "
            f"Given: {longest}."
        )
    found: dict[str, Any] = {
        "model_id": prepared.model_id,
        "model_names": settings.served_model_name or (prepared.model_id,),
        "revision": prepared.revision,
        "model_pipeline_tag": "text-generation",
        "quantization": ready.quantization or None,
        "weight_bytes": ready.weight_bytes,
        "kv_cache_dtype": ready.kv_cache_dtype,
        "max_drafts": ready.max_drafts,
        "payload_limit": payload_limit,
        "key_file": keys,
        "sampling_defaults": SamplingDefaults.from_folder(prepared.path),
        "max_input_tokens": longest,
        "max_total_tokens": total,
        "dialect": dialect_of(strict_tgi=settings.strict_tgi),
    }
    named = {one.name for one in fields(Limits)} - found.keys()
    return Limits(**found, **{name: getattr(settings, name) for name in named})


def _show(gate: Gate, loading: Loading) -> None:
    if not loading.seconds:
        gate.phase(loading.phase)
    detail = f" ({loading.detail})" if loading.detail else ""
    if loading.seconds:
        log.info("%s%s: %.1f s", loading.phase, detail, loading.seconds)


def _show_ends(tokenizer: Tokenizer, ends: list[int], chat_ends: list[int]) -> None:
    def named(ids: list[int]) -> str:
        return ", ".join(f"{tokenizer.token_text(id)!r} ({id})" for id in ids)

    if ends:
        log.info("texts end with %s", named(ends))
    else:
        log.warning("no file of the model names an end-of-text token")
    if further := [id for id in chat_ends if id not in ends]:
        log.info(
            "answers in a chat also end with %s, which the chat template writes", named(further)
        )


def _welcome(
    settings: Settings,
    ready: Ready,
    limits: Limits,
    beside_decode: int,
    address: str,
    seconds: float,
) -> None:
    for note in ready.notes:
        log.warning(note)
    tokens = ready.n_blocks * ready.block_size
    log.info(
        "on %s: weights %.2f GB%s; KV cache up to %.2f GB in %s, %d tokens in blocks of %d",
        ready.device,
        ready.weight_bytes / 1e9,
        f" ({ready.quantization})" if ready.quantization else "",
        ready.kv_cache_bytes / 1e9,
        ready.kv_cache_dtype,
        tokens,
        ready.block_size,
    )
    log.info(
        "limits: %d tokens a request, %d of them input; %d requests at once, %d more may wait; "
        "%d prefill tokens a step, %d beside a decode",
        limits.max_total_tokens,
        limits.max_input_tokens,
        limits.max_concurrent_requests,
        settings.queue_size,
        ready.max_batch_prefill_tokens,
        beside_decode,
    )
    if ready.max_drafts:
        log.info(
            "speculation by %s: up to %d drafts for a text in a step",
            ready.speculation,
            ready.max_drafts,
        )
    key = " -H 'Authorization: Bearer ...'" if limits.api_key or limits.key_file else ""
    log.info("ready in %.1f s on %s. Try:", seconds, settings.unix_socket or address)
    if settings.unix_socket is not None:
        address = f"--unix-socket {settings.unix_socket} {address}"
    log.info(
        "  curl %s/v1/chat/completions%s -H 'Content-Type: application/json' "
        """-d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'""",
        address,
        key,
    )
