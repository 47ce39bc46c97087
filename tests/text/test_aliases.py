"""Names of tokens that a user types are text."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from tgi_async.errors import StartError
from tgi_async.text.aliases import Aliases
from tgi_async.text.tokenizer import Tokenizer

IMAGE = "<image>"
NAMES = (IMAGE, "<|image_pad|>", "<row_1_col_1>")
TYPED = f"Is {IMAGE}a tag?  Or <|image_pad|>, {IMAGE}{IMAGE}<row_1_col_1>"


def byte_level() -> tokenizers.Tokenizer:
    """One token a byte, and some pairs; one merge makes what is also an added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, "ag", "ge", "<i", "ma", "<ima", "<image", IMAGE]
    merges = [("a", "g"), ("g", "e"), ("<", "i"), ("m", "a"), ("<i", "ma"), ("<ima", "ge")]
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab={entry: id for id, entry in enumerate(entries)},
            merges=[*merges, ("<image", ">")],
        )
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def of_gpt2() -> tokenizers.Tokenizer:
    inner = byte_level()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return inner


def of_llama(scheme: str) -> tokenizers.Tokenizer:
    """As sentencepiece does, with a mark in the place of each space, and one before the text."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    entries = ["<unk>", *bytes_, "▁", *"<image>tOrIsxf?,|_pd", "▁a", "ag", "▁Or", IMAGE]
    vocabulary = {entry: id for id, entry in enumerate(dict.fromkeys(entries))}
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[("▁", "a"), ("a", "g")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


def of_legacy_llama() -> tokenizers.Tokenizer:
    """With the marks in a normalizer, as older files have them."""
    inner = of_llama("never")
    inner.pre_tokenizer = None
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return inner


def of_t5() -> tokenizers.Tokenizer:
    """A unigram model, whose best pieces are the names themselves."""
    letters = ["▁", *"<image>tagOrIs?,|_pdrowcl1", IMAGE, "<|image_pad|>"]
    pieces = [("<unk>", 0.0), *((piece, -1.0 - len(piece) % 3) for piece in dict.fromkeys(letters))]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    return inner


KINDS = {
    "ByteLevel": of_gpt2,
    "Metaspace, first": lambda: of_llama("first"),
    "Metaspace, always": lambda: of_llama("always"),
    "Prepend": of_legacy_llama,
    "Unigram": of_t5,
}


@pytest.fixture(params=KINDS)
def inner(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    made: tokenizers.Tokenizer = KINDS[request.param]()
    made.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", *NAMES)])
    return made


@pytest.fixture
def tokenizer(inner: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(inner, {"bos_token": "<s>"})


@pytest.fixture
def aliases(tokenizer: Tokenizer) -> Aliases:
    return Aliases(tokenizer, (*NAMES, "<not a token>"))


def test_what_is_typed_is_text_and_reads_as_it_was_typed(
    tokenizer: Tokenizer, aliases: Aliases
) -> None:
    ids = aliases.tokenizer.encode(TYPED, add_special_tokens=False)
    assert not tokenizer.special_ids.intersection(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == TYPED


def test_it_becomes_what_a_tokenizer_makes_of_it_that_has_no_such_tokens(
    inner: tokenizers.Tokenizer, aliases: Aliases
) -> None:
    """No piece ends or begins at the name: `ag` of `<imag` and of ` a tag` are one token each."""
    text = f"Is a tag {IMAGE[:-1]} a tag"
    assert aliases.tokenizer.encode(text, add_special_tokens=False) == (
        inner.encode(text, add_special_tokens=False).ids
    )


def test_what_the_server_writes_is_the_token(tokenizer: Tokenizer, aliases: Aliases) -> None:
    text = "Is a tag <image><image>? <s>Or <|image_pad|>"
    written = aliases.written(text)
    assert len(written) == len(text)
    assert aliases.tokenizer.encode(written, add_special_tokens=False) == tokenizer.encode(
        text, add_special_tokens=False
    )
    spans = aliases.tokenizer.spans(written, add_special_tokens=False)
    assert [text[one.start : one.stop] for one in spans if one.id == 0 + spans[-1].id] == [
        "<|image_pad|>"
    ]


def test_other_tokens_stay_what_they_are(tokenizer: Tokenizer, aliases: Aliases) -> None:
    ids = aliases.tokenizer.encode(f"<s>Is <s>{IMAGE}", add_special_tokens=False)
    assert ids.count(tokenizer.special_id("<s>") or 0) == 2


def test_nobody_can_guess_them(tokenizer: Tokenizer, aliases: Aliases) -> None:
    assert Aliases(tokenizer, NAMES).written(IMAGE) != aliases.written(IMAGE)


def test_without_names_nothing_changes() -> None:
    tokenizer = Tokenizer(of_gpt2())
    aliases = Aliases(tokenizer, ["<|image_pad|>"])
    assert aliases.written(TYPED) == TYPED
    assert aliases.tokenizer.encode(TYPED) == tokenizer.encode(TYPED)


def test_a_tokenizer_that_makes_the_token_of_other_text_cannot_be_used() -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({IMAGE: 0, "a": 1}, unk_token=IMAGE))
    with pytest.raises(StartError, match="cannot tell the token <image> from a text"):
        Aliases(Tokenizer(inner), [IMAGE])
