from __future__ import annotations

from collections.abc import Iterator

import pytest

from workers import native
from workers.layers import packed


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    """Kernels are loaded anew in this test, so that it can stand in the way, and after it."""
    for cached in (native.kernels, packed.kernel):
        cached.cache_clear()
    yield
    for cached in (native.kernels, packed.kernel):
        cached.cache_clear()
