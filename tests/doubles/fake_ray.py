"""The application of Ray Serve over fake workers, as `tests.doubles.fake_server` is the server.

`tests.doubles.fake_ray:app` is what a config file imports. Fake workers and the preparation of the
model are set by the same variables.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles import image_process
from tests.doubles.fake_server import PREPARED
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tgi_async.api.exchange import DIRECT
from tgi_async.ray_serve.replica import Hosted, Replica
from tgi_async.serving import Commands


def variables(folder: Path, behaviour: Behaviour, prepare: str = "") -> dict[str, str]:
    """The environment of replicas with such workers, whose files are in `folder`."""
    behaviour.journal = str(folder / "journal")
    (folder / "tokenizer.json").write_text(tiny_inner().to_str())
    found = json.dumps(PREPARED | {"path": str(folder)})
    return {VARIABLE: behaviour.environment(), "FAKE_PREPARE": prepare or f"print({found!r})"}


class FakeReplica(Replica):
    """Its replies say in headers whether they have the short way to Serve's HTTP server, and which
    process they are from."""

    @property
    def commands(self) -> Commands:  # type: ignore[override]
        prepare = (sys.executable, "-c", os.environ["FAKE_PREPARE"])
        return Commands(prepare, COMMAND, image_process.COMMAND)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        hosted = await super().__serve_build_asgi_app__()
        assert isinstance(hosted, Hosted)
        inner = hosted._app

        async def told(scope: Scope, receive: Receive, send: Send) -> None:
            has = str(DIRECT in scope.get("extensions", {})).encode()
            added = [(b"x-direct", has), (b"x-pid", str(os.getpid()).encode())]

            async def tell(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], *added]}
                await send(message)

            await inner(scope, receive, tell)

        hosted._app = told
        return hosted


def app(args: dict[str, Any]) -> Any:
    from tgi_async.ray_serve.application import application

    return application(args, FakeReplica)
