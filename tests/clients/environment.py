"""Environments of the clients, each apart from the server's and from each other."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements"
SUITES = HERE / "suites"
CACHE = HERE.parents[1] / ".cache" / "clients"
INSTALL_SECONDS = 300.0
MANIFESTS = ("package.json", "package-lock.json")
CONFIGURATION = (
    *("HF_", "HUGGING", "OPENAI_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_", "INSTRUCTOR_"),
    *("AI_", "NODE_", "JAVA_", "JDK_", "PYTHON", "PYTEST_"),
)
"""Beginnings of the variables that would change what a client or its suite does."""


def interpreter(name: str) -> Path:
    """Return the Python of the virtual environment with `requirements/{name}.txt`.

    Raises:
        AssertionError: it could not be made.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    content = requirements.read_bytes() + sys.version.encode()
    folder = _made_once(name, content, lambda partial: _install(partial, requirements))
    return folder / "bin" / "python"


def node_folder(suite: str) -> Path:
    """Return a folder with the npm packages of `suites/{suite}/package-lock.json`.

    Raises:
        AssertionError: they could not be installed.
    """
    manifests = [SUITES / suite / name for name in MANIFESTS]
    content = b"".join(manifest.read_bytes() for manifest in manifests)
    return _made_once(suite, content, lambda partial: _install_packages(partial, manifests))


def _made_once(name: str, content: bytes, install: Callable[[Path], None]) -> Path:
    """Return the environment's folder in the cache, which `install` fills the first time."""
    folder = CACHE / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-partial-", dir=CACHE))
        try:
            install(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _install(folder: Path, requirements: Path) -> None:
    """Without a pip of its own, which would take longer than most clients."""
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))
    install = ("install", "--quiet", "--no-deps", "--no-compile", "-r", str(requirements))
    done = subprocess.run((*pip, *install), capture_output=True, text=True, timeout=INSTALL_SECONDS)
    assert done.returncode == 0, f"{requirements.name} could not be installed:\n{done.stderr}"


def _install_packages(folder: Path, manifests: list[Path]) -> None:
    """Exactly what the lock file has; no package runs a script of its own."""
    for manifest in manifests:
        shutil.copy(manifest, folder)
    install = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional")
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    assert done.returncode == 0, f"{manifests[0].parent.name}: npm ci failed:\n{done.stderr}"


def variables(url: str, api_key: str) -> dict[str, str]:
    """This process's variables for a suite, less those that configure clients."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURATION)}
    return {**kept, "TGI_URL": url, "TGI_API_KEY": api_key, "NO_PROXY": "127.0.0.1"}
