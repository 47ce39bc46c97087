from __future__ import annotations

import pytest

from tgi_async.api.permits import Permits
from tgi_async.errors import Overloaded


def test_permits_come_back_whatever_happens() -> None:
    permits = Permits(2)
    with pytest.raises(KeyError), permits.take(2):
        raise KeyError
    assert permits.free == 2


def test_more_than_are_free_are_refused_and_none_is_taken() -> None:
    permits = Permits(2)
    with permits.take():
        with pytest.raises(Overloaded), permits.take(2):
            pass
        assert permits.free == 1
