"""Sampling on the device, without waiting for it: three kernel launches for any parameters.

It draws what the sampler's other path draws, to the last bit of the logarithms and exponentials
where the mathematics of two libraries differ. The one other difference is the mass that top-p takes
its part of where there is no top-k, which is a sum in float32 on both paths.

What it costs, by counting instructions and bytes for an H200 at 128,256 tokens; nothing of this was
measured. All logits are read twice, the second time out of the L2 cache. `tile_argmax` and `totals`
have 32 programs a row: some 3 us each for one row; for 64 rows in 16 bits (16 MB) 6 us for
`tile_argmax`, and for `totals` 6 us if they are greedy, 25 us if they are drawn from all tokens
(about 85 instructions a token, most of them the noise). `choose` has one program a row, so that 64
rows take as long as one: 3 us where nothing is truncated, some 12 us with top-p and 20 us with
top-k and top-p. There, finding the groups of 16 tokens that matter takes 19 sums over 8,016 numbers
in registers; then about four rounds of a search go over the tokens of those groups, some hundreds
of them, and one more pass draws. Only where so many tokens are kept that even the likeliest of each
group do not add up to top-p's share (some thousands) does the search start with the whole row: two
rounds of 0.1 ms over 128,256 tokens, 0.06 ms to write up the tokens that are left, and 0.17 ms for
the last pass, in which one float64 exponential and one noise a token take the time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.sampling.output import Picked
from workers.sampling.parameters import Needs, Parameters
from workers.sampling.random import Purpose, keys

TILE = 4096
"""Tokens of a program where a row is split among many."""
GROUP_BITS = 4
"""Least bits of a group's size, 2**bits tokens."""
MOST_GROUPS = 8192
"""Most groups of a row: their largest logits are held in the registers of one program."""
WARPS = 16
"""Warps of the one program of a truncated row."""
AT_ONCE = 32 * WARPS
"""Tokens that it processes together: one a thread, so that threads are independent."""
PIVOTS = 8
"""Depths up to which a round of its search sums; each takes four registers of a thread."""

Index = NDArray[np.int64]

NUMBERS = np.dtype(
    [
        ("keys", np.int32, 2),
        ("mode", np.int32),
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float64),
        ("min_score", np.float64),
    ]
)
_ELSEWHERE = (
    Needs.TOP | Needs.PENALTY | Needs.WATERMARK | Needs.BIAS | Needs.MODEL_LOGPROB | Needs.BAN
)
_DRAWS, _TRUNCATES = 1, 2
_LEAST_TEMPERATURE = np.finfo(np.float32).tiny


class DeviceSampling:
    """Samples the rows that it `takes`: greedy ones, and those with a temperature, top-k, top-p and
    min-p, with or without log-probabilities.

    Its results are for the stream it is called on, one call after the other.
    """

    WIDTH = NUMBERS.itemsize // 4
    """int32 of a row's parameters. All zero: greedy."""

    def __init__(self, vocab_size: int, most_rows: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._most_rows = most_rows
        self._group_bits = GROUP_BITS
        while MOST_GROUPS << self._group_bits < vocab_size:
            self._group_bits += 1
        self._n_groups = -(-vocab_size >> self._group_bits)
        self._n_tiles = -(-vocab_size // TILE)

        def scratch(width: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty((most_rows, width), dtype=dtype, device=device)

        self._room = vocab_size // 2
        self._groups, self._items = scratch(self._n_groups), scratch(self._n_groups + self._room)
        self._peaks, self._places, self._winners = (scratch(self._n_tiles) for _ in range(3))
        self._sums, self._bests = (scratch(self._n_tiles, torch.float32) for _ in range(2))

    @staticmethod
    def takes(parameters: Parameters, rows: Index) -> NDArray[np.bool_]:
        """Return whether each of `rows` has only parameters that are supported here."""
        elsewhere = (parameters.needs[rows] & _ELSEWHERE) != 0
        taken: NDArray[np.bool_] = ~elsewhere & (parameters.typical_p[rows] == 1)
        return taken

    @classmethod
    def numbers(cls, parameters: Parameters, rows: Index, positions: Index) -> NDArray[np.int32]:
        """Return int32 [n, WIDTH]: the parameters of `rows` at these `positions`; 0 for those not
        taken."""
        table = np.zeros(len(rows), NUMBERS)
        needs = parameters.needs[rows]
        draws = np.flatnonzero(((needs & Needs.DRAW) != 0) & cls.takes(parameters, rows))
        if draws.size:
            some = rows[draws]
            asked = np.zeros(len(some), NUMBERS)
            places = positions[draws].astype(np.uint64)
            asked["keys"] = keys(
                parameters.seed[some], parameters.choice[some], places, Purpose.TOKEN
            )
            truncates = (needs[draws] & Needs.TRUNCATION) != 0
            asked["mode"] = np.where(truncates, _DRAWS | _TRUNCATES, _DRAWS)
            # 0 / 0 has no largest value.
            asked["temperature"] = np.maximum(parameters.temperature[some], _LEAST_TEMPERATURE)
            asked["top_k"] = parameters.top_k[some]
            asked["top_p"] = parameters.top_p[some]
            asked["min_score"] = parameters.min_score[some]
            table[draws] = asked
        return table.view(np.int32).reshape(len(rows), cls.WIDTH)

    def sample(self, logits: Tensor, numbers: Tensor) -> Picked:
        """Sample a token for each of n rows, from the model's logits [n, V], which are not changed,
        and `numbers` int32 [n, WIDTH], both on the device.

        A row whose logits are not finite gets some token, and a maximum that is not finite. Raises
        ValueError for other shapes.
        """
        from workers.sampling import triton_kernels as kernels

        n, vocab_size = logits.shape
        if vocab_size != self._vocab_size or n > self._most_rows:
            raise ValueError(
                f"sampling is made for [{self._most_rows}, {self._vocab_size}] logits, not for "
                f"[{n}, {vocab_size}]"
            )
        if numbers.shape != (n, self.WIDTH) or numbers.dtype != torch.int32:
            raise ValueError(f"{n} rows take int32 [{n}, {self.WIDTH}], not {list(numbers.shape)}")
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        numbers = numbers.contiguous()
        tokens = torch.empty(n, dtype=torch.int64, device=logits.device)
        largest, logprobs = (torch.empty_like(tokens, dtype=torch.float32) for _ in range(2))
        if not n:
            return Picked(tokens, largest, logprobs)
        given = (logits, logits.stride(0), numbers)
        row = {"V": vocab_size, "WIDTH": self.WIDTH, "N_TILES": self._n_tiles}
        tiles = {"TILES": _padded(self._n_tiles)}
        groups = {"N_GROUPS": self._n_groups, "GROUP_BITS": self._group_bits}
        kernels.tile_argmax[(self._n_tiles, n)](
            self._groups,
            self._peaks,
            self._places,
            *given,
            TILE=TILE,
            num_warps=8,
            **row,
            **groups,
        )
        kernels.totals[(self._n_tiles, n)](
            self._sums,
            self._bests,
            self._winners,
            self._peaks,
            *given,
            TILE=TILE,
            num_warps=8,
            **row,
            **tiles,
        )
        kernels.choose[(n,)](
            tokens,
            largest,
            logprobs,
            self._items,
            self._groups,
            self._peaks,
            self._places,
            self._sums,
            self._bests,
            self._winners,
            *given,
            GROUPS=_padded(self._n_groups),
            ROOM=self._room,
            AT_ONCE=AT_ONCE,
            PIVOTS=PIVOTS,
            num_warps=WARPS,
            **row,
            **tiles,
            **groups,
        )
        return Picked(tokens, largest, logprobs)


def _padded(n: int) -> int:
    """Round up to a power of two that Triton has a layout for."""
    return max(16, 1 << (n - 1).bit_length())
