"""Small models that faults happen to; the embedded one in the long runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_chat import save_tiny_chat
from tests.helpers.tiny_processors import save_processor
from tests.helpers.tiny_vision import save_vision


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    save_processor("llava", folder)
    return save_vision("llava", folder)
