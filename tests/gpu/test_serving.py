"""Whole models with the attention of a GPU: a runner's steps, the worker, what they wait for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from tests.helpers.tiny_llama import VOCABULARY, save_tiny_llama
from tests.workers.test_runner import LONG, SHORT, Batch, greedy, tokens_of
from tests.workers.test_worker import run, start, steps
from tgi_async.wire.messages import Admit, Sampling, Stop

pytest.importorskip("triton", reason="the package triton is not installed")

from tests.helpers.loading import load
from workers.attention.triton_paged import TritonAttention
from workers.models.loading import Loaded

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": 9,
    "initializer_range": 0.5,
}


@pytest.fixture(
    scope="module",
    params=[
        "gemma2",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("llama", "mistral")),
    ],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers: of full attention, of a window, of one each with a softcap."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "llama":
        return save_tiny_llama(path)
    if request.param == "mistral":
        MistralForCausalLM(MistralConfig(**SIZES)).save_pretrained(path)
    else:
        capped = Gemma2Config(**SIZES, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)
        Gemma2ForCausalLM(capped).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(folder: Path, device: str) -> Loaded:
    where = torch.device(device)
    return load(folder, torch.float32, where, "transformers", attention=TritonAttention)


def test_mixed_batches_say_what_each_sequence_says_alone(
    model: Loaded, reference: PreTrainedModel, device: str
) -> None:
    batch = Batch(model, torch.device(device))
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def step(run: dict[int, int], *admit: Admit) -> None:
        for row, token in tokens_of(batch.step(run, *admit)).items():
            found[row].append(token)

    step({0: 3}, batch.admit(0, SHORT))
    step({0: 1, 1: 7}, batch.admit(1, LONG))
    step({0: 1, 1: 22, 2: 1}, batch.admit(2, LONG[::-1]))
    step({0: 1, 1: 1, 2: 29})
    for _ in range(4):
        step({2: 1, 0: 1, 1: 1})
    assert found == {
        0: greedy(reference, SHORT, 8),
        1: greedy(reference, LONG, 5),
        2: greedy(reference, LONG[::-1], 5),
    }


def test_sampling_and_log_probabilities_of_prompts_are_the_cpus(
    model: Loaded, folder: Path, device: str
) -> None:
    on_cpu = load(folder, torch.float32, torch.device("cpu"), implementation="transformers")
    sampling = Sampling(
        do_sample=True, seed=7, temperature=0.8, top_p=0.9, logprobs=True, repetition_penalty=1.3
    )
    found = []
    for one, where in ((model, device), (on_cpu, "cpu")):
        batch = Batch(one, torch.device(where))
        admitted = batch.admit(
            0, LONG, sampling=sampling, prompt_logprobs=True, prompt_top_n_tokens=2
        )
        found.append([batch.step({0: 30}, admitted), *(batch.step({0: 1}) for _ in range(3))])
    for ours, cpus in zip(*found, strict=True):
        assert tokens_of(ours) == tokens_of(cpus)
        assert ours.sampled[0].logprobs[0] == pytest.approx(cpus.sampled[0].logprobs[0], abs=1e-4)
    ((ours,), (cpus,)) = (done[0].prompt_logprobs for done in found)
    assert ours.logprobs == pytest.approx(cpus.logprobs, abs=1e-4)


def test_the_worker_serves_on_the_gpu(
    cuda: torch.device, folder: Path, reference: PreTrainedModel
) -> None:
    channel = run(start(folder), *steps(6), Stop())
    assert channel.ready.device == cuda.type
    assert channel.ready.block_size == 16
    assert [one.sampled[0].tokens[0] for one in channel.results] == greedy(reference, SHORT, 6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(
    cuda: torch.device, folder: Path, reference: PreTrainedModel, dtype: str
) -> None:
    found = run(start(folder, dtype=dtype), *steps(1, Sampling(logprobs=True)), Stop())
    (one,) = found.results[0].sampled
    with torch.inference_mode():
        scores = reference(torch.tensor([SHORT])).logits[0, -1].log_softmax(-1)
    assert one.logprobs[0] == pytest.approx(float(scores[one.tokens[0]]), abs=0.5)


def test_a_greedy_step_never_waits_for_the_device(
    cuda: torch.device, model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(model, cuda)
    batch.step({0: 3, 1: 7}, batch.admit(0, SHORT), batch.admit(1, LONG))  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = [batch.launch({0: 1, 1: 23}), batch.launch({0: 1, 1: 1})]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done = [batch.runner.collect(one) for one in launched]
    assert [one.errors for one in done] == [[], []]
    assert [tokens_of(one)[0] for one in done] == greedy(reference, SHORT, 3)[1:]
