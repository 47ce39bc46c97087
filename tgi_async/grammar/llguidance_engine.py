"""llguidance: https://github.com/guidance-ai/llguidance"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.engine import GrammarError
from tgi_async.grammar.grammar import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""One way to write a value: the rest of a text is then forced more often, and is not generated."""


class LlguidanceEngine:
    """See `engine.Engine`."""

    def __init__(self, tokenizer: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        """`tokenizer` is a tokenizer.json, `vocab_size` that of the logits."""
        self._tokenizer = LLTokenizer(
            tokenizer.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=list(end_ids)
        )
        self._limits = LLParserLimits(verbose_errors=False)

    def matcher(self, grammar: Grammar) -> LlguidanceMatcher:
        """See `engine.Engine`."""
        compiled = LLMatcher(self._tokenizer, lark_of(grammar), log_level=0, limits=self._limits)
        if compiled.is_error():
            raise GrammarError(compiled.get_error())
        return LlguidanceMatcher(compiled)


class LlguidanceMatcher:
    """See `engine.Matcher`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fill(self, mask: NDArray[np.int32]) -> None:
        """See `engine.Matcher`. The interpreter's lock is let go meanwhile."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def advance(self, tokens: Sequence[int]) -> None:
        """See `engine.Matcher`."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def forced(self) -> list[int]:
        """See `engine.Matcher`."""
        forced = self._matcher.compute_ff_tokens()
        self._check()
        return forced

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
        return LlguidanceMatcher(self._matcher.deep_copy())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())


def lark_of(grammar: Grammar) -> str:
    """The grammar in llguidance's words: its dialect of Lark, or for a lone value its JSON."""
    if isinstance(grammar, terms.Json):
        return str(LLMatcher.grammar_from_json_schema(json.dumps(grammar.schema), JSON_STYLE))
    if isinstance(grammar, terms.Regex):
        return str(LLMatcher.grammar_from_regex(grammar.pattern))
    raise GrammarError(f"{type(grammar).__name__} is not built")
