"""What grammars need of a tokenizer, and its engine. Made once, off the step."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from workers.constraints.completion import Completer, Hints, Mask
from workers.constraints.expressions import ENDLESS
from workers.constraints.foresight import Foresight
from workers.constraints.growth import openings
from workers.constraints.nodes import TooComplex
from workers.constraints.tokens import TokenTable
from workers.grammar.engine import GrammarError, Matcher
from workers.grammar.llguidance_engine import LlguidanceEngine

OPENERS = frozenset("([{<")
MOST_LITERALS = 64
"""Most literals of a client's grammar that are tried in a completion."""
MOST_KEPT = 256
"""Most grammars whose compiled form is kept for later rows."""
MOST_BYTES = 256 << 20
"""Most bytes of all of them. Rows keep what they use until they end."""
MOST_BYTES_EACH = 32 << 20
"""A compiled grammar that has grown beyond this is compiled again for the next row."""
MOST_WAYS = 64
"""Most completions of one grammar that are kept, by their token limits."""


class Compiled:
    """A compiled grammar, shared by the rows that have it. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, encoded: str) -> None:
        """Raises GrammarError."""
        grammar = terms.decode(encoded)
        self._completer = vocabulary.completer
        self._matcher = vocabulary.engine.matcher(grammar)
        self._vocabulary = vocabulary
        self._grammar = grammar
        ends = {tag.trigger[-1:] for tag in tags(grammar)}
        self.hints = Hints(
            endings=[vocabulary.tokens(text) for text in untils(grammar)],
            literals=[vocabulary.tokens(text) for text in literals(grammar)],
            # A trigger is complete only with its last letter.
            avoided=self._completer.with_letters(ends) if ends else None,
        )
        self._ways: dict[int, list[int] | None] = {}
        """The completions that were found, by how many tokens they were allowed."""
        self._lock = threading.Lock()
        self.foresight = self._foresight(vocabulary, grammar)
        self._size = 8 * len(encoded)
        """Estimated bytes of the encoded grammar, of which there are several copies."""
        self._first_nbytes = self.nbytes

    def _foresight(self, vocabulary: Vocabulary, grammar: Grammar) -> Foresight | None:
        """Return the foresight; None where the expression of the grammar is not known, or is not
        the engine's."""
        try:
            foresight = Foresight(vocabulary.token_table, grammar, vocabulary.special_ids.get)
        except TooComplex:
            return None
        if foresight.least >= ENDLESS:
            return None
        way = foresight.way(foresight.start)
        try:
            matcher = self.matcher()
            if way:
                matcher.advance(way)
            return foresight if way is None or matcher.complete else None
        except GrammarError:
            return None

    @cached_property
    def growth(self) -> int:
        """Tokens that one token may add to a completion."""
        owed = openings(self._grammar)
        return max((len(self._vocabulary.tokens(text)) for text in owed), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        ways = sum(8 * len(way) for way in list(self._ways.values()) if way)
        foresight = 0 if self.foresight is None else self.foresight.nbytes
        return self._size + self._matcher.nbytes + foresight + ways

    @property
    def is_crowded(self) -> bool:
        """Whether it has grown so much that new texts should begin with a new one."""
        crowded = self.foresight is not None and self.foresight.is_crowded
        return crowded or self.nbytes > self._first_nbytes + MOST_BYTES_EACH

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of a text."""
        with self._lock:
            return self._matcher.copy()

    def shortest(self, most: int, enough: int, mask: Mask) -> list[int] | None:
        """Return `Completer.shortest` from the beginning. `enough` follows from `most`."""
        with self._lock:
            if most not in self._ways:
                if len(self._ways) >= MOST_WAYS:
                    self._ways.clear()
                self._ways[most] = self._completer.shortest(
                    self._matcher, most, mask, self.hints, enough
                )
            return self._ways[most]


class Vocabulary:
    """The grammar engine of a worker's model, and what completions need."""

    def __init__(self, model_path: Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        """Make the engine. Raises GrammarError where it does not support this tokenizer."""
        file = model_path / "tokenizer.json"
        if not file.exists():
            raise GrammarError("grammars need a tokenizer.json, and the model has none")
        if not end_ids:
            raise GrammarError("grammars need an end-of-text token, and the model names none")
        self.end_ids = list(end_ids)
        self._tokenizer = Tokenizer.from_file(str(file))
        special = {
            i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        n = min(self._tokenizer.get_vocab_size(), vocab_size)
        texts = self._tokenizer.decode_batch([[i] for i in range(n)], skip_special_tokens=False)
        usable = ["" if i in special or "\ufffd" in text else text for i, text in enumerate(texts)]
        self.completer = Completer(usable, end_ids)
        self.engine = LlguidanceEngine(file, vocab_size, end_ids)
        self.token_table = TokenTable(self._tokenizer, self.engine.token_texts, end_ids)
        self.special_ids = {
            token.content: i
            for i, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(self, encoded: str) -> Compiled:
        """Return the grammar, compiled now or recently. Thread-safe. Raises GrammarError."""
        with self._lock:
            known = self._compiled.get(encoded)
            if known is not None and not known.is_crowded:
                self._compiled.move_to_end(encoded)
                return known
        compiled = Compiled(self, encoded)
        with self._lock:
            self._compiled[encoded] = compiled
            self._compiled.move_to_end(encoded)
            self._drop()
        return compiled

    def _drop(self) -> None:
        """Drop the least recently used ones. They grow while used, so all are counted again."""
        left = MOST_BYTES
        for n, (encoded, one) in enumerate(reversed(list(self._compiled.items()))):
            left -= one.nbytes
            if n >= MOST_KEPT or (n and left < 0):
                del self._compiled[encoded]

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text within another one."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def untils(grammar: Grammar) -> Iterator[str]:
    """Return what ends the prose in a grammar."""
    return (part.until for part in parts(grammar) if isinstance(part, terms.Prose))


def literals(grammar: Grammar) -> list[str]:
    """Return texts of clients' grammars that end something, or lead to an end; the shortest
    first."""
    found = {
        text
        for part in parts(grammar)
        if isinstance(part, terms.ContextFree)
        for text in part.literals
        if not OPENERS.intersection(text)
    }
    found |= {tag.end for tag in tags(grammar) if tag.end}
    return sorted(found, key=lambda text: (len(text), text))[:MOST_LITERALS]


def tags(grammar: Grammar) -> Iterator[terms.Tag]:
    """Return the tags of a grammar."""
    for part in parts(grammar):
        if isinstance(part, terms.Tagged):
            yield from part.tags


def parts(grammar: Grammar) -> Iterator[Grammar]:
    """Yield a grammar and all its parts."""
    yield grammar
    inner: list[Grammar] = []
    match grammar:
        case terms.Sequence(inner) | terms.Choice(inner):
            pass
        case terms.Repeat(part):
            inner = [part]
        case terms.Tagged(tags):
            inner = [tag.content for tag in tags]
    for part in inner:
        yield from parts(part)
