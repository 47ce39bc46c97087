"""Every layout of a model folder that transformers opens is served, and says the same.

Each folder is made of weights, a tokenizer, a chat template and a place, each in one of many
layouts, and prepared as for serving. Token ids, decoded texts, special tokens, prompts of chats and
greedy texts are those of transformers for the same folder.
"""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.helpers.drive import Drive
from tests.helpers.loading import load
from tests.layouts import tokenizers, weights
from tests.layouts.places import MESSAGES, PLACES, TEMPLATES
from tgi_async.text.chat_files import read_templates
from tgi_async.text.chat_renderer import Renderer
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Sampling
from workers.models.eos import eos_token_ids
from workers.models.prepare import prepare

TEXTS = (
    "Hello world",
    "  Two  spaces \n\n and\ttabs ",
    "가나 é 🙂",
    "<s>user</s><|im_start|>x<|im_end|> <x>y<y> <end> <image>",
    "<|endoftext|>a<pad><start_of_turn>b",
    "",
)
NEW_TOKENS = 12
VOCABULARY = 420


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=7,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))


class Case:
    """A folder, what transformers makes of it as it was put together, and what is served of it."""

    def __init__(self, folder: Path, model: Any, layouts: tuple[str, str, str, str]) -> None:
        weight, tokenizer, template, place = layouts
        plain = folder / "m"
        plain.mkdir(parents=True)
        weights.LAYOUTS[weight](model, plain)
        tokenizers.LAYOUTS[tokenizer](plain)
        TEMPLATES[template](plain)
        self.opened = folder / "opened"
        shutil.copytree(plain, self.opened)
        self.folder = PLACES[place](plain)
        before = self._listing()
        self.served = Path(str(prepare(str(self.folder))["path"]))
        assert self._listing() == before, "the folder was written to"

    def _listing(self) -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in self.folder.rglob("*"))

    def check_text(self) -> None:
        theirs = AutoTokenizer.from_pretrained(self.opened)
        ours = Tokenizer.from_folder(self.served)
        for text, special in itertools.product(TEXTS, (True, False)):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                expected = theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
                assert ours.decode(ids, skip_special_tokens=skip) == expected, text
        assert ours.special_tokens == theirs.special_tokens_map
        templates = read_templates(self.served)
        assert bool(templates) == bool(theirs.chat_template)
        asked: list[Any] = [None, [{"type": "function", "function": {"name": "f"}}]]
        for tools in asked:
            if not templates:
                break
            prompt = theirs.apply_chat_template(
                MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True
            )
            renderer = Renderer(templates, ours.special_tokens)
            assert renderer.render(MESSAGES, tools=tools) == prompt

    def check_ends(self) -> None:
        theirs = AutoTokenizer.from_pretrained(self.opened).eos_token_id
        found = eos_token_ids(self.served, AutoConfig.from_pretrained(self.served))
        assert found == list(dict.fromkeys([7, *([] if theirs is None else [theirs])]))

    def check_model(self, reference: Path | None = None) -> None:
        """`reference` is a folder of the same weights, where transformers does not open this."""
        ids = AutoTokenizer.from_pretrained(self.opened).encode("Hello world, x + 1")
        theirs: Any = AutoModelForCausalLM.from_pretrained(
            reference or self.opened, dtype=torch.float32
        )
        expected = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )
        drive = Drive(load(self.served, torch.float32, torch.device("cpu")), None)  # type: ignore[arg-type]
        number = drive.submit(ids, NEW_TOKENS, None, Sampling(), stop_ids=())
        drive.run()
        assert drive.said[number] == expected[0, len(ids) :].tolist()


OPENED_HERE_ONLY = (
    "shards without an index",
    "shards beside a stale index",
    "files of any name",
    "a variant",
    "shards of a variant",
    "pickled shards without an index",
    "pickled beside an index of safetensors",
)
PLAIN = ("one file", "tokenizer.json", "no template", "a folder")


def cheap(layouts: dict[str, Any], chosen: tuple[str, ...]) -> list[Any]:
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.full) for name in layouts
    ]


@pytest.mark.parametrize("layout", cheap(tokenizers.LAYOUTS, tokenizers.CHEAP))
def test_the_tokens_of_a_tokenizer_are_those_of_transformers(
    tmp_path: Path, model: Any, layout: str
) -> None:
    case = Case(tmp_path, model, ("one file", layout, "chat_template.jinja", "a folder"))
    case.check_text()
    case.check_ends()


@pytest.mark.parametrize("layout", cheap(weights.LAYOUTS, weights.CHEAP))
def test_the_text_of_a_model_is_that_of_transformers(
    tmp_path: Path, model: Any, layout: str
) -> None:
    case = Case(tmp_path, model, (layout, *PLAIN[1:]))
    plain = None
    if layout in OPENED_HERE_ONLY:
        plain = tmp_path / "plain"
        model.save_pretrained(plain)
    case.check_model(plain)


@pytest.mark.full
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("place", PLACES)
def test_a_folder_may_lie_anywhere(tmp_path: Path, model: Any, place: str, template: str) -> None:
    case = Case(tmp_path, model, ("pickled shards", "marks in the map only", template, place))
    case.check_text()
    case.check_ends()
    case.check_model()


@pytest.mark.full
def test_layouts_together(tmp_path: Path, model: Any) -> None:
    choose = random.Random(5)
    opened = [name for name in weights.LAYOUTS if name not in OPENED_HERE_ONLY]
    for number in range(60):
        layouts = tuple(
            choose.choice(list(names)) for names in (opened, tokenizers.LAYOUTS, TEMPLATES, PLACES)
        )
        try:
            case = Case(tmp_path / str(number), model, layouts)  # type: ignore[arg-type]
            case.check_text()
            case.check_ends()
            case.check_model()
        except BaseException as error:
            error.add_note(f"layouts: {layouts}")
            raise
