"""Unmodified clients of TGI and OpenAI, each from an environment of its own.

A suite is a pytest file that imports its client and nothing of this project.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.clients.conftest import API_KEY
from tests.clients.environment import HERE, interpreter, variables
from tests.integration.server import Server

pytestmark = [pytest.mark.model, pytest.mark.clients, pytest.mark.timeout(600)]

SUITES = HERE / "suites"
SUITE_SECONDS = 240.0
PYTEST = ("-m", "pytest", "-c", os.devnull, "--noconftest", "--import-mode=importlib")
QUIET = ("--rootdir=.", "-p", "no:cacheprovider", "--tb=short", "--disable-warnings")


@pytest.mark.parametrize(
    ("suite", "environment"),
    [
        ("huggingface_hub", "huggingface-hub"),
        # The last huggingface_hub before 1.0, on other HTTP libraries, is there already.
        ("huggingface_hub", "text-generation"),
        ("text_generation", "text-generation"),
        ("openai", "openai"),
        ("openai_tools", "openai"),
        ("langchain_huggingface", "langchain-huggingface"),
        ("langchain_openai", "langchain-openai"),
    ],
)
def test_a_client_passes_its_suite(client_server: Server, suite: str, environment: str) -> None:
    python = interpreter(environment)

    done = subprocess.run(
        (python, *PYTEST, *QUIET, f"suite_{suite}.py"),
        cwd=SUITES,
        env=variables(client_server.url, API_KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SUITE_SECONDS,
    )

    print(done.stdout)
    assert done.returncode == 0, f"{suite} in {environment}: see the output of its suite"
