"""`tgi-async-entrypoint`: what an image of the server starts, for every way to start it.

- flags, or nothing: the server, with what the platform says (`platforms`);
- `serve`, SageMaker's one argument, and flags: the same;
- any other command (`text-generation-launcher ...`, `tgi-async env`, `bash`): that, in its place.

A setting's flag comes first, then its flag in a variable SM_TGI_*, then its own variable, then the
platform's; of the port the platform's comes before PORT, which images set.
"""

from __future__ import annotations

import os
import sys

from tgi_async import platforms
from tgi_async.errors import StartError


def main(arguments: list[str] | None = None) -> int:
    """Run what the container was asked for. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "serve"
    if command != "serve":
        os.environ.update(platforms.hugging_face_home(os.environ))
        return _replace(arguments)
    try:
        os.environ.update(platforms.variables(arguments, os.environ))
    except StartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    # Imported late, so that another command and an error above do not wait for it.
    from tgi_async.cli import launcher_main

    given = arguments[1:] if arguments[:1] == ["serve"] else arguments
    # Of a flag that is given twice the last one counts.
    return launcher_main([*platforms.flags(os.environ), *given])


def _replace(command: list[str]) -> int:
    """Run the command in this process's place; return the shell's statuses where it cannot be."""
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(
            f"Error: {command[0]} is neither a flag of the server nor a command of this image. To "
            f"serve a model give its name by a flag, as in --model-id {command[0]}.",
            file=sys.stderr,
        )
        return 127
    except OSError as error:
        print(f"Error: {command[0]} cannot be run: {error.strerror}.", file=sys.stderr)
        return 126
