"""The state of one row in its grammar. All of this runs off the worker's loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tgi_async.wire.messages import Constraint
from workers.constraints.expressions import ENDLESS
from workers.constraints.foresight import Foresight, Mask
from workers.constraints.nodes import Expression
from workers.constraints.vocabulary import Vocabulary
from workers.grammar.engine import Matcher

LEAST_GROWTH = 4
"""Tokens that one token may add to a completion, whatever the grammar: the digits that an escaped
character still lacks."""
UNFOUND = 4
"""Tokens after which a search for a completion that failed is repeated."""
MOST_UNFOUND = 8
"""How often such a search is repeated."""


class Progress:
    """A row's state in its grammar, and its mask.

    After `begin` and every `advance`, `mask` says which token may come next; where only one may and
    it is known what follows it, `jump_forward_tokens` holds them all. Both raise GrammarError.
    """

    def __init__(self, constraint: Constraint, jump_forward: bool, mask: NDArray[np.int32]) -> None:
        """Start a row. `mask` (int32 [words]) is its own. With `jump_forward` it takes all forced
        tokens at once; without, it wants logits at each."""
        self.mask = mask
        self.jump_forward_tokens: list[int] = []
        self._constraint = constraint
        self._jump_forward = jump_forward
        self._left = constraint.max_new_tokens
        """Tokens that may still be generated."""
        self._unchecked = 0
        """Tokens for which completion in time is certain."""
        self._completes = True
        """Whether the text can be completed at all; once it cannot, no search is made."""
        self._way: list[int] = []
        """The rest of the completion that has been begun."""
        self._keeps_whole = False
        """Whether the text is complete, must stay so, and can go on nevertheless."""
        self._found = False
        """Whether a completion was ever found."""
        self._n_unfound = 0
        self._foresight: Foresight | None = None
        self._node: Expression
        """What may follow, where there is foresight."""
        self._most = ENDLESS
        """Tokens with which the text can be completed wherever it goes."""

    def checks_after(self, n_tokens: int) -> bool:
        """Return whether `advance` by so many tokens will search a completion, which takes
        longer."""
        if self._foresight is not None:
            return False
        return self._completes and not self._way and self._unchecked <= n_tokens

    def begin(self, vocabulary: Vocabulary, output: list[int]) -> None:
        """Build the matcher, and advance it over what was generated before."""
        self._vocabulary = vocabulary
        compiled = vocabulary.compiled(self._constraint.grammar)
        self._matcher: Matcher = compiled.matcher()
        self._compiled = compiled
        self._hints = compiled.hints
        self._foresight = compiled.foresight
        if self._foresight is not None:
            self._node = self._foresight.start
            self._completes = self._foresight.fits_from_start(self._left)
            if output:
                self.advance(output)
            else:
                self._settle()
            return
        way = self._due(compiled.shortest(self._left, self._left - self._growth - 1, self.mask))
        if output:
            self.advance(output)
        else:
            self._way = [] if way is None else way or vocabulary.end_ids
            self._settle()

    @property
    def _growth(self) -> int:
        return LEAST_GROWTH + self._compiled.growth

    def ends(self, token: int) -> bool:
        """Return whether a token ends the text."""
        return token in self._vocabulary.end_ids

    def allows(self, tokens: list[int]) -> int:
        """Return how many of these tokens the grammar allows, one after the other; more than it
        would where the text has to be completed soon. No thread may be at work on it."""
        word, bit = self.mask.view(np.uint32)[tokens[0] >> 5], tokens[0] & 31
        if not int(word) >> bit & 1:
            return 0
        return self._matcher.allows(tokens)

    def advance(self, tokens: list[int]) -> None:
        """Accept sampled or forced tokens."""
        if tokens[-1] in self._vocabulary.end_ids:
            self.jump_forward_tokens = []
            return  # the router ends the request
        self._matcher.advance(tokens)
        self._left -= len(tokens)
        self._unchecked -= len(tokens)
        self._way = self._way[len(tokens) :] if self._way[: len(tokens)] == tokens else []
        if self._foresight is not None:
            after = self._foresight.after(self._node, tokens)
            if after is None:
                self._foresight = None  # from here on, a completion is searched
                self._way, self._unchecked = [], 0
            else:
                self._node = after
        self._settle()

    def _settle(self) -> None:
        """Compute the mask and the forced tokens."""
        self.jump_forward_tokens = []
        if self._left <= 0:
            return
        if self._matcher.ended:
            self._force(self._vocabulary.end_ids)
            return
        if self._foresight is not None:
            self._look_ahead(self._foresight)
            return
        if not self._way and self._completes and self._unchecked <= 0:
            way = self._due(self._shortest())
            self._way = [] if way is None else way or self._vocabulary.end_ids
        if self._way:
            self._force(self._way)
            return
        forced = self._matcher.jump_forward_tokens()
        if forced:
            self._force(forced)
        else:
            self._matcher.fill(self.mask)
            if self._keeps_whole:
                self._vocabulary.completer.keep_whole(self.mask, self._hints)

    def _look_ahead(self, foresight: Foresight) -> None:
        """Compute the mask of tokens that leave room for a completion."""
        known = foresight.known_mask(self._node)
        forced = [] if known is not None else self._matcher.jump_forward_tokens()
        taken = forced[: self._left if self._jump_forward else 1]
        if self._completes:
            least_left = self._left - max(1, len(taken))
            if self._most >= least_left:
                self._most = foresight.most(self._node)
            if self._most >= least_left:
                self._keep_room(foresight, forced, taken, known)
                return
        if forced:
            self._force(forced)
        else:
            self._fill(foresight, forced, known)

    def _fill(self, foresight: Foresight, forced: list[int], known: Mask | None) -> None:
        if known is not None:
            np.copyto(self.mask, known)
        elif forced:
            self._matcher.fill(self.mask)
        else:
            foresight.fill(self._node, self._matcher, self.mask)

    def _keep_room(
        self, foresight: Foresight, forced: list[int], taken: list[int], known: Mask | None
    ) -> None:
        """Compute the mask where some tokens leave no room for a completion.

        The text fits: after each token that is left in the mask it does so again, and one is left.
        """
        room = self._left
        if not self._node.nullable and foresight.fits(self._node, room - 1):
            room -= 1  # for the end-of-text token: without it, the text counts as cut
        if forced:
            after = foresight.after(self._node, taken)
            if after is not None and foresight.fits(after, room - len(taken)):
                self._force(forced)
                return
        begun = self._way if len(self._way) <= room else []
        if due := foresight.due(self._node, room, begun):
            self._way = due
            self._force(due)
            return
        self._fill(foresight, forced, known)
        way = foresight.narrow(self._node, room, self.mask, begun)
        if way is None:
            self._foresight = None
            self._way, self._unchecked = [], 0
            self._settle()
        else:
            self._way = way

    def _force(self, tokens: list[int]) -> None:
        ends = tokens[0] in self._vocabulary.end_ids
        self.jump_forward_tokens = tokens[: self._left if self._jump_forward and not ends else 1]
        self.mask.fill(0)
        self.mask.view(np.uint32)[self.jump_forward_tokens[0] >> 5] = 1 << (
            self.jump_forward_tokens[0] & 31
        )
        if self._jump_forward and not ends and len(self.jump_forward_tokens) < self._left:
            after = self._matcher.copy()
            after.advance(self.jump_forward_tokens)
            if after.ended:
                self.jump_forward_tokens = self.jump_forward_tokens + self._vocabulary.end_ids[:1]

    def _shortest(self) -> list[int] | None:
        completer = self._vocabulary.completer
        enough = self._left - self._growth - 1
        return completer.shortest(self._matcher, self._left, self.mask, self._hints, enough)

    def _due(self, way: list[int] | None) -> list[int] | None:
        """Return a completion, if it must begin now as nothing else fits.

        It is while its tokens, and those that the next token might add, just fit. Where there is
        more room, it takes some tokens to use it up, and nothing is looked at meanwhile.
        """
        if way is None:
            # If one was found before, the next tokens may lead to where it is found again.
            self._n_unfound += 1
            self._completes = self._found and self._n_unfound < MOST_UNFOUND
            self._unchecked = UNFOUND
            return None
        self._found = True
        self._keeps_whole = False
        spare = self._left - len(way) - self._growth
        self._unchecked = max(1, spare // (self._growth + 1))
        if spare > 0:
            return None
        completer = self._vocabulary.completer
        self._keeps_whole = not way and completer.may_go_on(self._matcher, self.mask, self._hints)
        return None if self._keeps_whole else way
