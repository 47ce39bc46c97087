from __future__ import annotations

import socket

import pytest
import torch

from workers.ranks import PlaceTaken, Ranks


def test_rank_0_says_that_another_program_listens_where_the_ranks_were_to_meet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PlaceTaken, match=f"port {port} is another program's"):
            Ranks(0, 2, f"tcp://127.0.0.1:{port}", torch.device("cpu"))
