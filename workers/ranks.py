"""The ranks of a model that is spread over several processes, and their collectives.

One process a rank. Tensors of a GPU go through NCCL, those of the host through gloo. What ranks add
up they all get, so that each goes on with the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

JOIN = timedelta(seconds=60)
"""How long a rank waits for the others where they meet."""
LIFETIME = timedelta(days=365)
"""Timeout of later collectives of the host: between two requests may be days. The router notices a
rank that has died, is stopped or does nothing, and ends them all."""
DEVICE = timedelta(seconds=120)
"""Timeout of those of GPUs, which are within a step. A rank that waits for one uses its processor
and does not look idle, so it is to end by itself; others may compile a kernel meanwhile."""


class PeerLost(BaseException):
    """Another rank is gone, and has the reason. Not an `Exception`, so that it is not taken for a
    failure of the model or of a request."""


class PlaceTaken(BaseException):
    """Another program listens where the ranks were to meet. Not an `Exception`, as above."""


class RankFailed(BaseException):
    """This rank failed within a step that the others take part in and cannot abort. Not an
    `Exception`, as above."""


class Ranks:
    """The process group of the ranks that share a model. A single process has none."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        address: str,
        device: torch.device,
        *,
        n_here: int | None = None,
        interface: str = "",
    ) -> None:
        """Join the others at `address`, the same for all: `file:///path` of a file that does not
        exist yet, on one machine, or `tcp://host:port` of rank 0. `n_here` of them, by default all,
        are on this machine, which reaches the others by `interface`. Raises PeerLost, and on rank
        0 PlaceTaken."""
        self.rank = rank
        self.world_size = world_size
        self.n_here = world_size if n_here is None else n_here
        if address.startswith("file://"):
            # All ranks are on this machine, so their traffic need not leave it.
            interface = "lo"
        elif interface:
            # Without this NCCL takes one of its own choice, first any whose name begins with "ib".
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
        if interface:
            # gloo would take the address that this machine's own name resolves to, which is often
            # one of the machine itself.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"

        def join() -> None:
            dist.init_process_group(
                backend,
                store=_store(address, rank, world_size),
                rank=rank,
                world_size=world_size,
                timeout=JOIN,
            )
            self._host = dist.new_group(timeout=LIFETIME, backend="gloo")
            self._device = self._host
            if device.type == "cuda":
                self._device = dist.new_group(timeout=DEVICE, backend="nccl")

        self._try(join)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Put the sum over the ranks in place of `x`. Raises PeerLost."""
        self._try(lambda: dist.all_reduce(x, group=self._group(x)))
        return x

    def gather(self, x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
        """Return on rank 0 [..., sum(widths)], the parts [..., widths[rank]] of all ranks side by
        side, and elsewhere an arbitrary tensor of that shape. Raises PeerLost."""
        padded = torch.nn.functional.pad(x, (0, max(widths) - x.shape[-1])).contiguous()
        parts = None if self.rank else [torch.empty_like(padded) for _ in widths]
        self._try(lambda: dist.gather(padded, parts, 0, group=self._group(x)))
        if parts is None:
            return x.new_zeros(()).expand(*x.shape[:-1], sum(widths))
        return torch.cat([part[..., :n] for part, n in zip(parts, widths, strict=True)], dim=-1)

    def broadcast(self, values: torch.Tensor) -> torch.Tensor:
        """Put rank 0's values in place of those of the other ranks. Raises PeerLost."""
        self._try(lambda: dist.broadcast(values, 0, group=self._group(values)))
        return values

    def all_reduce_min(self, n: int) -> int:
        """Return the minimum of the ranks' numbers. Raises PeerLost."""
        x = torch.tensor([n])
        self._try(lambda: dist.all_reduce(x, dist.ReduceOp.MIN, group=self._host))
        return int(x)

    def destroy(self) -> None:
        """Destroy the process group. Close graphs that use it before."""
        dist.destroy_process_group()

    def _group(self, x: torch.Tensor) -> Any:
        """Return what exchanges such a tensor."""
        found: dist.ProcessGroup = self._host if x.device.type == "cpu" else self._device
        return found

    def _try(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            raise PeerLost(f"rank {self.rank} lost the others: {error}") from error


def _store(address: str, rank: int, world_size: int) -> dist.Store:  # type: ignore[name-defined]
    """Return where the ranks meet. Not by torch's own `init_method`, which would go to the store of
    torchrun where that started the server."""
    url = urlsplit(address)
    if url.scheme == "file":
        return dist.FileStore(url.path, world_size)  # type: ignore[attr-defined]
    assert url.hostname is not None
    assert url.port is not None
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            url.hostname, url.port, is_master=rank == 0, timeout=JOIN, wait_for_workers=False
        )
    except dist.DistNetworkError as error:
        if rank == 0 and "EADDRINUSE" in str(error):
            raise PlaceTaken(f"port {url.port} is another program's") from error
        raise
