"""Starts of TGI in files: compose, Kubernetes, Inference Endpoints, Dockerfiles, shell scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tgi_async.errors import StartError
from tgi_async.migrate import words
from tgi_async.migrate.launch import (
    IMAGE,
    Launch,
    Line,
    about_image,
    about_port,
    filled,
    launcher_arguments,
)

NAMES = ("MODEL_ID", "HF_MODEL_ID")
SHELLS = ("sh", "bash")


def launches(text: str, name: str) -> list[Launch]:
    """Return the starts of TGI in a file of this name, at least one.

    Raises:
        StartError: there is none, or the file cannot be read as what it is.
    """
    if re.search(r"^\s*FROM\s", text, re.MULTILINE) and not name.endswith((".yaml", ".yml")):
        found = [_of_dockerfile(text, name)]
    elif (tree := _tree(text)) is not None:
        found = list(_within(tree, name))
    else:
        found = [words.launch_of(one) for one in words.commands(text)]
    if not found:
        raise StartError(
            f"{name} has no start of TGI: a container whose image is TGI's, or whose command is "
            "text-generation-launcher, a `docker run` of one, or a Dockerfile. It is read as YAML, "
            "a Dockerfile or a shell script."
        )
    return found


def _tree(text: str) -> list[Any] | None:
    """Return the documents of YAML or JSON; None where the text is neither, but a script."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return None
    return documents if any(isinstance(one, Mapping | list) for one in documents) else None


def _within(node: Any, name: str) -> Iterator[Launch]:
    """Look at every mapping that describes a container."""
    if isinstance(node, list):
        for one in node:
            called = one.get("name") if isinstance(one, Mapping) else None
            yield from _within(one, f"container {called}" if called else name)
    elif isinstance(node, Mapping):
        if _is_container(node):
            yield _of_container(node, name)
            return
        for key, one in node.items():
            yield from _within(one, f"service {key}" if _is_service(one) else name)


def _is_service(node: Any) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("image"), str)


def _is_container(node: Mapping[str, Any]) -> bool:
    image = node.get("image", node.get("url"))
    if not isinstance(image, str):
        return False
    command = " ".join((*_words(node.get("command")), *_words(node.get("args"))))
    tgi = bool(IMAGE.search(image)) or "text-generation-launcher" in command
    return tgi or bool(set(NAMES) & set(_variables(node)))


def _of_container(node: Mapping[str, Any], place: str) -> Launch:
    image = str(node.get("image", node.get("url")))
    command = [*_words(node.get("entrypoint")), *_words(node.get("command"))]
    command += _words(node.get("args"))
    arguments = launcher_arguments(_without_shell(command))
    if arguments is None:
        raise StartError(f"{place} runs {command[0]}, not TGI's launcher.")
    variables = _variables(node)
    arguments = [_expanded(one, variables) for one in arguments]
    launch = Launch(place, arguments, variables, filled(image, {}))
    launch.around = [about_image(launch.image or ""), *_around(node, launch)]
    return launch


def _expanded(argument: str, variables: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)` of a container's own variables."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), argument)


def _without_shell(command: list[str]) -> list[str]:
    if len(command) > 2 and command[0].rsplit("/", 1)[-1] in SHELLS and command[1].endswith("c"):
        return words.split(command[2].replace("exec ", "", 1))
    return command


def _words(node: Any) -> list[str]:
    """A command as compose or Kubernetes writes it."""
    if isinstance(node, str):
        return words.split(filled(node, {}))
    return [filled(_text(one), {}) for one in node or []]


def _variables(node: Mapping[str, Any]) -> dict[str, str]:
    """Compose's `environment`, and the `env` of Kubernetes and of Inference Endpoints."""
    given = node.get("environment", node.get("env")) or {}
    pairs: dict[str, str] = {}
    if isinstance(given, Mapping):
        given = [{"name": name, "value": value} for name, value in given.items()]
    for one in given:
        if isinstance(one, Mapping):
            name, value = str(one.get("name")), one.get("value")
        else:
            name, equals, after = str(one).partition("=")
            value = after if equals else None
        # Without a value it is a secret's or the shell's.
        pairs[name] = f"${name}" if value is None else _text(value)
    return {name: filled(value, {}) for name, value in pairs.items()}


def _text(node: Any) -> str:
    return str(node).lower() if isinstance(node, bool) else str(node)


def _around(node: Mapping[str, Any], launch: Launch) -> Iterator[Line]:
    for one in node.get("ports") or []:
        if isinstance(one, Mapping):
            inside = str(one.get("containerPort", one.get("target", "")))
            given = f"port {inside}"
        else:
            inside = str(one).split("/")[0].rsplit(":", 1)[-1]
            given = f"port {one}"
        yield about_port(given, launch.port, inside)
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = ((node.get(kind) or {}).get("httpGet") or {}).get("path")
        if path is None:
            continue
        given = f"{kind} {path}"
        if kind == "livenessProbe" and path != "/health/live":
            yield Line(
                given, "changed", f"/health/live: {path} says 503 while a worker is replaced"
            )
        else:
            yield Line(given, "same")
    if route := node.get("health_route", node.get("healthRoute")):
        yield Line(f"health route {route}", "same")


def _of_dockerfile(text: str, name: str) -> Launch:
    """Of the last stage, as that is what is run."""
    image = ""
    variables: dict[str, str] = {}
    programs: dict[str, list[str]] = {}
    around: list[Line] = []
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*([A-Z]+)\s+(.*)", line)
        if found is None:
            continue
        kind, rest = found[1], found[2].strip()
        if kind == "FROM":
            image = next(word for word in rest.split() if not word.startswith("--"))
            variables, programs, around = {}, {}, []
        elif kind == "ENV":
            variables |= _env(rest)
        elif kind in ("ENTRYPOINT", "CMD"):
            listed = yaml.safe_load(rest) if rest.startswith("[") else rest
            programs[kind] = _without_shell(_words(listed))
        elif kind in ("RUN", "COPY", "ADD"):
            why = "this server's image has none of TGI's files"
            around.append(Line(line.strip(), "changed", why))
        else:
            around.append(Line(line.strip(), "same"))
    command = [*programs.get("ENTRYPOINT", []), *programs.get("CMD", [])]
    arguments = launcher_arguments(command)
    if arguments is None or not (IMAGE.search(image) or programs):
        raise StartError(f"{name} does not run TGI: it is built from {image}.")
    launch = Launch(Path(name).name, arguments, variables, image)
    launch.around = [about_image(image), *around]
    return launch


def _env(rest: str) -> dict[str, str]:
    parts = words.split(rest)
    if parts and "=" not in parts[0]:
        return {parts[0]: rest.split(maxsplit=1)[-1]}  # ENV NAME value
    return {name: value for name, _, value in (one.partition("=") for one in parts)}
