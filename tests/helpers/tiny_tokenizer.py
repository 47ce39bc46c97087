"""A byte-level tokenizer of some three hundred tokens, learned from a few lines."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = 0
LINES = (
    '{"name": "Ann", "age": 31, "friends": []}',
    '[true, false, null, 12.5, "text and more text"]',
    "the quick brown fox jumps over the lazy dog",
    "abcabcd </t><12> 가나다라",
)


def save_tiny_tokenizer(folder: Path, *more_lines: str) -> tuple[Path, int]:
    """Write tokenizer.json into the folder. Returns it, and the number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((*LINES * 4, *more_lines * 100), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, tokenizer.get_vocab_size()


def tiny_marks() -> Tokenizer:
    """One token a byte, and the special tokens `<s>`, `</s>` and `<end>` behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<end>"])
    return tokenizer
