"""xgrammar: https://github.com/mlc-ai/xgrammar. It comes as the extra `xgrammar`."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xgrammar
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tgi_async.grammar.grammar import Grammar
from workers.grammar.engine import GrammarError, Matcher
from workers.grammar.structural_tag import reason_of, structural_tag_of
from workers.grammar.unique import Tokens, UniqueMatcher, contexts

MAX_COMPILERS = 8
"""Each has a copy of the vocabulary."""

LEAST_BYTES = 100_000
"""Of a compiled grammar, besides what the package says."""


class XgrammarEngine:
    """See `engine.Engine`. Thread-safe."""

    def __init__(self, tokenizer: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        """`tokenizer` is a tokenizer.json, `vocab_size` that of the logits."""
        fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        found = xgrammar.TokenizerInfo.from_huggingface(
            fast, vocab_size=vocab_size, stop_token_ids=list(end_ids)
        )
        self._texts = list(found.decoded_vocab)
        self._vocab_type = found.vocab_type
        self._add_prefix_space = found.add_prefix_space
        self._decoded_vocab = found.decoded_vocab
        self._tokens: Tokens | None = None
        """Made for the first grammar that needs them."""
        self._end_ids = list(end_ids)
        self._special = {
            token.content: number
            for number, token in fast.added_tokens_decoder.items()
            if token.special
        }
        self._names = [""] * vocab_size
        for name, number in fast.get_vocab().items():
            if number < vocab_size:
                self._names[number] = name
        self._compilers: OrderedDict[frozenset[int], xgrammar.GrammarCompiler] = OrderedDict()
        """By the special tokens that a grammar names: those of one format of tools, or none."""
        self._lock = threading.Lock()
        self._ends = _mask(end_ids, vocab_size)
        self._every = _mask(range(vocab_size), vocab_size)

    def matcher(self, grammar: Grammar) -> Matcher:
        """See `engine.Engine`."""
        schemas = contexts(grammar)
        compiled = self._compiled(grammar)
        return UniqueMatcher(compiled, self._known_tokens(), schemas) if schemas else compiled

    def _known_tokens(self) -> Tokens:
        with self._lock:
            if self._tokens is None:
                texts = list(self._decoded_vocab)
                for name, id in self._special.items():
                    texts[id] = name.encode()
                self._tokens = Tokens(texts, set(self._special.values()))
            return self._tokens

    def _compiled(self, grammar: Grammar) -> XgrammarMatcher:
        used: set[int] = set()

        def token_id(name: str) -> int | None:
            found = self._special.get(name)
            if found is not None:
                used.add(found)
            return found

        tag = structural_tag_of(grammar, token_id)
        try:
            compiled = self._compiler(frozenset(used)).compile_structural_tag(json.dumps(tag))
            matcher = xgrammar.GrammarMatcher(compiled)
            size = LEAST_BYTES + compiled.memory_size_bytes
            return XgrammarMatcher(matcher, self._ends, self._every, size)
        except (RuntimeError, ValueError, TypeError) as error:
            raise GrammarError(reason_of(error)) from error

    def token_texts(self) -> list[bytes | None]:
        """See `engine.Engine`."""
        special = {*self._special.values(), *self._end_ids}
        return [None if one in special else text for one, text in enumerate(self._texts)]

    def _compiler(self, special: frozenset[int]) -> xgrammar.GrammarCompiler:
        """For grammars that name these special tokens.

        All others have no text here: a special token is no part of a value that has its name in it.
        """
        with self._lock:
            if special not in self._compilers:
                hidden = set(self._special.values()) - special
                info = xgrammar.TokenizerInfo(
                    ["" if id in hidden else name for id, name in enumerate(self._names)],
                    self._vocab_type,
                    vocab_size=len(self._names),
                    stop_token_ids=self._end_ids,
                    add_prefix_space=self._add_prefix_space,
                )
                # What is compiled is kept by the worker, which counts all of it.
                self._compilers[special] = xgrammar.GrammarCompiler(
                    info, max_threads=1, cache_enabled=False
                )
                if len(self._compilers) > MAX_COMPILERS:
                    self._compilers.popitem(last=False)
            self._compilers.move_to_end(special)
            return self._compilers[special]


class XgrammarMatcher:
    """See `engine.Matcher`."""

    def __init__(
        self,
        matcher: xgrammar.GrammarMatcher,
        ends: NDArray[np.int32],
        every: NDArray[np.int32],
        nbytes: int,
    ) -> None:
        """`ends` and `every` are the masks of the tokens that end a text, and of all."""
        self._matcher = matcher
        self._ends = ends
        self._every = every
        self.nbytes = nbytes
        """See `engine.Matcher`."""

    def fill(self, mask: NDArray[np.int32]) -> None:
        """See `engine.Matcher`."""
        if self._matcher.is_terminated():
            mask[:] = self._ends
        elif self._matcher.fill_next_token_bitmask(mask.reshape(1, -1)):
            mask &= self._every  # it may let in what is behind the last token
        else:
            mask[:] = self._every

    def advance(self, tokens: Sequence[int]) -> None:
        """See `engine.Matcher`."""
        for token in tokens:
            if not self._matcher.accept_token(token):
                raise GrammarError(f"token {token} is not allowed here")

    def forced(self) -> list[int]:
        """None: the engine knows the text only, not where its last token ends."""
        return []

    @property
    def complete(self) -> bool:
        """See `engine.Matcher`."""
        return bool(self._matcher.is_terminated() or self._matcher.is_completed())

    @property
    def ended(self) -> bool:
        """See `engine.Matcher`."""
        if not self.complete:
            return False
        mask = np.empty_like(self._ends)
        self.fill(mask)
        return bool(np.array_equal(mask, self._ends))

    def copy(self) -> XgrammarMatcher:
        """See `engine.Matcher`."""
        return XgrammarMatcher(self._matcher.fork(), self._ends, self._every, self.nbytes)


def _mask(ids: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    bits = np.zeros(32 * -(-vocab_size // 32), np.bool_)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)
