"""The sampler: applies only the processing that each row needs.

A step of plain greedy rows is one argmax. Each further thing (penalties, log-probabilities, draws,
truncation, top tokens) is computed for the rows that ask for it, together. On a GPU, rows that ask
for no more than `DeviceSampling` does are its own, whatever the others ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tgi_async.wire.messages import RowError, Sampled, Sampling
from workers.errors import FAILURES, RowsLost
from workers.sampling.argmax import max_and_argmax
from workers.sampling.bans import Bans
from workers.sampling.bias import Bias
from workers.sampling.candidates import candidates
from workers.sampling.device import DeviceSampling
from workers.sampling.draw import DRAWS, REPORTS, Draws, draw_rows
from workers.sampling.exponential_race import add_gumbel_noise
from workers.sampling.masking import Allowed, mask_out, masked_argmax
from workers.sampling.output import Picked, SamplerOutput, TopTokens
from workers.sampling.parameters import Needs, Parameters
from workers.sampling.penalties import Penalties
from workers.sampling.random import Purpose, keys
from workers.sampling.truncation import Drawn, TruncationLimits, draw
from workers.sampling.watermark import Watermark
from workers.transfer import send

CANDIDATES = 256
"""How many of the likeliest tokens are tried before the whole vocabulary is sorted."""

SCORES_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""How many scores are sampled or sorted at once, at most some 60 bytes each: on the CPU few, for
the cache; elsewhere many, for few launches."""

QUICK = np.uint16(Needs.DRAW | Needs.LOGPROB)
"""What a kernel does on a CPU."""

Index = NDArray[np.int64]


class _Chosen(NamedTuple):
    tokens: Tensor
    logprobs: Tensor
    top: TopTokens | None


class Sampler:
    """The sampling state of every row of the persistent batch."""

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device,
        *,
        on_device: bool | None = None,
        most_lines: int = 0,
    ) -> None:
        """Make a sampler. `on_device` says whether it has a `device_sampling`; by default on a
        GPU. At most `most_lines` are sampled at once; 0: `max_rows`."""
        self._vocab_size = vocab_size
        self._device = device
        self._lines_at_once = max(1, SCORES_AT_ONCE[device.type] // vocab_size)
        self._parameters = Parameters(max_rows, vocab_size)
        self._penalties = Penalties(max_rows, device)
        self._watermark = Watermark(max_rows, device)
        self._bias = Bias(max_rows, vocab_size, device)
        self._bans = Bans(max_rows, vocab_size, device)
        self.device_sampling: DeviceSampling | None = None
        """Samples the rows that it `takes`; None without one."""
        if device.type == "cuda" if on_device is None else on_device:
            self.device_sampling = DeviceSampling(vocab_size, most_lines or max_rows, device)

    def admit(
        self,
        row: int,
        sampling: Sampling,
        tokens: Sequence[int],
        n_prompt: int | None = None,
        *,
        constrained: bool = False,
    ) -> None:
        """Add a row with `tokens`, its prompt and what it has already emitted; at least one.

        The first `n_prompt` are the prompt; by default all. A row that is `constrained` follows a
        grammar.
        """
        needs = self._parameters.set(row, sampling, constrained)
        n_prompt = len(tokens) if n_prompt is None else n_prompt
        if needs & Needs.BAN:
            self._bans.admit(row, sampling, tokens, n_prompt)
        if needs & Needs.PENALTY:
            # A placeholder of an image may be beyond what a model can emit.
            known = [token for token in tokens if token < self._vocab_size] or [0]
            n_unknown = len(tokens) - len(known)
            self._penalties.admit(row, sampling, known, max(0, n_prompt - n_unknown))
        if needs & Needs.BIAS:
            self._bias.admit(row, sampling.biased_ids, sampling.biases)
        if needs & Needs.WATERMARK:
            self._watermark.admit(row, tokens)

    def skips(self, row: int) -> bool:
        """Return whether tokens of `row` that are known beforehand may be skipped, unsampled."""
        unseen = Needs.DRAW | Needs.TRUNCATION | Needs.LOGPROB | Needs.BIAS
        return not int(self._parameters.needs[row]) & ~int(unseen)

    def forgets(self, rows: Index) -> NDArray[np.bool_]:
        """Return whether the next token of each of `rows` depends on its position and logits only,
        not on the tokens before. `sample` takes such rows several times, at other positions."""
        remembering = Needs.PENALTY | Needs.WATERMARK | Needs.BAN
        forgetful: NDArray[np.bool_] = (self._parameters.needs[rows] & remembering) == 0
        return forgetful

    def release(self, row: int) -> None:
        """Remove a row."""
        self._parameters.clear(row)

    def takes(self, rows: Index) -> NDArray[np.bool_]:
        """Return whether `device_sampling` samples each of `rows`, unless a mask restricts it."""
        if self.device_sampling is None:
            return np.zeros(len(rows), np.bool_)
        return DeviceSampling.takes(self._parameters, rows)

    def numbers(self, rows: Index, positions: Index) -> NDArray[np.int32]:
        """Return int32 [n, DeviceSampling.WIDTH]: the parameters of `rows` at these positions, as
        in `sample`; zeros for those that it does not take."""
        return DeviceSampling.numbers(self._parameters, rows, positions)

    def sample(
        self,
        rows: list[int],
        positions: list[int],
        logits: Tensor,
        allowed: Allowed | None = None,
        picked: Picked | None = None,
    ) -> SamplerOutput:
        """Return the next token of each of `rows`, which are different, but for those it `forgets`.

        `logits` is [B, V] in the model's dtype and is left as it is; `positions[i]` is the number
        of tokens before the one sampled for `rows[i]`; `allowed` keeps some to their grammars.
        `picked` is what `device_sampling` has made of these logits and of `numbers`, if it has: of
        the rows that it takes, the tokens are then there.

        Steps that `device_sampling` takes whole, and greedy ones with or without log-probabilities,
        never wait for the device. Elsewhere truncation and top tokens ask it once whether the
        candidates sufficed.
        """
        at, places = np.asarray(rows, np.int64), np.asarray(positions, np.int64)
        taken = self.takes(at)
        if allowed is not None:
            taken[allowed.lines] = False
        if self.device_sampling is None or not taken.any():
            return self._process(at, places, logits, allowed)
        if picked is None:
            numbers = self.numbers(at, places)
            numbers[~taken] = 0
            picked = self.device_sampling.sample(logits, self._send(numbers))
        wanted = (self._parameters.needs[at] & Needs.LOGPROB) != 0
        logprobs = picked.logprobs if wanted.any() else None
        output = SamplerOutput(picked.tokens, picked.max_logits, logprobs, wanted, None)
        if taken.all():
            return output
        others = np.flatnonzero(~taken)
        some = self._send(others)
        return _joined(
            output,
            some,
            self._process(at[others], places[others], logits[some], _some(allowed, others)),
        )

    def _process(
        self, at: Index, places: Index, logits: Tensor, allowed: Allowed | None
    ) -> SamplerOutput:
        """Do `sample` for rows of any needs."""
        needs = self._parameters.needs[at]
        wanted = (needs & Needs.LOGPROB) != 0
        if not needs.any():
            if allowed is not None and len(allowed.lines) == len(at):
                peaks, tokens = masked_argmax(logits, allowed)
                return SamplerOutput(tokens, peaks, None, wanted, None)
            peaks, tokens = max_and_argmax(logits)
            if allowed is not None:
                lines = self._send(allowed.lines)
                peaks[lines], tokens[lines] = masked_argmax(logits, allowed)
            return SamplerOutput(tokens, peaks, None, wanted, None)
        quick = (needs & ~QUICK) == 0
        if quick.any() and logits.is_cpu:
            drawn = self._draw_quickly(at, places, logits, allowed, needs)
            if drawn is not None and quick.all():
                return drawn
            if drawn is not None:
                # Those that need more are few as a rule.
                others = np.flatnonzero(~quick)
                some = self._send(others)
                return _joined(
                    drawn,
                    some,
                    self._process(at[others], places[others], logits[some], _some(allowed, others)),
                )

        marked = np.flatnonzero(needs & Needs.WATERMARK)
        penalized = np.flatnonzero(needs & Needs.PENALTY)
        biased = np.flatnonzero(needs & Needs.BIAS)
        scores = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if marked.size:
            self._watermark.apply(scores, marked, at[marked])
        if penalized.size:
            self._penalties.apply(scores, penalized, at[penalized], places[penalized])
        if biased.size:
            self._bias.apply(scores, biased, at[biased])
        if allowed is not None:
            mask_out(scores, allowed)
        banned = np.flatnonzero(needs & Needs.BAN)
        if banned.size:
            self._bans.apply(scores, banned, at[banned], places[banned])

        peaks, tokens = max_and_argmax(scores)
        output = SamplerOutput(tokens, peaks, None, wanted, None)
        reported = np.flatnonzero(needs & Needs.MODEL_LOGPROB)
        needs[reported] &= ~np.uint16(Needs.LOGPROB | Needs.TOP)
        beyond = np.flatnonzero(needs & (Needs.DRAW | Needs.LOGPROB | Needs.TOP))
        if beyond.size == len(at):
            chosen = self._choose(scores, tokens, peaks, at, places, needs)
            output = output._replace(
                tokens=chosen.tokens,
                logprobs=chosen.logprobs if wanted.any() else None,
                top=chosen.top,
            )
        elif beyond.size:
            some = self._send(beyond)
            chosen = self._choose(
                scores[some], tokens[some], peaks[some], at[beyond], places[beyond], needs[beyond]
            )
            output = _scattered(output, some, chosen)
        if reported.size:
            output = self._report(output, reported, logits, at[reported])

        try:
            if penalized.size:
                self._penalties.record(at[penalized], output.tokens[self._send(penalized)])
            if marked.size:
                self._watermark.record(at[marked], output.tokens[self._send(marked)])
            if banned.size:
                self._bans.record(at[banned], output.tokens[self._send(banned)])
                self._parameters.drop(self._bans.over(at[banned], places[banned] + 1), Needs.BAN)
        except torch.AcceleratorError:
            raise
        except FAILURES as error:
            # Some rows have their token and others not: nobody may sample them again.
            raise RowsLost(f"sampled tokens were lost: {error}") from error
        return output

    def _draw_quickly(
        self,
        at: Index,
        places: Index,
        logits: Tensor,
        allowed: Allowed | None,
        needs: NDArray[np.uint16],
    ) -> SamplerOutput | None:
        """Do `sample` for rows that need no more than QUICK, in one kernel; None without one.
        What it says of other rows means nothing."""
        draws = (needs & Needs.DRAW) != 0
        wanted = (needs & Needs.LOGPROB) != 0
        found = draw_rows(
            logits,
            Draws(
                (draws * DRAWS + wanted * REPORTS).astype(np.uint8),
                self._parameters.temperature[at],
                self._keys(at, places, needs),
            ),
            allowed,
        )
        if found is None:
            return None
        tokens, peaks, logprobs = found
        return SamplerOutput(tokens, peaks, logprobs if wanted.any() else None, wanted, None)

    def to_wire(
        self, rows: list[int], output: SamplerOutput
    ) -> tuple[list[Sampled], list[RowError]]:
        """Return `SamplerOutput.to_wire`: the only place that waits for a step's results."""
        return output.to_wire(rows)

    def _choose(
        self,
        scores: Tensor,
        best: Tensor,
        peaks: Tensor,
        rows: Index,
        places: Index,
        needs: NDArray[np.uint16],
    ) -> _Chosen:
        """Return tokens, log-probabilities and top tokens of n rows that each need some of these.

        `scores` (float32 [n, V]) are processed up to temperature, and used up; `best` and `peaks`
        are their argmax and maximum.
        """
        parameters = self._parameters
        truncated = (needs & Needs.TRUNCATION) != 0
        # The largest score becomes 0, so that no temperature, however low, overflows.
        scores -= peaks[:, None]
        temperature = parameters.temperature[rows]
        if (temperature != 1).any():
            scores /= self._send(temperature)[:, None]
        bits = self._bits(rows, places, needs)

        tokens = best.clone()
        plain = np.flatnonzero(((needs & Needs.DRAW) != 0) & ~truncated)
        if plain.size:
            vocabulary = torch.arange(self._vocab_size, device=self._device)[None]
            for part in torch.split(self._send(plain), self._lines_at_once):
                tokens[part] = add_gumbel_noise(scores[part], vocabulary, bits[part]).argmax(1)
        log_totals = torch.zeros(len(rows), dtype=torch.float64, device=self._device)
        # The sum over the vocabulary, where it is asked for; what is left of a row after top-k is
        # summed there.
        asked = truncated | ((needs & (Needs.LOGPROB | Needs.TOP)) != 0)
        summed = np.flatnonzero(asked & (parameters.top_k[rows] == self._vocab_size))
        if summed.size:
            some = self._send(summed)
            probs = (scores if summed.size == len(rows) else scores[some]).softmax(-1)
            log_totals[some] = _log_totals(probs, best[some])
        logprobs = (scores.gather(1, tokens[:, None])[:, 0] - log_totals).float()

        ordered = np.flatnonzero(needs & (Needs.TRUNCATION | Needs.TOP))
        if not ordered.size:
            return _Chosen(tokens, logprobs, None)
        some = self._send(ordered)
        if ordered.size < len(rows):
            scores, log_totals, bits = scores[some], log_totals[some], bits[some]
        chosen_from = rows[ordered]
        limits = TruncationLimits(
            truncates=self._send(truncated[ordered]),
            top_k=self._send(parameters.top_k[chosen_from]),
            top_p=self._send(parameters.top_p[chosen_from]),
            typical_p=self._send(parameters.typical_p[chosen_from]),
            min_score=self._send(parameters.min_score[chosen_from]),
            top_n=self._send(parameters.top_n[chosen_from]),
            log_total=log_totals,
        )
        drawn = self._draw(
            scores,
            limits,
            bits,
            typical=bool((parameters.typical_p[chosen_from] < 1).any()),
            most_top=int(parameters.top_n[chosen_from].max()),
        )
        cut = np.flatnonzero(truncated[ordered])
        if cut.size:
            some_cut, to = self._send(cut), self._send(ordered[cut])
            tokens[to] = drawn.tokens[some_cut]
            logprobs[to] = drawn.logprobs[some_cut]
        if not (needs & Needs.TOP).any():
            return _Chosen(tokens, logprobs, None)
        top = TopTokens(drawn.top_ids, drawn.top_logprobs, drawn.top_counts)
        return _Chosen(tokens, logprobs, top.spread(some, len(rows)))

    def _report(
        self, output: SamplerOutput, lines: Index, logits: Tensor, rows: Index
    ) -> SamplerOutput:
        """Return `output` with its `lines` (of `rows`) reporting the model's own distribution."""
        some = self._send(lines)
        scores = logits[some].float()
        peaks, best = scores.max(-1)
        scores -= peaks[:, None]
        log_totals = _log_totals(scores.softmax(-1), best)
        found = (scores.gather(1, output.tokens[some][:, None])[:, 0] - log_totals).float()
        held = found.new_zeros(len(output.tokens)) if output.logprobs is None else output.logprobs
        output = output._replace(logprobs=held.index_copy(0, some, found))
        top_n = self._parameters.top_n[rows]
        if not top_n.any():
            return output
        drawn = self._draw(
            scores,
            TruncationLimits.keep_all(self._send(top_n), log_totals, self._vocab_size),
            self._send(np.zeros((len(rows), 2), np.int32)),
            typical=False,
            most_top=int(top_n.max()),
        )
        top = TopTokens(drawn.top_ids, drawn.top_logprobs, drawn.top_counts)
        return output._replace(top=top.merged_into(output.top, some, len(output.tokens)))

    def _draw(
        self,
        scores: Tensor,
        limits: TruncationLimits,
        bits: Tensor,
        *,
        typical: bool,
        most_top: int,
    ) -> Drawn:
        """Run `truncation.draw` on few candidates, then on all for the rows that need more."""
        width = min(self._vocab_size, max(CANDIDATES, 2 * most_top))
        drawn = draw(
            candidates(scores, width),
            limits,
            bits,
            self._vocab_size,
            typical=typical,
            most_top=most_top,
        )
        incomplete = (~drawn.complete).nonzero()[:, 0]
        for again in torch.split(incomplete, self._lines_at_once):
            full = draw(
                candidates(scores[again], self._vocab_size),
                limits.select(again),
                bits[again],
                self._vocab_size,
                typical=typical,
                most_top=most_top,
            )
            for some, all_of_them in zip(drawn, full, strict=True):
                some[again] = all_of_them
        return drawn

    def _bits(self, rows: Index, places: Index, needs: NDArray[np.uint16]) -> Tensor:
        """Return int32 [n, 2], the random bits of each row's draw at its position."""
        return self._send(self._keys(rows, places, needs))

    def _keys(self, rows: Index, places: Index, needs: NDArray[np.uint16]) -> NDArray[np.int32]:
        """Return `_bits` on the host."""
        if not (needs & Needs.DRAW).any():
            return np.zeros((len(rows), 2), np.int32)
        parameters = self._parameters
        return keys(
            parameters.seed[rows],
            parameters.choice[rows],
            places.astype(np.uint64),
            Purpose.TOKEN,
        )

    def _send(self, array: NDArray[np.generic]) -> Tensor:
        return send(array, self._device)


def _some(allowed: Allowed | None, lines: Index) -> Allowed | None:
    """Return what is allowed of these lines, which then are all."""
    if allowed is None:
        return None
    kept = np.isin(allowed.lines, lines)
    if not kept.any():
        return None
    return Allowed(np.searchsorted(lines, allowed.lines[kept]), allowed.bits[kept])


def _log_totals(probs: Tensor, best: Tensor) -> Tensor:
    """Return float64 [n]: log of the sum of exp(score) of each line, from its softmax and its
    argmax.

    softmax sums a line in one fixed order, where sum() and logsumexp() add up a lone line in
    another order than one among others.
    """
    return -probs.gather(1, best[:, None])[:, 0].double().log()


def _scattered(output: SamplerOutput, some: Tensor, chosen: _Chosen) -> SamplerOutput:
    """Return `output` with the results for its lines `some`."""
    n = len(output.tokens)
    logprobs = None
    if output.wanted.any():
        logprobs = chosen.logprobs.new_zeros(n).index_copy(0, some, chosen.logprobs)
    return output._replace(
        tokens=output.tokens.index_copy(0, some, chosen.tokens),
        logprobs=logprobs,
        top=None if chosen.top is None else chosen.top.spread(some, n),
    )


def _joined(output: SamplerOutput, some: Tensor, others: SamplerOutput) -> SamplerOutput:
    """Return `output` with its lines `some` replaced by `others`."""
    logprobs = output.logprobs
    if logprobs is not None and others.logprobs is not None:
        logprobs = logprobs.index_copy(0, some, others.logprobs)
    return output._replace(
        tokens=output.tokens.index_copy(0, some, others.tokens),
        max_logits=output.max_logits.index_copy(0, some, others.max_logits.float()),
        logprobs=logprobs,
        top=None if others.top is None else others.top.spread(some, len(output.tokens)),
    )
