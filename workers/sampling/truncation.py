"""Top-k, top-p, min-p and typical-p on ordered candidates, the draw among them, the top tokens.

The mass that decides what is kept is counted in integers, in units of 2**-40 of the likeliest
token's. Integers add up to the same sum in any order, so neither the batch, nor the device, nor how
many candidates were looked at can move a boundary. 2**18 tokens of full weight stay far below
2**63.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workers.sampling.candidates import Candidates
from workers.sampling.exponential_race import add_gumbel_noise, argmax_lowest_id

UNIT = 2.0**40


class TruncationLimits(NamedTuple):
    """The truncation parameters of n rows. `keep_all` has the values that keep everything."""

    truncates: Tensor
    """bool [n]; the others are here for their top tokens only."""
    top_k: Tensor
    """int64 [n], 1 to V"""
    top_p: Tensor
    """float64 [n], in (0, 1]"""
    typical_p: Tensor
    """float64 [n], in (0, 1]"""
    min_score: Tensor
    """float64 [n], at most 0"""
    top_n: Tensor
    """int64 [n]: how many tokens to report"""
    log_total: Tensor
    """float64 [n]: log of the sum of exp(score) over the whole vocabulary, the largest score being
    0. Read only where top_k keeps all."""

    @classmethod
    def keep_all(cls, top_n: Tensor, log_total: Tensor, vocab_size: int) -> TruncationLimits:
        ones = torch.ones_like(log_total)
        return cls(
            truncates=torch.zeros_like(top_n, dtype=torch.bool),
            top_k=torch.full_like(top_n, vocab_size),
            top_p=ones,
            typical_p=ones,
            min_score=torch.full_like(ones, -torch.inf),
            top_n=top_n,
            log_total=log_total,
        )

    def select(self, rows: Tensor) -> TruncationLimits:
        return TruncationLimits(*(limit[rows] for limit in self))


class Drawn(NamedTuple):
    """A token for each of n rows, and its distribution's log-probabilities."""

    tokens: Tensor
    """int64 [n]"""
    logprobs: Tensor
    """float32 [n]"""
    top_ids: Tensor
    """int64 [n, N]"""
    top_logprobs: Tensor
    """float32 [n, N]"""
    top_counts: Tensor
    """int64 [n]: how many of the N are to be reported"""
    complete: Tensor
    """bool [n]: whether the candidates held all that this row needed"""


def draw(
    found: Candidates,
    limits: TruncationLimits,
    keys: Tensor,
    vocab_size: int,
    *,
    typical: bool,
    most_top: int,
) -> Drawn:
    """Cut the candidates down to what `limits` keep, and draw one of these.

    Scores are processed up to temperature, the row's largest being 0. `keys` is int32 [n, 2], the
    random bits of each row's draw; `most_top` is the largest of `limits.top_n` and at most the
    candidates' number. Where `complete` is false the row's values are worthless: ask again with
    more candidates. `typical` says whether any row has a typical_p below 1.
    """
    width = found.ids.shape[1]
    scores = found.scores.double()
    weights = (scores.exp() * UNIT).round().long()
    by_k, kept = _keep_likeliest(found.scores, weights, limits, vocab_size)

    # The last candidate that matters: all of top-k, as top-p takes its share of them; otherwise all
    # of top-p. One that ties with the edge may lack some of its peers.
    needed = torch.where(limits.top_k < vocab_size, by_k.sum(1), kept.sum(1))
    reach = torch.where(limits.truncates, needed, limits.top_n).clamp(1, width) - 1
    complete = found.scores.gather(1, reach[:, None])[:, 0] > found.scores[:, -1]
    if width == vocab_size:
        complete = torch.ones_like(complete)

    if typical:
        kept = _keep_typical(scores, torch.where(kept, weights, 0), kept, limits.typical_p)
    total = torch.where(kept, weights, 0).sum(1)
    survivors = found.scores.masked_fill(~kept, -torch.inf)
    pick = argmax_lowest_id(add_gumbel_noise(survivors, found.ids, keys), found.ids)
    log_total = torch.where(limits.truncates, (total / UNIT).log(), limits.log_total)
    logprobs = scores - log_total[:, None]

    if typical:
        # A stable sort brings what is kept to the front and leaves its order.
        front = (~kept).byte().argsort(dim=1, stable=True)[:, :most_top]
    else:
        front = torch.arange(most_top, device=kept.device).expand(len(kept), -1)
    return Drawn(
        tokens=found.ids.gather(1, pick)[:, 0],
        logprobs=logprobs.gather(1, pick)[:, 0].float(),
        top_ids=found.ids.gather(1, front),
        top_logprobs=logprobs.gather(1, front).float(),
        top_counts=torch.minimum(kept.sum(1), limits.top_n),
        complete=complete,
    )


def _keep_likeliest(
    scores: Tensor, weights: Tensor, limits: TruncationLimits, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Return masks of what top-k and what top-k, top-p and min-p keep: leading parts of each line.

    bool [n, C].
    """
    kth = limits.top_k.clamp(max=scores.shape[1])[:, None] - 1
    # As in transformers, tokens that tie with the k-th are kept.
    by_k = (scores >= scores.gather(1, kth)) & (scores > -torch.inf)
    within = (weights * by_k).cumsum(1)
    everything = (limits.log_total.exp() * UNIT).long()
    total = torch.where(limits.top_k < vocab_size, within[:, -1], everything)
    # A token is kept while the mass before it is under top_p, so the first always is.
    bound = (limits.top_p * total).ceil().long()
    bound = torch.where(limits.top_p < 1, bound, torch.iinfo(torch.int64).max)
    kept = by_k & (within - weights < bound[:, None]) & (scores >= limits.min_score[:, None])
    return by_k, kept


def _keep_typical(scores: Tensor, weights: Tensor, kept: Tensor, typical_p: Tensor) -> Tensor:
    """Keep of `kept` the tokens whose surprise is nearest the entropy (arXiv 2202.00666).

    With the normalizer cancelled, |-log p - H| is the distance of a score from the mean score.
    """
    mass = weights.sum(1)
    sums = torch.where(kept, weights * scores, 0.0).round().long().sum(1)
    distance = (scores - (sums / mass)[:, None]).abs().masked_fill(~kept, torch.inf)
    nearest = distance.argsort(dim=1, stable=True)
    within = weights.gather(1, nearest).cumsum(1)
    bound = (typical_p * mass).ceil().long()
    # As in transformers: up to and with the first that reaches the mass, and what ties with it.
    last = (within < bound[:, None]).sum(1, keepdim=True).clamp(max=scores.shape[1] - 1)
    limit = distance.gather(1, nearest.gather(1, last))
    return kept & ((distance <= limit) | (typical_p >= 1)[:, None])
