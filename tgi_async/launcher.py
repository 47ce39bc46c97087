"""From settings to a server that answers, and back down again.

The phases are shown with their times: preparing the model (a process of its own, so that what it
imports and unpacks leaves no trace in the router), loading and warming up in the worker, listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from tgi_async.api.app import create_app
from tgi_async.engine import Engine
from tgi_async.errors import StartError
from tgi_async.settings import Settings
from tgi_async.telemetry import logs
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Loading, Ready, Start

log = logging.getLogger(__name__)

WORKER_EXIT_SECONDS = 5.0
PREPARE = (sys.executable, "-m", "workers.models.prepare")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model folder, ready for serving."""

    path: Path
    model_id: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the API holds requests to: the settings, completed by what model and memory allow."""

    model_id: str
    revision: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    validation_workers: int
    payload_limit: int
    api_key: str | None
    cors_allow_origin: tuple[str, ...]


class _Server(uvicorn.Server):
    """uvicorn, with signals left to the launcher."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> int:
    """Serve until told to stop. Returns the exit status; raises StartError."""
    logs.configure(settings.json_output)
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    began = time.perf_counter()
    # Bound before anything slow, so that a port in use is known at once; it accepts nobody yet.
    listener = _bind(settings)
    prepared = await _prepare(settings)
    tokenizer = Tokenizer.from_folder(prepared.path)
    chat_template = ChatTemplate.from_folder(prepared.path, tokenizer.special_tokens)
    log.info("serving %s from %s", prepared.model_id, prepared.path)
    engine = Engine(
        tokenizer=tokenizer,
        start=Start(
            model_path=str(prepared.path),
            dtype=settings.dtype or "",
            block_size=0,
            n_blocks=0,
            kv_cache_memory=settings.kv_cache_memory or 0,
            max_rows=settings.max_batch_size or settings.max_concurrent_requests,
            max_batch_prefill_tokens=settings.max_batch_prefill_tokens or 0,
            max_total_tokens=settings.max_total_tokens or 0,
            trust_remote_code=settings.trust_remote_code,
        ),
        max_batch_total_tokens=settings.max_batch_total_tokens,
    )
    try:
        ready = await engine.launch(_show)
        limits = _limits(settings, prepared, engine.max_total_tokens)
        metrics = Metrics(
            max_input_tokens=limits.max_input_tokens, max_total_tokens=limits.max_total_tokens
        )
        engine.serve(metrics)
        app = create_app(
            engine=engine,
            tokenizer=tokenizer,
            chat_template=chat_template,
            limits=limits,
            metrics=metrics,
        )
        _welcome(settings, ready, limits, listener, time.perf_counter() - began)
        return await _listen(app, engine, listener, settings.graceful_termination_timeout)
    finally:
        await engine.stop(WORKER_EXIT_SECONDS)
        listener.close()


async def _listen(app: Any, engine: Engine, listener: socket.socket, grace: int) -> int:
    """Answer requests until a signal, or until the workers can not be brought back."""
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_graceful_shutdown=grace,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop(name: str) -> None:
        if stopping.is_set():
            log.warning("%s again: stopping now", name)
            server.force_exit = True
        log.info("%s: no new requests; live ones get up to %d s", name, grace)
        engine.refuse()
        stopping.set()
        server.should_exit = True

    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop, one.name)
    # What lives now lives as long as the server: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.wait({serving, engine.failed}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
        return 0 if stopping.is_set() else 1
    log.error("stopping: the model worker is gone for good")
    server.should_exit = True
    await asyncio.wait({serving}, timeout=WORKER_EXIT_SECONDS)
    engine.failed.exception()
    return 1


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.hostname, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(
            f"Can not listen on {host} port {port}: {error.strerror}. Choose another with "
            "--hostname and --port."
        ) from error
    return listener


async def _prepare(settings: Settings) -> Prepared:
    """Raises StartError; the reason was already printed by the process that found it."""
    command = list(PREPARE)
    if settings.model_id is not None:
        command.append(settings.model_id)
    if settings.revision is not None:
        command += ["--revision", settings.revision]
    if settings.huggingface_hub_cache is not None:
        command += ["--cache", settings.huggingface_hub_cache]
    if settings.trust_remote_code:
        command.append("--trust-remote-code")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise StartError("The model is not ready to be served; the reason is above.")
    found = json.loads(output)
    return Prepared(Path(found["path"]), found["model_id"], found["revision"])


def _limits(settings: Settings, prepared: Prepared, most: int) -> Limits:
    """Raises StartError where the settings ask for more than the model or the memory has."""
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
    return Limits(
        model_id=prepared.model_id,
        revision=prepared.revision,
        model_pipeline_tag="text-generation",
        max_concurrent_requests=settings.max_concurrent_requests,
        max_best_of=settings.max_best_of,
        max_stop_sequences=settings.max_stop_sequences,
        max_top_n_tokens=settings.max_top_n_tokens,
        max_input_tokens=longest,
        max_total_tokens=total,
        max_client_batch_size=settings.max_client_batch_size,
        validation_workers=settings.validation_workers,
        payload_limit=settings.payload_limit,
        api_key=settings.api_key,
        cors_allow_origin=settings.cors_allow_origin,
    )


def _show(loading: Loading) -> None:
    detail = f" ({loading.detail})" if loading.detail else ""
    if loading.seconds:
        log.info("%s%s: %.1f s", loading.phase, detail, loading.seconds)


def _welcome(
    settings: Settings, ready: Ready, limits: Limits, listener: socket.socket, seconds: float
) -> None:
    for note in ready.notes:
        log.warning(note)
    tokens = ready.n_blocks * ready.block_size
    log.info(
        "on %s: weights %.2f GB; KV cache up to %.2f GB, %d tokens in blocks of %d",
        ready.device,
        ready.weight_bytes / 1e9,
        ready.kv_cache_bytes / 1e9,
        tokens,
        ready.block_size,
    )
    log.info(
        "limits: %d tokens a request, %d of them input; %d requests at once; %d prefill tokens "
        "a step",
        limits.max_total_tokens,
        limits.max_input_tokens,
        limits.max_concurrent_requests,
        ready.max_batch_prefill_tokens,
    )
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::") else host
    key = " -H 'Authorization: Bearer ...'" if settings.api_key else ""
    log.info("ready in %.1f s on http://%s:%d. Try:", seconds, shown, port)
    log.info(
        "  curl http://%s:%d/v1/chat/completions%s -H 'Content-Type: application/json' "
        """-d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'""",
        shown,
        port,
        key,
    )
