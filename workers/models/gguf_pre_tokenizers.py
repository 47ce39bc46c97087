"""The pre-tokenizers that GGUF files name, and what else goes with each.

GGUF names the pre-tokenizer by a word that stands for code in llama.cpp; each word read here is
given as the pre-tokenizer of the `tokenizers` library that the original model has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"

_LLAMA3 = rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}|{_REST}"
_TEKKEN = rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_WITH_SLASH}"
_GPT4O = (
    rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """How text is cut before merges are applied."""

    regex: str | None = None
    """The pieces; those of GPT-2 if None."""
    digits: bool = False
    """Each digit is a piece of its own."""
    whole_words: bool = False
    """A piece that is a token as it stands is not put together from merges."""
    composed: bool = False
    """Text is brought into Unicode's composed form (NFC) first."""
    adds_bos: bool = False
    """Where the file does not say."""

    def pre_tokenizer(self) -> PreTokenizer:
        """The same for the library."""
        from tokenizers import Regex, pre_tokenizers

        steps: list[PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.regex is not None:
            steps.append(pre_tokenizers.Split(Regex(self.regex), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.regex is None))
        return pre_tokenizers.Sequence(steps)


_LLAMA_BPE = Splitting(_LLAMA3, whole_words=True, adds_bos=True)

SPLITTINGS: dict[str, Splitting] = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "llama-bpe": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "dbrx": Splitting(_LLAMA3),
    "smaug-bpe": Splitting(_LLAMA3),
    "qwen2": Splitting(_QWEN2, composed=True),
    "deepseek-r1-qwen": Splitting(_QWEN2, composed=True),
    "tekken": Splitting(_TEKKEN, whole_words=True, adds_bos=True),
    "gpt-4o": Splitting(_GPT4O),
}
