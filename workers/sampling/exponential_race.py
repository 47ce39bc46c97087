"""Exponential race sampling: add Gumbel noise to every token's score and take the largest.

With e exponential, score - log(e) is largest at a token with the probability that softmax gives it
(Gumbel-max: Maddison et al., "A* Sampling", 2014; as weighted sampling: Efraimidis and Spirakis,
2006). Each noise is a hash of the draw's key and the token's id, so that a draw depends on the two
best tokens alone. Logits that are off by d, as float32's are between batches of different shape,
change a draw only if those two lie within 2 d. Inverting the cumulative distribution instead moves
the edges between all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.sampling.murmur import mix, spread

# Rounding to 24 bits may give 2**31, of which this still makes less than 1.
_TO_UNIT = 2.0**-31 * (1 - 2.0**-24)


def add_gumbel_noise(scores: Tensor, ids: Tensor, keys: Tensor) -> Tensor:
    """Add the noise of its token to each score; all are float32 [n, C].

    `ids` is integer [n, C] or [1, C], `keys` int32 [n, 2]: 64 random bits for each line. A token
    with a probability below about 2**-31 is drawn less often than it should be, as its noise has 31
    bits.
    """
    words = mix(mix(spread(ids) + keys[:, :1]).bitwise_xor_(keys[:, 1:]))
    words &= 0x7FFFFFFF
    # The token that is drawn has an e near 0, where float32 is finest: hence log1p of a small
    # number, and not log of one near 1.
    negative = words.float().add_(0.5).mul_(-_TO_UNIT)
    return torch.sub(scores, negative.log1p_().neg_().log_(), out=negative)


def argmax_lowest_id(scores: Tensor, ids: Tensor) -> Tensor:
    """Return the index [n, 1] of each line's largest score; equal scores go to the lowest id."""
    lower = scores < scores.amax(1, keepdim=True)
    return ids.masked_fill(lower, torch.iinfo(ids.dtype).max).argmin(1, keepdim=True)
