"""A replica: one engine and its application, in a process that Serve starts, watches and stops."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tgi_async.arguments import without_effect
from tgi_async.cli import adopt_token
from tgi_async.errors import StartError
from tgi_async.ray_serve import direct
from tgi_async.ray_serve.flags import given_by, settings_of
from tgi_async.ray_serve.health import Health, Unwell
from tgi_async.serving import COMMANDS, Commands, gate_for, outside, serving
from tgi_async.shards import visible_gpus
from tgi_async.telemetry import logs
from tgi_async.temporary import PrivateFolder

log = logging.getLogger(__name__)

LAST_CHARACTERS = 2000
ADDRESS = "http://the-address-of-serve"


class Replica:
    """What Serve makes once in each replica, of the `args` of its config file."""

    commands: Commands = COMMANDS

    def __init__(self, args: Mapping[str, Any]) -> None:
        self._args = args

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Load the model and return the application. Raises StartError.

        Serve ends its lifespan when the last request is answered, or kills the process. Workers and
        helper processes die with it.
        """
        given = given_by(self._args)
        settings = settings_of(self._args, os.environ)
        _check_shards(settings.num_shard)
        logs.configure(settings.json_output, settings.log_level, settings.log_colorize)
        for line in without_effect(given, {}):
            log.warning(line)
        adopt_token()
        began = time.monotonic()
        gate, said = gate_for(settings), _Echo()
        async with contextlib.AsyncExitStack() as starting:
            scratch = starting.enter_context(PrivateFolder())
            try:
                engine = await starting.enter_async_context(
                    serving(gate, ADDRESS, settings, scratch, commands=self.commands, tell=said)
                )
            except StartError as error:
                # What Serve shows of a start that failed is the exception alone.
                raise StartError(f"{said.last}{error}") from None
            closing = starting.pop_all()
        self._engine = engine
        self._health = Health(time.monotonic() - began)
        return Hosted(outside(gate, settings), closing, same_loop=direct.same_loop())

    @property
    def failed(self) -> bool:
        """Whether the workers are gone for good."""
        return self._engine.failed.done()

    def record_routing_stats(self) -> dict[str, float]:
        """Return what routers ask for regularly: the load, in requests."""
        return {"requests": self._engine.n_running + self._engine.n_waiting}

    async def check_health(self) -> None:
        """Raise Unwell where Serve should replace this replica."""
        engine = self._engine
        if self.failed:
            raise Unwell(f"the workers are gone for good: {engine.failed.exception()}")
        n_running, n_waiting = engine.n_running, engine.n_waiting
        state = (n_running, n_waiting, engine.resident_tokens, engine.used_blocks)
        self._health.check(
            time.monotonic(), ready=engine.ready, busy=bool(n_running or n_waiting), state=state
        )


class Hosted:
    """`app` below the path that Serve has it at, until the end of the lifespan.

    `same_loop`: it is called on the event loop of Serve's HTTP server.
    """

    def __init__(
        self, app: ASGIApp, closing: contextlib.AsyncExitStack, *, same_loop: bool
    ) -> None:
        self._app = app
        self._closing = closing
        self._same_loop = same_loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._closing.aclose()
            await send({"type": "lifespan.shutdown.complete"})
            return
        scope = {**scope}
        root, path = scope.pop("root_path", ""), scope["path"]
        if root and (path == root or path.startswith(root + "/")):
            scope["path"] = path[len(root) :] or "/"
        if self._same_loop:
            direct.offer(scope, receive)

        async def without_id(message: Message) -> None:
            # Serve adds the same one again.
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, without_id)


class _Echo:
    """Writes to stderr what it is called with, and keeps the end of it."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
        self.last = (self.last + text)[-LAST_CHARACTERS:]


def _check_shards(num_shard: int | None) -> None:
    """Raise StartError where Serve gave this replica another number of GPUs than of shards."""
    n_gpus = visible_gpus(os.environ)
    if num_shard is not None and n_gpus and num_shard != n_gpus:
        raise StartError(
            f"'num-shard' in args is {num_shard}, and the replica has {n_gpus} GPUs. Set "
            "`num_gpus` in `ray_actor_options` to as many, or leave 'num-shard' out: there is a "
            "shard for each GPU."
        )
