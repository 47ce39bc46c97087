"""Unmodified clients of TGI and OpenAI, each from an environment of its own.

The default tier has the client of OpenAI for Node here, and that of huggingface_hub in
tests/integration/test_default_server.py.

A suite imports its client and nothing of this project: a pytest file for Python, a file for Node's
test runner, or a program for Java, which exits with a status that is not 0 if anything fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clients.conftest import API_KEY
from tests.clients.environment import SUITES, interpreter, node_folder, variables
from tests.integration.server import Server

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(600)]

SUITE_SECONDS = 240.0
PYTEST = ("-m", "pytest", "-c", os.devnull, "--noconftest", "--import-mode=importlib")
QUIET = ("--rootdir=.", "-p", "no:cacheprovider", "--tb=short", "--disable-warnings")


def full(suite: str, environment: str) -> object:
    return pytest.param(suite, environment, marks=pytest.mark.full)


def run(server: Server, command: Sequence[str | Path], folder: Path) -> None:
    """Run a suite. Raises AssertionError if it fails; what it printed is printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables(server.url, API_KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SUITE_SECONDS,
    )
    print(done.stdout)
    assert done.returncode == 0, "see the output of the suite"


@pytest.mark.parametrize(
    ("suite", "environment"),
    [
        full("huggingface_hub", "huggingface-hub"),
        # The last huggingface_hub before 1.0, on other HTTP libraries, is there already.
        full("huggingface_hub", "text-generation"),
        full("text_generation", "text-generation"),
        full("openai", "openai"),
        full("openai_tools", "openai"),
        full("langchain_huggingface", "langchain-huggingface"),
        full("langchain_openai", "langchain-openai"),
        full("instructor", "instructor"),
        full("litellm", "litellm"),
        full("llama_index", "llama-index"),
        full("llama_index_tgi", "llama-index-tgi"),
        full("openai_agents", "openai-agents"),
        full("outlines", "outlines"),
        full("pydantic_ai", "pydantic-ai"),
    ],
)
def test_a_client_passes_its_suite(client_server: Server, suite: str, environment: str) -> None:
    run(client_server, (interpreter(environment), *PYTEST, *QUIET, f"suite_{suite}.py"), SUITES)


@pytest.mark.parametrize(
    ("suite", "environment"),
    [
        full("huggingface_hub", "huggingface-hub"),
        full("text_generation", "text-generation"),
        full("openai", "openai"),
        full("openai_tools", "openai"),
        full("langchain_openai", "langchain-openai"),
    ],
)
def test_a_client_that_knows_no_ids_passes_its_suite_with_them(
    resumable_server: Server, suite: str, environment: str
) -> None:
    run(resumable_server, (interpreter(environment), *PYTEST, *QUIET, f"suite_{suite}.py"), SUITES)


@pytest.mark.parametrize(
    ("suite", "environment"),
    [full("openai_images", "openai"), full("langchain_images", "langchain-openai")],
)
def test_a_client_passes_its_suite_of_images(
    image_server: Server, suite: str, environment: str
) -> None:
    run(image_server, (interpreter(environment), *PYTEST, *QUIET, f"suite_{suite}.py"), SUITES)


@pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed")
@pytest.mark.parametrize("suite", ["openai_npm", pytest.param("ai_sdk", marks=pytest.mark.full)])
def test_a_client_of_node_passes_its_suite(client_server: Server, suite: str) -> None:
    # Node looks for packages beside the file that imports them.
    folder = node_folder(suite)
    shutil.copy(SUITES / suite / "suite.mjs", folder)

    run(client_server, ("node", "--test", "--test-reporter=spec", "suite.mjs"), folder)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_the_client_of_java_passes_its_suite(client_server: Server) -> None:
    run(client_server, ("java", "JavaHttpClient.java"), SUITES)
