"""`python -m workers.models.quantize MODEL_ID OUTPUT_DIR`: write a quantized checkpoint.

It is in the format compressed-tensors, which this server reads, and transformers. A folder of files
that are not all there yet has no config.json, without which it is no model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.errors import ModelUnavailable, UnsupportedModel
from workers.models.calibration import LENGTH, Calibration, builtin_text, sequences_of
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.checkpoint_writer import (
    CheckpointWriter,
    WrongArguments,
    expect_empty,
    new_folder,
)
from workers.models.plain_model import PlainLayer, PlainModel
from workers.models.prepare import prepare
from workers.models.rope import limits_of
from workers.progress import say, size, track
from workers.quantization.compressed_tensors import PACKED
from workers.quantization.compressed_tensors_writer import BITS, FORMATS, WrittenFormat
from workers.quantization.steps import nearest_steps, relative_error, steps_with_feedback

METHODS = ("gptq", "rtn")
GROUPS = (128, 64, 32)
"""Inputs of a scale, where none are asked for: the first that divides all layers."""


@dataclass(frozen=True, slots=True)
class Method:
    """How weights are rounded."""

    name: str
    damping: float
    most_first: bool
    text: str
    """Of GPTQ, what is sent through the model; "" for the one that comes with Python."""
    n_tokens: int


def quantize(
    path: Path,
    out: Path,
    method: Method,
    stored: Callable[[PlainModel], WrittenFormat],
    trust_remote_code: bool = False,
) -> None:
    """Write the model of a folder, quantized, to the folder `out`, which is made.

    `stored` chooses the format for a model. Raises UnsupportedModel, WrongArguments, and ValueError
    and OSError for a broken folder or one that cannot be written.
    """
    with new_folder(out) as folder:
        model = PlainModel(path, _device(), trust_remote_code)
        if model.stacked:
            say(
                f"The experts of {len(model.stacked)} layers lie in one tensor each, and stay as "
                "they are"
            )
        written = stored(model)
        with closing(CheckpointWriter(path, folder, model, written)) as files:
            if method.name == "rtn":
                _round_each(model, written, files)
            else:
                _calibrate(path, model, method, written, files)
            files.finish(written.settings(model.ignored, method.most_first))


def choose(name: str, bits: int, group: int | None, model: PlainModel) -> WrittenFormat:
    """Return the format for a model. `group` is -1 for a scale for each row; None: what fits.

    Raises UnsupportedModel for a format that is not written, and WrongArguments for groups that do
    not fit.
    """
    if group is None and name != PACKED:
        group = -1
    inputs = {layer.layer.size.inputs: layer.name for layer in reversed(model.layers)}
    fitting = [one for one in GROUPS if all(n % one == 0 for n in inputs)]
    if group is None:
        if not fitting:
            raise WrongArguments(
                f"no groups of {', '.join(map(str, GROUPS))} inputs divide those of all layers "
                f"({_listed(inputs)}): give --group-size -1, for a scale for each row"
            )
        group = fitting[0]
    if group == 0 or group < -1:
        raise WrongArguments(f"--group-size must be -1 or at least 1. Given: {group}.")
    for n, layer in sorted(inputs.items()) if group > 0 else ():
        if n % group:
            fit = "".join(f"{one}, " for one in fitting)
            raise WrongArguments(
                f"--group-size {group} does not divide the {n} inputs of {layer}: give one that "
                f"divides those of all layers ({_listed(inputs)}), such as {fit}or -1 for a scale "
                "for each row"
            )
    return WrittenFormat(name, bits, max(0, group))


def _round_each(model: PlainModel, written: WrittenFormat, files: CheckpointWriter) -> None:
    for layer in track(model.layers, len(model.layers), "Rounding the weights to nearest"):
        weight = model.checkpoint.tensor(layer.key)
        _expect_finite(layer, weight)
        scales = written.scales_of(weight.dtype)
        files.put(layer, nearest_steps(weight.to(model.device), written.grid, scales))
        model.checkpoint.release()


def _calibrate(
    path: Path, model: PlainModel, method: Method, written: WrittenFormat, files: CheckpointWriter
) -> None:
    config = model.module.config
    length = min(LENGTH, limits_of(config).exact)
    bos = config.get_text_config().bos_token_id
    text = method.text or builtin_text()
    ids = sequences_of(path, text, -(-method.n_tokens // length), length, bos)
    say(f"Calibrating with {ids.numel()} tokens")
    if ids.numel() < method.n_tokens:
        say(f"The text has no more; {method.n_tokens} were asked for")
    blocks = {name: at for at, name in enumerate(model.blocks, 1)}
    last = {layer.block: layer.name for layer in model.layers}
    errors: list[float] = []

    def rounded(layer: PlainLayer, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        _expect_finite(layer, weight)
        dtype = written.scales_of(model.checkpoint.dtype(layer.key))
        steps = steps_with_feedback(
            weight, inputs, written.grid, dtype, method.damping, method.most_first
        )
        files.put(layer, steps)
        errors.append(relative_error(weight, steps.dense, inputs))
        if layer.name == last[layer.block]:
            say(
                f"Layer {blocks[layer.block]} of {len(blocks)}: what rounding adds to outputs is "
                f"{sum(errors) / len(errors):.2%} of their power"
            )
            errors.clear()
        return steps.dense

    Calibration(model, rounded).run(ids)


def _expect_finite(layer: PlainLayer, weight: torch.Tensor) -> None:
    """Raises BrokenCheckpoint, for a group with one such number would have no scale."""
    if not bool(weight.float().isfinite().all()):
        raise BrokenCheckpoint(
            f"{layer.key} has numbers that are infinite or NaN: get the checkpoint again"
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _listed(inputs: dict[int, str]) -> str:
    return ", ".join(map(str, sorted(inputs)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tgi-async quantize",
        description="Write a quantized checkpoint, in the format compressed-tensors.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model_id", metavar="MODEL_ID", help="a folder, a GGUF file or a Hub id")
    add("output_dir", metavar="OUTPUT_DIR", type=Path, help="a folder that is empty or not there")
    add("--revision", help="a branch, tag or commit of a Hub model")
    add("--cache", help="the folder of huggingface_hub's cache")
    add("--trust-remote-code", action="store_true", help="run the model's own code")
    add("--method", default="gptq", help="gptq (the default) or rtn, which rounds to nearest")
    add("--bits", type=int, choices=BITS, help="4, or with other formats 8")
    add("--format", choices=FORMATS, default=PACKED, help=f"default {PACKED}")
    add(
        "--group-size", "--groupsize", type=int, metavar="N",
        help="inputs of a scale, -1: all of a row; default: the first of 128, 64 and 32 that "
        "divides all layers",
    )  # fmt: skip
    add("--calibration", type=Path, metavar="FILE", help="gptq: a text; default: Python's manual")
    add("--calibration-tokens", type=int, metavar="N", help="gptq: tokens of it; default 32768")
    add("--percdamp", type=float, metavar="X", help="gptq: damping; default 0.01")
    add(
        "--act-order", action=argparse.BooleanOptionalAction, default=None,
        help="gptq: round the inputs that matter most first",
    )  # fmt: skip
    for name in ("--logger-level", "--json-output", "--upload-to-model-id"):
        add(name, nargs="?", const="", help=argparse.SUPPRESS)  # TGI's
    return parser


def _method(options: argparse.Namespace) -> Method:
    """Raises WrongArguments for what does not go together, and OSError or ValueError for a text
    that cannot be read."""
    if options.method not in METHODS:
        raise WrongArguments(f"--method must be {' or '.join(METHODS)}. Given: {options.method!r}.")
    if options.upload_to_model_id is not None:
        raise WrongArguments(
            "--upload-to-model-id is not built: leave it out, and upload the folder by `hf upload`"
        )
    own = ("calibration", "calibration_tokens", "percdamp", "act_order")
    given = [name for name in own if getattr(options, name) is not None]
    if options.method == "rtn" and given:
        flag = f"--{given[0].replace('_', '-')}"
        raise WrongArguments(f"{flag} is for --method gptq, and rtn takes none: leave it out")
    text = ""
    if options.calibration is not None:
        try:
            text = options.calibration.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise WrongArguments(
                f"--calibration {options.calibration} is no text in UTF-8: give one that is"
            ) from None
        if not text.strip():
            raise WrongArguments(f"--calibration {options.calibration} is empty: give a text")
    damping = 0.01 if options.percdamp is None else options.percdamp
    n_tokens = 2**15 if options.calibration_tokens is None else options.calibration_tokens
    if not 0 <= damping <= 1 or n_tokens < 1:
        raise WrongArguments(
            f"--percdamp must be from 0 to 1 and --calibration-tokens at least 1. Given: {damping} "
            f"and {n_tokens}."
        )
    return Method(options.method, damping, bool(options.act_order), text, n_tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    for flag in ("logger_level", "json_output"):
        if getattr(options, flag) is not None:
            say(f"--{flag.replace('_', '-')} has no effect: progress is plain lines")
    out: Path = options.output_dir
    bits = options.bits or (4 if options.format == PACKED else 8)
    try:
        method = _method(options)
        expect_empty(out)
        prepared = prepare(
            options.model_id,
            revision=options.revision,
            cache=options.cache,
            trust_remote_code=options.trust_remote_code,
        )
        path = Path(str(prepared["path"]))
        quantize(
            path,
            out,
            method,
            lambda model: choose(options.format, bits, options.group_size, model),
            options.trust_remote_code,
        )
    except UnsupportedModel as error:
        say(f"Error: model {options.model_id}: {error}")
        return 1
    except (ModelUnavailable, WrongArguments, BrokenCheckpoint, OSError, ValueError) as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted")
        return 130
    before, after = (
        sum(one.stat().st_size for one in folder.glob("*.safetensors")) for folder in (path, out)
    )
    say(f"Wrote {out}: {size(after)} of weights, which were {size(before)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
