"""A grammar engine on llguidance: https://github.com/guidance-ai/llguidance"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from tgi_async.grammar.grammar import Grammar
from workers.grammar.comparing_schemas import contexts
from workers.grammar.engine import GrammarError, Matcher
from workers.grammar.lark import lark_of
from workers.grammar.token_index import TokenIndex
from workers.grammar.unique import UniqueMatcher

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # some 20 ms, once
    step_lexer_fuel=50_000,  # some 4 ms
    step_max_items=30_000,  # some 2 ms
    max_items_in_row=2_000,
    max_lexer_states=50_000,  # 1 to 2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Time limits of a mask and a build; a grammar that needs more is refused."""

_IN_JSON = r'[^"\\\x00-\x1F\x7F]'
SLICES = [
    "[a-z]{1,24}",
    "[a-z ]{1,24}",
    "[A-Za-z0-9 ]{1,24}",
    _IN_JSON + "{1,8}",
    _IN_JSON + "{1,15}",
    _IN_JSON + "{1,30}",
    _IN_JSON + "+",
    r"[^\n]{1,100}",
    "(?s:.){1,100}",
]
"""Regular expressions of free text: tokens that match one are allowed all at once where a text goes
on with any of them, so that the masks of free text need a look at few others only. Each costs some
time at every mask."""


class LlguidanceEngine:
    """A `GrammarEngine` on llguidance. Thread-safe."""

    def __init__(self, tokenizer: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        """Make an engine. `tokenizer` is a tokenizer.json, `vocab_size` that of the logits."""
        self._tokenizer = LLTokenizer(
            tokenizer.read_text(encoding="utf-8"),
            n_vocab=vocab_size,
            eos_token=list(end_ids),
            slices=SLICES,
        )

    def matcher(self, grammar: Grammar) -> Matcher:
        """See `engine.GrammarEngine`."""
        schemas = contexts(grammar)
        compiled = self._compiled(grammar)
        return UniqueMatcher(compiled, self._token_index, schemas) if schemas else compiled

    @cached_property
    def _token_index(self) -> TokenIndex:
        """Return the index, made for the first grammar that needs it."""
        return TokenIndex(self.token_texts)

    def _compiled(self, grammar: Grammar) -> LlguidanceMatcher:
        try:
            text = LLMatcher.grammar_from_lark(lark_of(grammar, self._special))
        except UnicodeEncodeError as error:
            raise GrammarError("half of a surrogate pair is no character") from error
        compiled = LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS)
        if compiled.is_error():
            raise GrammarError(reason_of(compiled.get_error()))
        return LlguidanceMatcher(compiled, _Shared(len(text)))

    @cached_property
    def token_texts(self) -> list[bytes | None]:
        """See `engine.GrammarEngine`."""
        known = self._tokenizer
        return [
            None if known.is_special_token(one) else known.decode_bytes([one])
            for one in range(known.vocab_size)
        ]

    def _special(self, token: str) -> int | None:
        ids = self._tokenizer.tokenize_str(token, parse_special=True)
        alone = len(ids) == 1 and self._tokenizer.is_special_token(ids[0])
        return ids[0] if alone else None


LEAST_BYTES = 100_000
CHARACTER_BYTES = 150
MASK_BYTES = 4_000
"""Estimated bytes of a compiled grammar for each character and each mask, which may leave new
states of the lexer. llguidance does not report its memory; these are above what was measured."""


class _Shared:
    """What a matcher and its copies share."""

    __slots__ = ("length", "n_masks")

    def __init__(self, length: int) -> None:
        self.length = length
        """Characters of the grammar."""
        self.n_masks = 0


class LlguidanceMatcher:
    """See `engine.Matcher`."""

    remembers = False

    def __init__(self, matcher: LLMatcher, shared: _Shared) -> None:
        self._matcher = matcher
        self._shared = shared

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write the mask, see `engine.Matcher`. Releases the GIL meanwhile."""
        self._shared.n_masks += 1
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def advance(self, tokens: Sequence[int]) -> None:
        """See `engine.Matcher`."""
        if not self._matcher.consume_tokens(list(tokens)):
            self._check()

    def allows(self, tokens: Sequence[int]) -> int:
        """See `engine.Matcher`."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def jump_forward_tokens(self) -> list[int]:
        """See `engine.Matcher`."""
        forced = self._matcher.compute_ff_tokens()
        self._check()
        return forced[:MOST_FORCED]

    @property
    def complete(self) -> bool:
        """See `engine.Matcher`."""
        return bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        """See `engine.Matcher`."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> LlguidanceMatcher:
        """See `engine.Matcher`."""
        return LlguidanceMatcher(self._matcher.deep_copy(), self._shared)

    @property
    def nbytes(self) -> int:
        """See `engine.Matcher`."""
        shared = self._shared
        return LEAST_BYTES + CHARACTER_BYTES * shared.length + MASK_BYTES * shared.n_masks

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(reason_of(self._matcher.get_error()))


_CARETS = re.compile(
    r"regex parse error:\n\s{4}(?P<text>.*)\n\s{4}(?P<marks>[ ^]*)\nerror: (?P<why>.*)"
)
_ANCHORS = {
    "WordUnicode": r"\b",
    "WordAscii": r"\b",
    "WordUnicodeNegate": r"\B",
    "WordAsciiNegate": r"\B",
    "Start": "^ after the beginning",
    "End": "$ before the end",
}
LONGEST_SHOWN = 40
"""Most characters of a regular expression in a message."""
MOST_FORCED = 256
"""Most jump-forward tokens at once: a step has room for few more."""
LONGEST_REASON = 200
"""Most characters of a message; a longer one shows too much of a grammar or of the parser's
state."""


def reason_of(error: str) -> str:
    """Return llguidance's message without the grammar and the state of its parser."""
    if found := _CARETS.search(error):
        marks = found["marks"]
        at = marks.find("^")
        what = found["text"][at : marks.rfind("^") + 1][:LONGEST_SHOWN]
        return f"{found['why']}, at {what!r} (character {at + 1})"
    if found := re.search(r"lookarounds not supported yet; (\w+)", error):
        return f"{_ANCHORS.get(found[1], found[1])} is not supported in a regular expression"
    first = error.strip().partition("\n")[0]
    return re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", first)[:LONGEST_REASON]
