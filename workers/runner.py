"""Run one step: build the packed batch, run the model, sample.

All tokens of a step travel as one packed sequence [1, T]: of each decoding row its last token and
the drafts that are verified behind it, then the prefill chunks. A draft is a decode row of its own,
with the same block table and a length of one more. Only the positions that are sampled, or whose
prompt log-probabilities are wanted, go through the language-model head.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import (
    Admit,
    RowError,
    Run,
    Step,
    StepDone,
)
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.constraints.constraints import Constraints
from workers.constraints.rows import ConstrainedRows
from workers.decodes import Decodes
from workers.errors import FAILURES, RowsLost
from workers.forward import ForwardBatch, Model
from workers.graphs.decode import DecodeGraphs
from workers.launched_step import FetchedPromptLogprobs, LaunchedStep, SamplingBatch, seconds
from workers.sampling import Allowed, Sampler
from workers.sampling.output import SamplerOutput
from workers.speculation.speculation import Asked, Speculation
from workers.table import RowTable
from workers.timing import Mark
from workers.transfer import Fetched, send
from workers.verification import Verification
from workers.vision.rows import Part, RowImages

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
        speculation: Speculation | None = None,
        images: RowImages | None = None,
    ) -> None:
        self._model = model
        self._table = table
        self._cache = cache
        self._sampler = sampler
        self._constraints = constraints
        self._graphs = graphs
        self._speculation = speculation
        self._images = images
        self._constrained = None if constraints is None else ConstrainedRows(table, constraints)

    def launch(self, step: Step) -> LaunchedStep:
        """Run `forward` and `sample`. If `constrained` or `drafts`, earlier steps must have been
        collected."""
        launched = self.forward(step)
        self.sample(launched)
        return launched

    @property
    def constrained(self) -> bool:
        """Whether a step can be sampled only once the one before has been collected."""
        return bool(self._constraints)

    @property
    def drafts(self) -> bool:
        """Whether a step can be computed only once the one before has been collected."""
        return self._speculation is not None

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
            self._run_together(runs, launched, self._drafts(runs))
        return launched

    def sample(self, launched: LaunchedStep) -> None:
        """Sample the rows that were forwarded; a row that fails does so alone."""
        began = self._mark()
        batches, launched.to_sample = launched.to_sample, []
        for part in batches:
            if part.drafts:
                self._verify(part, launched)
                continue
            self._sample_place(part, launched)
            if part.hidden is not None:
                self._observe_hidden(part.rows, part.hidden, launched)
        launched.samplings.append((began, self._mark()))

    def collect(self, launched: LaunchedStep) -> StepDone:
        """Wait for a step's results, and return them for the router."""
        sampled = launched.sampled
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
            *(one.row for one in launched.verified),
            *(one.row for one in errors),
        }
        for row, state in launched.rows.items():
            # It failed in a step that was collected after this one had been launched.
            if state.failed and row not in reported:
                errors.append(RowError(row, "it failed in an earlier step"))
        if self._constrained is not None and self.constrained:
            sampled = self._constrained.follow(sampled, launched)
        sampled = launched.verified + sampled
        if self._speculation is not None:
            for one in sampled:
                if self._table.get(one.row) is launched.rows[one.row]:
                    self._speculation.observe(one.row, one.tokens)
        return StepDone(
            launched.step,
            sampled,
            [one.to_wire() for one in launched.prompt_logprobs],
            errors,
            seconds(launched.forwards),
            seconds(launched.samplings),
            launched.masks_not_ready,
            launched.encoded(),
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
        if self._images is not None:
            self._images.admit(admit)
        if self._speculation is not None:
            self._speculation.admit(admit.row, admit.tokens, admit.n_prompt, admit.tenant)
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
        if self._images is not None:
            self._images.release(row)
        if self._constraints is not None:
            self._constraints.release(row)
        if self._speculation is not None:
            self._speculation.release(row)

    # -- drafts ---------------------------------------------------------------------------------

    def _drafts(self, runs: list[Run]) -> dict[int, list[int]]:
        """Return the drafts of the rows that verify any."""
        if self._speculation is None:
            return {}
        table = self._table
        drafting = [run for run in runs if run.n > 1 and not table[run.row].prefilling]
        if not drafting:
            return {}
        if self._constrained is not None and self.constrained:
            asked = self._constrained.asked(drafting)
        else:
            asked = [Asked(run.row, run.n - 1) for run in drafting]
        n_positions = sum(table[run.row].n_known(run.n) for run in runs)
        n_sampled = sum(table[run.row].samples(run.n) for run in runs)
        return self._speculation.propose(asked, n_positions, n_sampled)

    def _verify(self, part: SamplingBatch, launched: LaunchedStep) -> None:
        """Sample rows with drafts, and those beside them, each as long as its drafts are
        accepted."""
        verification = Verification(part, launched, self._table)
        if not self._verify_at_once(part, verification):
            self._verify_by_place(verification, launched)
        left = verification.finish()
        if self._constraints is not None:
            self._constraints.advance(left)
        if part.hidden is not None:
            lines = send(verification.last_lines(), part.hidden.device)
            self._observe_hidden(part.rows, part.hidden[lines], launched)

    def _observe_hidden(
        self, rows: list[int], hidden: torch.Tensor, launched: LaunchedStep
    ) -> None:
        """Let the source have the hidden states of the rows that sampled."""
        assert self._speculation is not None
        if launched.masks_not_ready:
            kept = [at for at, row in enumerate(rows) if row not in launched.masks_not_ready]
            rows, hidden = [rows[at] for at in kept], hidden[kept]
        self._speculation.observe_hidden(rows, hidden)

    @torch.inference_mode()
    def _verify_at_once(self, part: SamplingBatch, verification: Verification) -> bool:
        """Sample all places together, whose tokens depend on no others. Return whether it could be
        done."""
        rows = np.asarray(part.rows, np.int64)
        if not self._sampler.forgets(rows).all():
            return False
        if self._constraints and any(row in self._constraints for row in part.rows):
            return False
        lines, positions = verification.lines()
        try:
            output = self._sampler.sample(lines, positions, part.logits, None, part.picked)
        except torch.AcceleratorError:
            raise
        except FAILURES:
            return False  # one of them fails, and is found where each is sampled alone
        verification.take_all(*output.to_wire(list(range(len(lines)))))
        return True

    def _verify_by_place(self, verification: Verification, launched: LaunchedStep) -> None:
        """Sample rows place by place."""
        while (place := verification.next()) is not None:
            at = LaunchedStep(launched.step, launched.rows)
            self._sample_place(place, at, first=verification.place == 0)
            going_on = verification.take(at, self._constraints)
            if going_on and self._constrained is not None and self.constrained:
                self._constrained.go_on(going_on)

    # -- the forward pass -----------------------------------------------------------------------

    def _run_together(
        self, runs: list[Run], launched: LaunchedStep, drafts: dict[int, list[int]]
    ) -> None:
        """Run a batch; where it fails as a whole, run each row alone, to find the one that fails.

        So each has a second try, for what was missing, such as memory, may be there by then.
        Raises RowsLost where all of several fail again, as that is for no row to answer for.
        """
        try:
            self._run(runs, launched, drafts)
            return
        except torch.AcceleratorError:
            raise  # the device itself is lost, and every row with it
        except FAILURES:
            pass
        failed: list[RowError] = []
        for run in runs:
            try:
                self._run([run], launched, drafts)
            except torch.AcceleratorError:
                raise
            except FAILURES as error:
                failed.append(RowError(run.row, _message(error)))
        self._blame(failed, len(runs), launched)

    def _blame(self, failed: list[RowError], n_tried: int, launched: LaunchedStep) -> None:
        """Report rows that failed alone, of so many that were tried."""
        if len(failed) == n_tried > 1:
            raise RowsLost(f"all {n_tried} rows of step {launched.step} fail: {failed[0].message}")
        for error in failed:
            self._table[error.row].failed = True
        launched.errors += failed

    @torch.inference_mode()
    def _run(self, runs: list[Run], launched: LaunchedStep, drafts: dict[int, list[int]]) -> None:
        began = self._mark()
        table, device = self._table, self._table.last_tokens.device
        decodes = Decodes.of(
            table,
            [run.row for run in runs if not table[run.row].prefilling],
            drafts,
        )
        chunks = [run for run in runs if table[run.row].prefilling]
        hidden = self._speculation is not None and self._speculation.wants_hidden
        images = self._images
        plain = images is None or not images.touches(decodes.sampling, [run.row for run in chunks])
        if not chunks and not hidden and plain and self._replay(decodes, launched):
            launched.forwards.append((began, self._mark()))
            return

        ids: list[NDArray[np.int64]] = []
        slots = [decodes.slots]
        places: list[NDArray[np.int64]] = []
        prefills = []
        ends: list[int] = []
        sampling = list(decodes.sampling)
        prompt_chunks: list[tuple[Run, int]] = []
        n_decode = start = len(decodes.rows)
        for run in chunks:
            row = table[run.row]
            n = row.n_known(run.n)
            end = row.n_computed + n
            ids.append(row.tokens[row.n_computed : end])
            where = np.arange(row.n_computed, end)
            places.append(where)
            slots.append(table.slots(np.asarray(run.row), where))
            blocks = torch.from_numpy(table.block_tables[run.row, : row.n_blocks])
            spans = row.spans_within(row.n_computed, end)
            prefills.append(Prefill(start, n, end, blocks, spans))
            if row.prompt_logprobs and row.n_computed < row.n_prompt - 1:
                prompt_chunks.append((run, start))
            start += n
            if end == len(row.tokens):
                sampling.append(run.row)
                ends.append(start - 1)

        input_ids = table.last_tokens.new_empty(start)
        if n_decode:
            input_ids[:n_decode] = table.last_tokens[send(decodes.inputs, device)]
        if ids:
            input_ids[n_decode:] = send(np.concatenate(ids), device)
        context = AttentionContext(
            cache=self._cache,
            slot_mapping=torch.from_numpy(np.concatenate(slots)),
            n_decode=n_decode,
            decode_block_tables=self._decode_tables(decodes),
            decode_lengths=torch.from_numpy((decodes.positions + 1).astype(np.int32)),
            prefills=prefills,
        )
        # Places of drafts come after the first places of all rows, see `Verification`.
        n_first = len(decodes.sampling)
        order = decodes.by_place
        sampled_at = np.concatenate([order[:n_first], np.asarray(ends, np.int64), order[n_first:]])
        prompt_at = [
            i for run, at in prompt_chunks for i in range(at, at + table[run.row].n_known(run.n))
        ]
        wanted = np.concatenate([sampled_at, np.asarray(prompt_at, np.int64)])
        if self._constraints:
            self._constraints.go()
        positions, inserted, cross = np.concatenate([decodes.positions, *places]), None, []
        if images is not None and not plain:
            parts = [
                Part(run.row, chunk.start, chunk.n, chunk.length - chunk.n)
                for run, chunk in zip(chunks, prefills, strict=True)
            ]
            positions = images.positions(decodes, parts, places)
            n_before = images.n_encoded
            inserted = images.inserted(parts)
            if inserted is not None:
                # A placeholder may be beyond the tokens that have an embedding.
                input_ids.index_fill_(0, inserted.at, 0)
            cross = images.cross(decodes, parts)
            launched.n_encoded += images.n_encoded - n_before
            encoded = self._mark()
            launched.encodings.append((began, encoded))
            began = encoded
        batch = ForwardBatch(
            input_ids,
            send(positions, device),
            send(wanted, device),
            context,
            inserted=inserted,
            cross=cross,
            hidden=hidden,
        )
        output = self._model.forward(batch)
        logits = output.logits
        forwarded = self._mark()
        launched.prompt_logprobs += self._prompt_logprobs(prompt_chunks, logits[len(sampled_at) :])
        if sampling:
            n = len(sampled_at)
            free: list[NDArray[np.int32] | None] = [None] * len(sampling)
            states = None if output.hidden_states is None else output.hidden_states[:n]
            launched.to_sample.append(
                SamplingBatch(sampling, logits[:n], free, drafts=decodes.drafts, hidden=states)
            )
        for row_number in decodes.sampling:
            table[row_number].n_computed += 1
        for run in chunks:
            table[run.row].n_computed += table[run.row].n_known(run.n)
        launched.forwards.append((began, forwarded))
        launched.samplings.append((forwarded, self._mark()))

    def _replay(self, decodes: Decodes, launched: LaunchedStep) -> bool:
        """Compute and sample decode rows by a graph, if one takes them."""
        if self._graphs is None:
            return False
        decodes = decodes.in_order_of_places()
        n = len(decodes.sampling)
        # Rows with a grammar are sampled once their masks are ready, and those with drafts store
        # the last token that was accepted.
        stored = self._sampler.takes(decodes.rows)
        stored[n:] = False
        stored[: len(decodes.drafts)] = False
        if self._constraints:
            stored[:n] &= [row not in self._constraints for row in decodes.sampling]
        sampling = self._sampler.numbers(decodes.rows, decodes.positions + 1)
        if self._constraints:
            self._constraints.go()
        done = self._graphs.run(decodes, stored, sampling)
        if done is None:
            return False
        free: list[NDArray[np.int32] | None] = [None] * n
        launched.to_sample.append(
            SamplingBatch(
                decodes.sampling, done[0], free, done[1], bool(stored.all()), decodes.drafts
            )
        )
        for row in decodes.sampling:
            self._table[row].n_computed += 1
        return True

    def _sample_place(
        self, part: SamplingBatch, launched: LaunchedStep, *, first: bool = True
    ) -> None:
        """Sample rows of different numbers. See `ConstrainedRows.masked` for `first`."""
        if self._constrained is not None and self.constrained:
            part = self._constrained.masked(part, launched, first=first)
        if part.rows:
            self._sample_together(part, launched)

    def _sample_together(self, part: SamplingBatch, launched: LaunchedStep) -> None:
        """Sample a batch; where that fails as a whole, each row alone. Raises RowsLost, as
        `_run_together` does."""
        try:
            output = self._sample(part)
        except torch.AcceleratorError:
            raise
        except FAILURES:
            failed: list[RowError] = []
            for place, row in enumerate(part.rows):
                alone = part.pick([place])
                try:
                    output = self._sample(alone)
                except torch.AcceleratorError:
                    raise
                except FAILURES as error:
                    failed.append(RowError(row, _message(error)))
                else:
                    self._take(alone, output, launched)
            self._blame(failed, len(part.rows), launched)
        else:
            self._take(part, output, launched)

    @torch.inference_mode()
    def _sample(self, part: SamplingBatch) -> SamplerOutput:
        masks = [(line, mask) for line, mask in enumerate(part.masks) if mask is not None]
        allowed: Allowed | None = None
        if masks:
            lines, bits = zip(*masks, strict=True)
            allowed = Allowed(np.asarray(lines, np.int64), np.stack(bits))
        lengths = [self._table[row].length for row in part.rows]
        return self._sampler.sample(part.rows, lengths, part.logits, allowed, part.picked)

    @torch.inference_mode()
    def _take(self, part: SamplingBatch, output: SamplerOutput, launched: LaunchedStep) -> None:
        """Take what was sampled, which cannot be sampled again. Raises RowsLost."""
        table, rows = self._table, part.rows
        try:
            if not part.stored or any(mask is not None for mask in part.masks):
                at = send(np.asarray(rows), table.last_tokens.device)
                table.last_tokens[at] = output.tokens
            launched.outputs.append((rows, output.fetch()))
        except torch.AcceleratorError:
            raise
        except FAILURES as error:
            raise RowsLost(f"sampled tokens were lost: {_message(error)}") from error
        for row in rows:
            table[row].length += 1
            if row in launched.jump_forward_tokens:
                table[row].extend(launched.jump_forward_tokens[row])

    def _decode_tables(self, decodes: Decodes) -> torch.Tensor:
        table = self._table
        longest = max((table[row].n_blocks for row in decodes.sampling), default=0)
        return torch.from_numpy(np.ascontiguousarray(table.block_tables[decodes.rows, :longest]))

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
            n_known = row.n_known(run.n)
            n = min(n_known, row.n_prompt - first)
            following = send(row.tokens[first : first + n], logits.device)
            parts = []
            for begin in range(0, n, PROMPT_LOGPROBS_AT_ONCE):
                end = min(n, begin + PROMPT_LOGPROBS_AT_ONCE)
                scores = logits[offset + begin : offset + end].float().log_softmax(-1)
                # A placeholder of an image may be beyond what a model can emit.
                next_ones = following[begin:end, None]
                chosen = scores.gather(1, next_ones.clamp(max=scores.shape[1] - 1))
                chosen = chosen.masked_fill(next_ones >= scores.shape[1], float("-inf"))
                part = [chosen[:, 0], (scores >= chosen).sum(1)]
                if row.prompt_top_n:
                    best = scores.topk(min(row.prompt_top_n, scores.shape[1]))
                    part += [best.indices, best.values]
                parts.append(Fetched(part))
            found.append(FetchedPromptLogprobs(run.row, first, parts))
            offset += n_known
        return found

    def _mark(self) -> Mark:
        return Mark(self._table.last_tokens.device)


def _message(error: BaseException) -> str:
    return str(error) or type(error).__name__
