"""Starts of TGI in a shell's words: docker, or the launcher itself."""

from __future__ import annotations

import re
import shlex

from tgi_async.errors import StartError
from tgi_async.migrate.launch import Launch, Line, about_image, about_port, launcher_arguments

DOCKER = ("docker", "podman", "nerdctl", "nvidia-docker")
WITHOUT_VALUE = {
    *("-d", "--detach", "-i", "--interactive", "-t", "--tty", "--rm", "--init", "--privileged"),
    *("--read-only", "-P", "--publish-all", "--no-healthcheck", "--oom-kill-disable", "--quiet"),
    *("-q", "--sig-proxy", "--replace"),
}
"""Docker's flags that no value follows."""
ASSIGNED = re.compile(r"^[A-Za-z_]\w*=")


def split(text: str) -> list[str]:
    """Return the words of a command, its comments and line ends gone.

    Raises:
        StartError: a quote is not closed.
    """
    try:
        return shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise StartError(f"The command cannot be read: {error}. Given: {text.strip()!r}.") from None


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell script that start TGI, as words."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if re.search(r"\b(text-generation-launcher|text-generation-inference)\b|\btgi\b", line):
            words = split(line)
            if _is_start(words):
                found.append(words)
    return found


def launch_of(words: list[str]) -> Launch:
    """Return the start that these words are.

    Raises:
        StartError: they start something else.
    """
    variables: dict[str, str] = {}
    rest = list(words)
    while rest and (rest[0] in ("sudo", "exec", "env") or ASSIGNED.match(rest[0])):
        if ASSIGNED.match(rest[0]):
            name, _, value = rest[0].partition("=")
            variables[name] = value
        rest.pop(0)
    if rest and rest[0] in DOCKER:
        return _of_docker(rest)
    arguments = launcher_arguments(rest)
    if not rest or arguments is None:
        raise StartError(
            "This starts no server of TGI's: give `docker run ... IMAGE ...`, "
            "`text-generation-launcher ...` or its flags. Given: " + shlex.join(words)[:200]
        )
    return Launch("text-generation-launcher", arguments, variables)


def _is_start(words: list[str]) -> bool:
    rest = [word for word in words if word not in ("sudo", "exec") and not ASSIGNED.match(word)]
    if rest[:1] and rest[0] in DOCKER:
        return "run" in rest[1:3]
    return bool(rest) and rest[0].rsplit("/", 1)[-1] == "text-generation-launcher"


def _of_docker(words: list[str]) -> Launch:
    rest = words[1:]
    if rest[:1] == ["container"]:
        rest.pop(0)
    if rest[:1] != ["run"]:
        raise StartError(f"`{words[0]} run` starts a server; given: {shlex.join(words[:3])}.")
    rest.pop(0)
    variables: dict[str, str] = {}
    given: list[tuple[str, str]] = []
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if re.match(r"-[epv][^=]", word) and not _has_no_value(name):  # such as -p80:80
            name, equals, value = word[:2], "=", word[2:]
        if not equals and not _has_no_value(name):
            if not rest:
                raise StartError(f"{name} has no value, and no image follows.")
            value = rest.pop(0)
        if name in ("-e", "--env"):
            variable, equals, content = value.partition("=")
            # Without a value docker takes the shell's.
            variables[variable] = content if equals else f"${variable}"
        else:
            given.append((name, value))
    if not rest:
        raise StartError(f"No image is named. Given: {shlex.join(words)[:200]}")
    image, *command = rest
    entrypoint = [value for name, value in given if name == "--entrypoint"]
    arguments = launcher_arguments(entrypoint + command)
    if arguments is None:
        raise StartError(f"The container runs {(entrypoint + command)[0]}, not TGI's launcher.")
    given = [pair for pair in given if pair[0] != "--entrypoint"]
    launch = Launch(f"{words[0]} run", arguments, variables, image, words[0])
    launch.by_sagemaker = entrypoint + command == ["serve"]
    launch.options = [word for pair in given for word in pair if word]
    launch.around = [_about_option(launch, *pair) for pair in given] + [about_image(image)]
    for program in entrypoint:
        started = "not needed: this server's image starts it by itself"
        launch.around.append(Line(f"--entrypoint {program}", "no effect", started))
    return launch


def _has_no_value(name: str) -> bool:
    together = re.fullmatch(r"-[ditqP]+", name)  # such as -it
    return name in WITHOUT_VALUE or together is not None


def _about_option(launch: Launch, name: str, value: str) -> Line:
    given = f"{name} {value}".strip()
    if name in ("-p", "--publish"):
        return about_port(given, launch.port, value.split("/")[0].rsplit(":", 1)[-1])
    if name == "--env-file":
        return Line(given, "same", "its variables were not looked at: give them with -e")
    if name == "--runtime" and value == "habana":
        return Line(given, "refused", "this server runs on NVIDIA GPUs and on CPUs")
    if name == "--device" and re.search(r"kfd|dri|neuron", value):
        return Line(given, "no effect", "this server runs on NVIDIA GPUs and on CPUs")
    return Line(given, "same")
