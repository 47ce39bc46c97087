"""What a bug report says of a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.models.test_weights import saved
from tests.workers.quantization.folders import SIZES, gptq_folder
from tests.workers.quantization.test_served import with_tokenizer
from workers.models.summary import lines_of


def test_a_plain_model(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", **SIZES)
    assert lines_of(folder)[:3] == [
        f"model: {folder}",
        "architecture: LlamaForCausalLM",
        "quantization: none",
    ]


@pytest.mark.model
def test_a_quantized_model_by_the_command(model_folder: Path, tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path, "llama", (4, "gptq", False, 32, False))
    with_tokenizer(folder, model_folder)
    command = [str(Path(sys.executable).with_name("tgi-async")), "env", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "\nquantization: gptq, 4 bits in groups of 32 inputs\nweights: 0.00 GB\n" in done.stdout
    assert done.stdout.startswith("tgi-async: ")


def test_a_model_that_is_not_here() -> None:
    command = [sys.executable, "-m", "workers.models.summary", "./nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("Error: the model folder ./nowhere does not exist\n")
