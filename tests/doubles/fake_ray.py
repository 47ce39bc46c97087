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

from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles import image_process
from tests.doubles.fake_server import PREPARED
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tgi_async.launcher import Commands
from tgi_async.ray_serve.replica import Replica


def variables(folder: Path, behaviour: Behaviour, prepare: str = "") -> dict[str, str]:
    """The environment of replicas with such workers, whose files are in `folder`."""
    behaviour.journal = str(folder / "journal")
    (folder / "tokenizer.json").write_text(tiny_inner().to_str())
    found = json.dumps(PREPARED | {"path": str(folder)})
    return {VARIABLE: behaviour.environment(), "FAKE_PREPARE": prepare or f"print({found!r})"}


class FakeReplica(Replica):
    @property
    def commands(self) -> Commands:  # type: ignore[override]
        prepare = (sys.executable, "-c", os.environ["FAKE_PREPARE"])
        return Commands(prepare, COMMAND, image_process.COMMAND)


def app(args: dict[str, Any]) -> Any:
    from tgi_async.ray_serve.application import application

    return application(args, FakeReplica)
