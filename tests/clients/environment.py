"""Virtual environments of the clients, each apart from the server's and from each other."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements"
CACHE = HERE.parents[1] / ".cache" / "clients"
INSTALL_SECONDS = 300.0
CONFIGURATION = ("HF_", "HUGGING", "OPENAI_", "LANGCHAIN_", "LANGSMITH_", "PYTHON", "PYTEST_")
"""Beginnings of the variables that would change what a client or its suite does."""


def interpreter(name: str) -> Path:
    """Python of the environment with `requirements/{name}.txt`, which is made once.

    Raises:
        AssertionError: it could not be made.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    content = hashlib.sha256(requirements.read_bytes() + sys.version.encode())
    folder = CACHE / f"{name}-{content.hexdigest()[:12]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-partial-", dir=CACHE))
        try:
            _install(partial, requirements)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "bin" / "python"


def _install(folder: Path, requirements: Path) -> None:
    """Without a pip of its own, which would take longer than most clients."""
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))
    install = ("install", "--quiet", "--no-deps", "--no-compile", "-r", str(requirements))
    done = subprocess.run((*pip, *install), capture_output=True, text=True, timeout=INSTALL_SECONDS)
    assert done.returncode == 0, f"{requirements.name} could not be installed:\n{done.stderr}"


def variables(url: str, api_key: str) -> dict[str, str]:
    """This process's variables for a suite, less those that configure clients."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURATION)}
    return {**kept, "TGI_URL": url, "TGI_API_KEY": api_key, "NO_PROXY": "127.0.0.1"}
