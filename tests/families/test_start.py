"""What is found out about a model when it is loaded, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families.cases import CASES, Case, config_of, save
from tests.families.parity import CPU
from tests.helpers.loading import load
from tests.helpers.our_layers import replaced
from workers.errors import UnsupportedModel
from workers.models.layers import PackedForward, layers_of
from workers.models.rope import Scaling
from workers.models.transformers_path import TransformersModel


def built(kind: str, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_config(config_of(Case(kind, settings))).eval()


def test_a_state_besides_keys_and_values_is_named() -> None:
    model = built("lfm2", layer_types=["conv", "full_attention"] * 2)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.conv\.conv is a Conv1d"):
        layers_of(model)


def test_layers_that_do_not_attend_through_the_interface_are_counted() -> None:
    with pytest.raises(
        UnsupportedModel, match="4 layers, and attends with AttentionInterface in 0"
    ):
        layers_of(built("openai-gpt"))


def test_code_that_does_not_run_over_packed_tokens_is_quoted() -> None:
    model = built("llama")
    del model.model.layers[2].self_attn.o_proj
    with pytest.raises(
        UnsupportedModel, match=r"llama does not run with paged attention .* 'o_proj'"
    ):
        layers_of(model)


def test_logits_are_selected_where_a_model_does_not() -> None:
    model = built("llama")
    ids, wanted = torch.arange(5), torch.tensor([4, 1])
    whole = PackedForward(model)

    class Plain:
        """As older code is: whatever it does not know it takes, and does nothing with it."""

        config = model.config

        def forward(self, **given: Any) -> Any:
            return model(**{name: x for name, x in given.items() if name != "logits_to_keep"})

        __call__ = forward

    with torch.inference_mode():
        model.set_attn_implementation("eager")
        torch.testing.assert_close(
            PackedForward(Plain())(ids, ids, wanted), whole(ids, ids, wanted)
        )


def test_a_weight_that_other_code_reads_stays() -> None:
    model = built("hunyuan_v1_moe", head_dim=16, moe_topk=2)
    named = replaced(model).named_modules()
    kept = {name for name, one in named if isinstance(one, torch.nn.Linear)}
    assert kept == {f"model.layers.{at}.mlp.gate.wg" for at in range(4)}


def test_the_cache_is_as_wide_as_the_widest_layer(tmp_path: Path) -> None:
    model = load(save(CASES["gemma4_text"], tmp_path), torch.float32, CPU)
    assert isinstance(model, TransformersModel)
    assert {layer.attention.key_dim for layer in model.spec.layers} == {32, 64}
    assert model.spec.cache_group.spec.head_dim == 64


@pytest.mark.parametrize("implementation", ["fused", "transformers"])
@pytest.mark.parametrize(
    ("scaling", "asked", "longest", "said"),
    [
        (Scaling("linear", 3.0), 0, 768, None),
        (Scaling("dynamic", 3.0), 0, 768, "texts of every length"),
        (Scaling("dynamic", 3.0), 200, 256, "texts of up to 256 tokens"),
        (None, 300, 256, None),
    ],
)
def test_a_rope_scaling_that_is_asked_for_lengthens_texts(
    tmp_path: Path,
    implementation: str,
    scaling: Scaling | None,
    asked: int,
    longest: int,
    said: str | None,
) -> None:
    folder = save(CASES["llama"], tmp_path)
    model = load(
        folder,
        torch.float32,
        CPU,
        implementation=implementation,
        scaling=scaling,
        max_total_tokens=asked,
    )
    assert model.spec.max_total_tokens == longest
    notes = [note for note in model.notes if "rotary embedding" in note]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_a_model_without_a_rotary_embedding_takes_no_scaling(tmp_path: Path) -> None:
    folder = save(CASES["gpt2"], tmp_path)
    with pytest.raises(ValueError, match="which gpt2 does not have; leave it out"):
        load(folder, torch.float32, CPU, scaling=Scaling("linear", 2.0))


def test_what_only_a_config_names_is_refused_before_weights(tmp_path: Path) -> None:
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)  # there are no weights
    with pytest.raises(UnsupportedModel, match="mamba keeps a state of its own"):
        load(tmp_path, torch.float32, CPU)
