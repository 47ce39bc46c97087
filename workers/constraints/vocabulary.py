"""What grammars need to know of a tokenizer, and the engine for it. Made once, off the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from workers.constraints.completion import Completer
from workers.grammar import engines
from workers.grammar.engine import GrammarError


class Vocabulary:
    """The engine of a worker's model, and what completions are made of."""

    def __init__(
        self, engine: str, model_path: Path, vocab_size: int, end_ids: Sequence[int]
    ) -> None:
        """Raises GrammarError where no grammar can be followed with this tokenizer."""
        file = model_path / "tokenizer.json"
        if not file.exists():
            raise GrammarError("grammars need a tokenizer.json, and the model has none")
        if not end_ids:
            raise GrammarError("grammars need a token that ends a text, and the model names none")
        self.end_ids = list(end_ids)
        self._tokenizer = Tokenizer.from_file(str(file))
        special = {
            i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        n = min(self._tokenizer.get_vocab_size(), vocab_size)
        texts = self._tokenizer.decode_batch([[i] for i in range(n)], skip_special_tokens=False)
        usable = ["" if i in special or "\ufffd" in text else text for i, text in enumerate(texts)]
        self.completer = Completer(usable, end_ids)
        self.engine = engines.engine(engine, model_path, vocab_size, end_ids)

    def tokens(self, text: str) -> list[int]:
        """The ids of a text that does not begin one."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
