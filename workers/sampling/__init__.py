"""The sampler: logits to tokens, vectorized over the rows of the persistent batch.

Order of processing, as in TGI: watermark, repetition penalty, frequency penalty, then for rows that
sample: temperature, top-k, top-p, typical-p. OpenAI's penalties, then its logit bias, then a
grammar's mask, then bans come before temperature, min-p before typical-p. A token is a function of
the request and its logits, never of which other rows share the batch.
"""

from workers.sampling.masking import Allowed
from workers.sampling.output import SamplerOutput, TopTokens
from workers.sampling.sampler import Sampler

__all__ = ["Allowed", "Sampler", "SamplerOutput", "TopTokens"]
