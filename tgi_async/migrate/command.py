"""The command `tgi-async migrate`."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tgi_async.errors import StartError
from tgi_async.migrate import documents, words
from tgi_async.migrate.judge import Judgement, judge
from tgi_async.migrate.launch import Launch, Line

USAGE = """\
usage: tgi-async migrate docker run ... IMAGE ...
       tgi-async migrate text-generation-launcher ...
       tgi-async migrate FILE
       tgi-async migrate < FILE

Say what a way of starting TGI becomes here, line by line. FILE is a compose file, Kubernetes
manifests (such as `helm template` writes), an Inference Endpoint's JSON, a Dockerfile, or a shell
script.

The exit status is 0 if the server would start, 1 if it would not, and 2 if nothing was found that
starts TGI."""
SIGNS = {"same": "=", "changed": "~", "no effect": "-", "refused": "!"}
WIDTH = 100
INDENT = " " * 6


def migrate(given: list[str]) -> int:
    """Print what these words, or the file that they name, become; return the exit status."""
    if given[:1] in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    try:
        launches = _read(given)
    except StartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    judgements = [judge(launch) for launch in launches]
    for launch, judgement in zip(launches, judgements, strict=True):
        print("\n".join(_report(launch, judgement)))
    print("= as in TGI   ~ changed   - has no effect   ! refused")
    print("What clients see of the change: docs/differences.md; --strict-tgi has the least of it.")
    return 0 if all(one.starts for one in judgements) else 1


def _read(given: list[str]) -> list[Launch]:
    if not given and sys.stdin.isatty():
        raise StartError(f"Nothing was given.\n{USAGE}")
    if not given or given == ["-"]:
        return documents.launches(sys.stdin.read(), "standard input")
    if len(given) == 1 and Path(given[0]).is_file():
        try:
            return documents.launches(Path(given[0]).read_text(), given[0])
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"{given[0]} cannot be read: {error}.") from None
    if len(given) == 1:
        return [words.launch_of(words.split(given[0]))]
    return [words.launch_of(given)]


def _report(launch: Launch, judgement: Judgement) -> Iterator[str]:
    yield f"{launch.place}:"
    for line in judgement.lines:
        yield from _told(line)
    if judgement.defaults:
        yield "not given, with another default:"
        for line in judgement.defaults:
            yield from _told(line)
    if judgement.problem is not None:
        yield f"! {judgement.problem}"
    yield f"becomes: {becomes(launch, judgement)}"
    yield f"would start: {'yes' if judgement.starts else 'no'}"
    yield ""


def _told(line: Line) -> Iterator[str]:
    """With the reason below, where there is no room for it beside."""
    head = f"  {SIGNS[line.verdict]} {line.given}"
    whole = f"{head:<40}  {line.why}".rstrip()
    if len(whole) <= WIDTH:
        yield whole
        return
    yield head
    for reason in line.why.split("\n"):
        yield from textwrap.wrap(reason, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)


def becomes(launch: Launch, judgement: Judgement) -> str:
    """Return the start without what has no effect or is refused.

    It is a command, or, for a container of a file, its arguments and variables.
    """
    gone = {line.given for line in judgement.lines if line.verdict in ("no effect", "refused")}
    given = [f"{name}={value}" for name, value in launch.variables.items()]
    variables = [one for one in given if one not in gone]
    arguments = ["serve"] if launch.by_sagemaker else _kept(launch.arguments, gone)
    if launch.image is None:
        return _shell([*variables, "text-generation-launcher", *arguments])
    if launch.program is None:
        return f"arguments {json.dumps(arguments)}, variables {json.dumps(variables)}"
    options = [*_kept(launch.options, gone), *(word for one in variables for word in ("-e", one))]
    image = "tgi-async:cuda" if "--gpus" in launch.options else "tgi-async:cpu"
    return _shell([launch.program, "run", *options, image, *arguments])


def _kept(given: list[str], gone: set[str]) -> list[str]:
    """The words but for flags that are gone, with their values."""
    kept: list[str] = []
    rest = list(given)
    while rest:
        for n in range(len(rest), 0, -1):
            together = " ".join(rest[:n])
            if together in gone or (n == 1 and together.replace("=", " ", 1) in gone):
                del rest[:n]
                break
        else:
            kept.append(rest.pop(0))
    return kept


def _shell(given: list[str]) -> str:
    """Join words as a shell reads them, but leave its variables and the home folder to it."""

    def written(word: str) -> str:
        open_to_it = ("$" in word or word.startswith("~/")) and " " not in word
        return word if open_to_it else shlex.quote(word)

    return " ".join(map(written, given))
