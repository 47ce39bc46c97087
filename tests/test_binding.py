"""Where the server listens."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tgi_async.binding import bind, bind_to_path, removed_at_end
from tgi_async.errors import StartError


@contextmanager
def bound_to_path(path: str, *, followed: bool = False) -> Iterator[socket.socket]:
    """A server's socket for as long as it lives."""
    with closing(bind_to_path(path)) as listener, removed_at_end(path, lambda: followed):
        yield listener


def test_an_address_that_is_taken_or_not_this_machines_is_reported() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StartError, match=f"port {taken.getsockname()[1]}: Address already in use"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(StartError, match=r"203\.0\.113\.1 port 1: Cannot assign"):
        bind("203.0.113.1", 1)
    with pytest.raises(StartError, match="--hostname and --port"):
        bind("no host at all", 0)
    with pytest.raises(StartError, match="--hostname"):
        bind("." + "x" * 100, 0)


def test_of_two_servers_that_start_at_once_the_second_gets_an_error() -> None:
    with closing(bind("127.0.0.1", 0)) as first, pytest.raises(StartError, match="already in use"):
        bind("127.0.0.1", first.getsockname()[1])


class TestUnixSocket:
    def test_owner_and_group_may_connect_and_nothing_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with bound_to_path(str(path)):
            assert stat.filemode(path.stat().st_mode) == "srw-rw----"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()

    def test_what_a_server_that_is_gone_left_is_replaced(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(path)
        with bound_to_path(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    def test_one_in_use_is_refused_and_goes_on(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with bound_to_path(path):
            with pytest.raises(StartError, match=r"another server listens there.*--unix-socket"):
                bind_to_path(path)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)

    def test_one_whose_queue_is_full_is_in_use(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
            busy.bind(path)
            busy.listen(0)
            client.connect(path)
            with pytest.raises(StartError, match="another server listens there"):
                bind_to_path(path)

    def test_another_file_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        path.write_text("data")
        with pytest.raises(StartError, match="there is a file that is no socket"):
            bind_to_path(str(path))
        assert path.read_text() == "data"

    def test_a_path_that_cannot_be_is_refused(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none" / "s", tmp_path / ("x" * 200)):
            with pytest.raises(StartError, match=f"Cannot listen on the Unix socket {path}: "):
                bind_to_path(str(path))

    def test_one_that_another_server_took_over_is_left_to_it(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with bound_to_path(str(path)):
            path.unlink()
            path.write_text("another's")
        assert path.exists()

    def test_one_with_which_another_server_goes_on_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with bound_to_path(str(path), followed=True):
            pass
        assert path.exists()
