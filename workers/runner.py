"""Run one step: build the packed batch, run the model, sample.

All tokens of a step travel as one packed sequence [1, T]: one token of each decoding row first,
then the prefill chunks. Only the positions that are sampled, or whose prompt log-probabilities are
wanted, go through the language-model head.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import (
    Admit,
    RowError,
    Run,
    Sampled,
    Step,
    StepDone,
)
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.constraints.constraints import Constraints
from workers.constraints.rows import ConstrainedRows
from workers.forward import ForwardBatch, Model
from workers.graphs.decode import DecodeGraphs, Decodes
from workers.launched_step import FetchedPromptLogprobs, LaunchedStep, SamplingBatch, seconds
from workers.sampling import Allowed, Sampler
from workers.table import RowTable
from workers.timing import Mark
from workers.transfer import Fetched, send

PROMPT_LOGPROBS_AT_ONCE = 64
"""Prompt positions whose log-probabilities are computed at once, which bounds the float32 copies of
their logits."""


class Runner:
    """Runs steps in order. Raises KeyError for a step with rows that it does not have."""

    def __init__(
        self,
        model: Model,
        table: RowTable,
        cache: PagedCache,
        sampler: Sampler,
        constraints: Constraints | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._table = table
        self._cache = cache
        self._sampler = sampler
        self._constraints = constraints
        self._graphs = graphs
        self._constrained = None if constraints is None else ConstrainedRows(table, constraints)

    def launch(self, step: Step) -> LaunchedStep:
        """Run `forward` and `sample`. If `constrained`, earlier steps must have been collected."""
        launched = self.forward(step)
        self.sample(launched)
        return launched

    @property
    def constrained(self) -> bool:
        """Whether a step can be sampled only once the one before has been collected."""
        return bool(self._constraints)

    def forward(self, step: Step) -> LaunchedStep:
        """Compute a step. Where it fails, rows run alone, and those that fail again are
        reported."""
        for row in step.release:
            self._release(row)
        for admit in step.admit:
            self._admit(admit)
        for grow in step.grow:
            self._table.grow(grow)
        table = self._table
        launched = LaunchedStep(step.step, {run.row: table[run.row] for run in step.run})
        runs = [run for run in step.run if not table[run.row].failed]
        if len(runs) < len(step.run):
            # Planned before the router knew of the failure; every row of a step gets a token or an
            # error.
            failed = [row for row, state in launched.rows.items() if state.failed]
            launched.errors += [RowError(row, "it failed in an earlier step") for row in failed]
        if self._constrained is not None and self.constrained:
            runs = self._constrained.without_waiting(runs, launched)
        if runs:
            self._run_together(runs, launched)
        return launched

    def sample(self, launched: LaunchedStep) -> None:
        """Sample the rows that were forwarded; a row that fails does so alone."""
        began = self._mark()
        batches, launched.to_sample = launched.to_sample, []
        for part in batches:
            if self._constrained is not None and self.constrained:
                part = self._constrained.masked(part, launched)
            if part.rows:
                self._sample_together(part, launched)
        launched.samplings.append((began, self._mark()))

    def collect(self, launched: LaunchedStep) -> StepDone:
        """Wait for a step's results, and return them for the router."""
        sampled: list[Sampled] = []
        errors = launched.errors
        for rows, output in launched.outputs:
            tokens, broken = output.to_wire(rows)
            sampled += tokens
            errors += broken
        for error in errors:
            launched.rows[error.row].failed = True
        reported = {
            *launched.masks_not_ready,
            *(one.row for one in sampled),
            *(one.row for one in errors),
        }
        for row, state in launched.rows.items():
            # It failed in a step that was collected after this one had been launched.
            if state.failed and row not in reported:
                errors.append(RowError(row, "it failed in an earlier step"))
        if self._constrained is not None and self.constrained:
            sampled = self._constrained.follow(sampled, launched)
        return StepDone(
            launched.step,
            sampled,
            [one.to_wire() for one in launched.prompt_logprobs],
            errors,
            seconds(launched.forwards),
            seconds(launched.samplings),
            launched.masks_not_ready,
        )

    def close(self) -> None:
        """Free the graphs; to be called before the ranks are destroyed."""
        if self._graphs is not None:
            self._graphs.close()

    def _admit(self, admit: Admit) -> None:
        self._table.admit(admit)
        constrained = admit.constraint is not None
        self._sampler.admit(
            admit.row, admit.sampling, admit.tokens, admit.n_prompt, constrained=constrained
        )
        if admit.constraint is None:
            return
        if self._constraints is None:
            raise RuntimeError("a row has a grammar, and this runner was given no constraints")
        output = admit.tokens[admit.n_prompt :]
        jump_forward = self._sampler.skips(admit.row)
        self._constraints.admit(admit.row, admit.constraint, output, jump_forward)

    def _release(self, row: int) -> None:
        self._table.release(row)
        self._sampler.release(row)
        if self._constraints is not None:
            self._constraints.release(row)

    # -- the forward pass -----------------------------------------------------------------------

    def _run_together(self, runs: list[Run], launched: LaunchedStep) -> None:
        """Run a batch; where it fails as a whole, run each row alone, to find the one that
        fails."""
        try:
            self._run(runs, launched)
        except torch.AcceleratorError:
            raise  # the device itself is lost, and every row with it
        except RuntimeError as error:
            if len(runs) > 1:
                for run in runs:
                    self._run_together([run], launched)
                return
            row = runs[0].row
            self._table[row].failed = True
            launched.errors.append(RowError(row, str(error)))

    @torch.inference_mode()
    def _run(self, runs: list[Run], launched: LaunchedStep) -> None:
        began = self._mark()
        table, device = self._table, self._table.last_tokens.device
        decodes = [run.row for run in runs if not table[run.row].prefilling]
        chunks = [run for run in runs if table[run.row].prefilling]
        n_decode = len(decodes)
        if not chunks and self._replay(decodes, launched):
            launched.forwards.append((began, self._mark()))
            return

        ids, positions, slots, prefills = [], [], [], []
        if decodes:
            at = np.asarray(decodes)
            where = np.fromiter((table[row].n_computed for row in decodes), np.int64, n_decode)
            positions.append(where)
            slots.append(self._slots(at, where))
        sampling = list(decodes)
        sampled_at = list(range(n_decode))
        prompt_chunks: list[tuple[Run, int]] = []
        start = n_decode
        for run in chunks:
            row = table[run.row]
            end = row.n_computed + run.n
            ids.append(row.tokens[row.n_computed : end])
            where = np.arange(row.n_computed, end)
            positions.append(where)
            slots.append(self._slots(np.asarray(run.row), where))
            blocks = torch.from_numpy(table.block_tables[run.row, : row.n_blocks])
            prefills.append(Prefill(start, run.n, end, blocks))
            if row.prompt_logprobs and row.n_computed < row.n_prompt - 1:
                prompt_chunks.append((run, start))
            start += run.n
            if end == len(row.tokens):
                sampling.append(run.row)
                sampled_at.append(start - 1)

        input_ids = table.last_tokens.new_empty(start)
        if decodes:
            input_ids[:n_decode] = table.last_tokens[send(at, device)]
        if ids:
            input_ids[n_decode:] = send(np.concatenate(ids), device)
        context = AttentionContext(
            cache=self._cache,
            slot_mapping=torch.from_numpy(np.concatenate(slots)),
            n_decode=n_decode,
            decode_block_tables=self._decode_tables(decodes),
            decode_lengths=torch.from_numpy((positions[0] + 1).astype(np.int32))
            if decodes
            else torch.empty(0, dtype=torch.int32),
            prefills=prefills,
        )
        wanted = np.asarray(
            sampled_at + [i for run, at in prompt_chunks for i in range(at, at + run.n)], np.int64
        )
        if self._constraints:
            self._constraints.go()
        batch = ForwardBatch(
            input_ids, send(np.concatenate(positions), device), send(wanted, device), context
        )
        logits = self._model.forward(batch).logits
        forwarded = self._mark()
        launched.prompt_logprobs += self._prompt_logprobs(prompt_chunks, logits[len(sampled_at) :])
        if sampling:
            free: list[NDArray[np.int32] | None] = [None] * len(sampling)
            launched.to_sample.append(SamplingBatch(sampling, logits[: len(sampled_at)], free))
        for run in runs:
            table[run.row].n_computed += run.n
        launched.forwards.append((began, forwarded))
        launched.samplings.append((forwarded, self._mark()))

    def _replay(self, decodes: list[int], launched: LaunchedStep) -> bool:
        """Compute and sample decode rows by a graph, if one takes them."""
        if self._graphs is None:
            return False
        table = self._table
        rows = np.asarray(decodes, np.int64)
        where = np.fromiter((table[row].n_computed for row in decodes), np.int64, len(decodes))
        # Rows with a grammar are sampled once their masks are ready.
        stored = self._sampler.takes(rows)
        if self._constraints:
            stored &= [row not in self._constraints for row in decodes]
        sampling = self._sampler.numbers(rows, where + 1)
        if self._constraints:
            self._constraints.go()
        done = self._graphs.run(Decodes(rows, where, self._slots(rows, where), stored, sampling))
        if done is None:
            return False
        free: list[NDArray[np.int32] | None] = [None] * len(decodes)
        launched.to_sample.append(
            SamplingBatch(decodes, done[0], free, done[1], bool(stored.all()))
        )
        for row in decodes:
            table[row].n_computed += 1
        return True

    def _sample_together(self, part: SamplingBatch, launched: LaunchedStep) -> None:
        try:
            self._sample(part, launched)
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            if len(part.rows) > 1:
                for i in range(len(part.rows)):
                    self._sample_together(part.pick([i]), launched)
                return
            self._table[part.rows[0]].failed = True
            launched.errors.append(RowError(part.rows[0], str(error)))

    @torch.inference_mode()
    def _sample(self, part: SamplingBatch, launched: LaunchedStep) -> None:
        table, device = self._table, self._table.last_tokens.device
        rows = part.rows
        masks = [(line, mask) for line, mask in enumerate(part.masks) if mask is not None]
        allowed: Allowed | None = None
        if masks:
            lines, bits = zip(*masks, strict=True)
            allowed = Allowed(np.asarray(lines, np.int64), np.stack(bits))
        lengths = [table[row].length for row in rows]
        output = self._sampler.sample(rows, lengths, part.logits, allowed, part.picked)
        if not part.stored or allowed is not None:
            table.last_tokens[send(np.asarray(rows), device)] = output.tokens
        launched.outputs.append((rows, output.fetch()))
        for row in rows:
            table[row].length += 1
            if row in launched.jump_forward_tokens:
                table[row].extend(launched.jump_forward_tokens[row])

    def _slots(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the keys and values of these positions go, as block * block_size +
        offset."""
        size = self._table.block_size
        blocks = self._table.block_tables[rows, positions // size].astype(np.int64)
        return blocks * size + positions % size

    def _decode_tables(self, rows: list[int]) -> torch.Tensor:
        table = self._table
        longest = max((table[row].n_blocks for row in rows), default=0)
        return torch.from_numpy(np.ascontiguousarray(table.block_tables[rows, :longest]))

    def _prompt_logprobs(
        self, chunks: list[tuple[Run, int]], logits: torch.Tensor
    ) -> list[FetchedPromptLogprobs]:
        """Compute the log-probabilities of the prompt tokens after each position of these
        chunks."""
        found = []
        offset = 0
        for run, _ in chunks:
            row = self._table[run.row]
            first = row.n_computed + 1
            n = min(run.n, row.n_prompt - first)
            following = send(row.tokens[first : first + n], logits.device)
            parts = []
            for begin in range(0, n, PROMPT_LOGPROBS_AT_ONCE):
                end = min(n, begin + PROMPT_LOGPROBS_AT_ONCE)
                scores = logits[offset + begin : offset + end].float().log_softmax(-1)
                chosen = scores.gather(1, following[begin:end, None])
                part = [chosen[:, 0], (scores >= chosen).sum(1)]
                if row.prompt_top_n:
                    best = scores.topk(min(row.prompt_top_n, scores.shape[1]))
                    part += [best.indices, best.values]
                parts.append(Fetched(part))
            found.append(FetchedPromptLogprobs(run.row, first, parts))
            offset += run.n
        return found

    def _mark(self) -> Mark:
        return Mark(self._table.last_tokens.device)
