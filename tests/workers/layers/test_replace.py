"""Which layers of a model are ours, and that they give what transformers' give."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families.cases import CASES, config_of
from tests.helpers.our_layers import replaced
from workers.layers.embedding import Embedding
from workers.layers.experts import StackedExperts
from workers.layers.replace import Replacements

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "xglm"])
@torch.inference_mode()
def test_an_embedding_has_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    """Some families multiply it with a tensor of its dtype, some with a number."""
    model = AutoModelForCausalLM.from_config(config_of(CASES[kind]), dtype=dtype).eval()
    theirs = copy.deepcopy(model.get_input_embeddings())
    ours = replaced(model).get_input_embeddings()
    assert isinstance(ours, Embedding)
    ids = torch.arange(90).view(2, 45)
    assert torch.equal(ours(ids), theirs(ids))


@torch.inference_mode()
def test_experts_have_the_same_bits() -> None:
    model = AutoModelForCausalLM.from_config(config_of(CASES["mixtral"])).eval()
    theirs = copy.deepcopy(model.model.layers[1].mlp)
    ours = replaced(model).model.layers[1].mlp
    assert isinstance(ours.experts, StackedExperts)
    x = torch.randn(1, 7, model.config.hidden_size)
    assert torch.equal(ours(x), theirs(x))


def test_an_embedding_that_other_code_reads_stays() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(CASES["gemma4_text"]))
    assert not [x for x in Replacements(model, CPU).modules.values() if isinstance(x, Embedding)]


def test_a_model_is_as_it_was_until_they_are_put() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(CASES["llama"]))
    before = list(model.modules())
    found = Replacements(model, CPU)
    assert list(model.modules()) == before
    found.put()
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    assert linear == []
