"""A start of TGI, however it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["same", "changed", "no effect", "refused"]
IMAGE = re.compile(r"text-generation-inference|(?<![a-z])tgi(?![a-z])")
"""What names of TGI's images have: its own, SageMaker's and mirrors of them."""
LAUNCHERS = ("text-generation-launcher", "/tgi-entrypoint.sh", "./entrypoint.sh", "serve")
"""What runs TGI in its images: of SageMaker's, `serve`."""
OPEN = re.compile(r"\$|\{\{|^<.*>$|^\.\.\.$")
"""A value that is a shell's or a template's to fill in, so that it cannot be checked."""


@dataclass(frozen=True, slots=True)
class Line:
    """What becomes of one thing that was given, and why. Without a reason there is none to give."""

    given: str
    verdict: Verdict
    why: str = ""


@dataclass(slots=True)
class Launch:
    """The launcher's arguments and variables, and what is around them.

    `image` is None where TGI is started without a container. `program` is docker or its like where
    one is in the words, and `options` are its own, without those that set variables. `around` are
    lines about what is no argument and no
    variable of the launcher's.
    """

    place: str
    arguments: list[str]
    variables: dict[str, str]
    image: str | None = None
    program: str | None = None
    options: list[str] = field(default_factory=list)
    around: list[Line] = field(default_factory=list)

    @property
    def port(self) -> str:
        """The port that the server listens on, as it was written."""
        for place, word in enumerate(self.arguments):
            name, equals, value = word.partition("=")
            if name in ("--port", "-p"):
                return value if equals else "".join(self.arguments[place + 1 : place + 2])
        return self.variables.get("PORT") or ("80" if self.image else "3000")


def launcher_arguments(command: list[str]) -> list[str] | None:
    """Return the launcher's arguments of a command, or None where it runs something else.

    A command that begins with a flag is one without its program, as images are given.
    """
    if not command or command[0].startswith("-"):
        return command
    program = command[0].rsplit("/", 1)[-1]
    if program in {name.rsplit("/", 1)[-1] for name in LAUNCHERS}:
        return command[1:]
    if program == "tgi-async" and command[1:2] == ["serve"]:
        return command[2:]
    return None


def about_image(image: str) -> Line:
    """Return what becomes of TGI's image."""
    kind = re.search(r"-(rocm|intel-xpu|intel-cpu|gaudi|neuron|trtllm|llamacpp)$", image)
    if kind is None:
        return Line(image, "changed", "this server's image, for CUDA or for CPUs")
    if kind[1] == "intel-cpu":
        return Line(image, "changed", "this server's image for CPUs")
    if kind[1] == "trtllm":
        return Line(image, "changed", "this server's image for CUDA; no engine is compiled")
    if kind[1] == "llamacpp":
        return Line(image, "changed", "this server's image for CPUs; it reads GGUF files too")
    return Line(image, "refused", "this server runs on NVIDIA GPUs and on CPUs")


def about_port(given: str, port: str, inside: str) -> Line:
    """Return what becomes of a published port, `port` being the server's."""
    if OPEN.search(inside) or OPEN.search(port) or inside == port:
        return Line(given, "same")
    return Line(given, "no effect", f"the server's port in the container is {port}")


def filled(text: str, variables: Mapping[str, str]) -> str:
    """Return the text with compose's `${NAME:-default}` filled in, where there is a value."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2]

    return re.sub(r"\$\{(\w+):?-([^}]*)\}", value, text)
