"""The sampling parameters of each row of the persistent batch, as arrays on the host."""

from __future__ import annotations

import math
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from tgi_async.wire.messages import Sampling


class Needs(IntFlag):
    """Processing that a row needs besides an argmax."""

    DRAW = 1
    TRUNCATION = 2
    LOGPROB = 4
    TOP = 8
    PENALTY = 16
    WATERMARK = 32
    BIAS = 64
    MODEL_LOGPROB = 128
    """`LOGPROB` and `TOP` report the model's own distribution, not the processed one."""
    BAN = 256


_PROCESSING = Needs.TRUNCATION | Needs.PENALTY | Needs.WATERMARK | Needs.BIAS | Needs.BAN


class Parameters:
    """Arrays with one entry for each row.

    A row that does not sample ignores temperature, top_k, top_p, typical_p and min_p, as
    transformers' greedy search does.
    """

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.needs = np.zeros(max_rows, np.uint16)
        self.temperature = np.ones(max_rows, np.float32)
        self.top_k = np.full(max_rows, vocab_size, np.int64)
        """The vocabulary's size where all tokens are kept."""
        self.top_p = np.ones(max_rows, np.float64)
        self.typical_p = np.ones(max_rows, np.float64)
        self.min_score = np.full(max_rows, -math.inf, np.float64)
        """log of min_p: the least score that is kept, the largest being 0."""
        self.top_n = np.zeros(max_rows, np.int64)
        self.seed = np.zeros(max_rows, np.uint64)
        self.choice = np.zeros(max_rows, np.uint64)

    def set(self, row: int, sampling: Sampling, constrained: bool = False) -> Needs:
        """Set the parameters of `row`, which may have a grammar; return what they need."""
        # The neutral values, for a row that does not sample.
        drawn = sampling if sampling.do_sample else Sampling()
        self.temperature[row] = drawn.temperature
        self.top_k[row] = min(drawn.top_k or self._vocab_size, self._vocab_size)
        self.top_p[row] = drawn.top_p
        self.typical_p[row] = drawn.typical_p
        self.min_score[row] = math.log(drawn.min_p) if drawn.min_p > 0 else -math.inf
        self.top_n[row] = min(sampling.top_n_tokens, self._vocab_size)
        self.seed[row] = sampling.seed
        self.choice[row] = sampling.choice

        needs = Needs(0)
        if sampling.do_sample:
            needs |= Needs.DRAW
        if self.top_k[row] < self._vocab_size or min(drawn.top_p, drawn.typical_p) < 1:
            needs |= Needs.TRUNCATION
        if drawn.min_p > 0:
            needs |= Needs.TRUNCATION
        if sampling.logprobs:
            needs |= Needs.LOGPROB
        if sampling.top_n_tokens:
            needs |= Needs.TOP
        if sampling.repetition_penalty != 1 or (
            sampling.frequency_penalty
            or sampling.output_frequency_penalty
            or sampling.output_presence_penalty
        ):
            needs |= Needs.PENALTY
        if sampling.watermark:
            needs |= Needs.WATERMARK
        if sampling.biased_ids:
            needs |= Needs.BIAS
        if sampling.banned or (sampling.min_tokens and sampling.end_ids):
            needs |= Needs.BAN
        processed = needs & _PROCESSING
        # Where nothing is processed, both are the same, and the cheaper one is taken.
        if sampling.model_logprobs and (processed or constrained or drawn.temperature != 1):
            needs |= Needs.MODEL_LOGPROB
        self.needs[row] = needs
        return needs

    def drop(self, rows: NDArray[np.int64], need: Needs) -> None:
        """Clear this need of `rows`."""
        self.needs[rows] &= np.uint16(~need & 0xFFFF)

    def clear(self, row: int) -> None:
        self.needs[row] = 0
