"""The engines of grammars by name, each imported only where it was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workers.grammar.engine import Engine


def engine(name: str, model_path: str | Path, vocab_size: int, end_ids: Sequence[int]) -> Engine:
    """The engine `name` (see `tgi_async.grammar.engines`) for the tokenizer of a model folder.

    `vocab_size` is that of the logits, which may be larger than the tokenizer's; `end_ids` are the
    tokens that end a text. Takes some 0.2 s, and the engine's import. Raises ImportError where the
    engine's package is not installed.
    """
    tokenizer = Path(model_path) / "tokenizer.json"
    if name == "llguidance":
        from workers.grammar.llguidance_engine import LlguidanceEngine

        return LlguidanceEngine(tokenizer, vocab_size, end_ids)
    if name == "xgrammar":
        from workers.grammar.xgrammar_engine import XgrammarEngine

        return XgrammarEngine(tokenizer, vocab_size, end_ids)
    raise ValueError(f"no engine is called {name!r}")
