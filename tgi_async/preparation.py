"""The model folder that a server serves, made ready by a process of its own.

What that process imports and unpacks leaves no trace in the router.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tgi_async import cgroups, processes
from tgi_async.errors import StartError
from tgi_async.settings import Settings

PREPARE = processes.command("workers.models.prepare")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model folder that is ready for serving."""

    path: Path
    model_id: str
    revision: str | None
    speculator: str = ""
    """Folder of the Medusa heads or the MLP speculator that belong to the model, if any."""


async def prepare(
    settings: Settings,
    program: tuple[str, ...],
    scratch: str,
    tell: Callable[[str], None] | None,
) -> Prepared:
    """Prepare the model folder by `program`, whose errors `tell` gets, instead of stderr. Raises
    StartError; the program has printed the reason."""
    command = [*program, "--scratch", scratch]
    if settings.model_id is not None:
        command.append(settings.model_id)
    if settings.revision is not None:
        command += ["--revision", settings.revision]
    if settings.huggingface_hub_cache is not None:
        command += ["--cache", settings.huggingface_hub_cache]
    if settings.trust_remote_code:
        command.append("--trust-remote-code")
    if settings.quantize == "gguf":
        command += ["--quantize", settings.quantize]
    n_killed = cgroups.n_killed()
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=pipe,
        stderr=None if tell is None else pipe,
        env=processes.environment(),
    )
    assert process.stdout is not None
    try:
        output, _ = await asyncio.gather(process.stdout.read(), _pass_on(process.stderr, tell))
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == -signal.SIGKILL:
        raise StartError(
            f"The process that prepares the model was killed{cgroups.why_killed(n_killed)}."
        )
    if process.returncode:
        raise StartError("The model is not ready to be served; the reason is above.")
    found = json.loads(output)
    return Prepared(
        Path(found["path"]), found["model_id"], found["revision"], found.get("speculator", "")
    )


async def _pass_on(
    printed: asyncio.StreamReader | None, tell: Callable[[str], None] | None
) -> None:
    """Give what is printed to `tell`, when it is printed."""
    if printed is not None and tell is not None:
        while piece := await printed.read(2**16):
            tell(piece.decode(errors="replace"))
