"""`python -m workers.models.quantize MODEL_ID OUTPUT_DIR`: write a quantized checkpoint.

It is in the format compressed-tensors, which this server, transformers and vLLM read. A folder of
files that are not all there yet has no config.json, without which it is no model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.errors import ModelUnavailable, UnsupportedModel
from workers.models.calibration import Calibration, builtin_text, sequences_of
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.json_object import read_object
from workers.models.plain_model import PlainLayer, PlainModel
from workers.models.prepare import prepare
from workers.models.safetensors_writer import Entry, SafetensorsWriter
from workers.models.weight_files import INDEX, SINGLE, read_header, safetensors_files
from workers.progress import say, size, track
from workers.quantization.compressed_tensors import PACKED
from workers.quantization.compressed_tensors_writer import BITS, FORMATS, WrittenFormat
from workers.quantization.steps import Steps, nearest_steps, relative_error, steps_with_feedback

METHODS = ("gptq", "rtn")
GROUPS = (128, 64, 32)
"""Inputs of a scale, where none are asked for: the first that divides all layers."""
UNFINISHED = ".unfinished"
"""The folder in OUTPUT_DIR that files are written to until all are there."""
COPIED = (
    "*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.spm", "*.tiktoken",
    "vocab.txt", "merges.txt", "*.py", "LICENSE*", "NOTICE*",
)  # fmt: skip
NOT_COPIED = ("config.json", "quantize_config.json", "quant_config.json")
"""And the indexes of weights."""


@dataclass(frozen=True, slots=True)
class Method:
    """How weights are rounded."""

    name: str
    damping: float
    most_first: bool
    text: str
    """Of GPTQ, what is sent through the model; "" for the one that comes with Python."""
    n_tokens: int


class WrongArguments(ValueError):
    """What was asked for cannot be done; the message says why and what can."""


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
    _expect_empty(out)
    folder = _begin(out)
    try:
        model = PlainModel(path, _device(), trust_remote_code)
        written = stored(model)
        files = _Files(path, folder, model, written)
        if model.stacked:
            say(
                f"The experts of {len(model.stacked)} layers lie in one tensor each, and stay as "
                "they are"
            )
        try:
            if method.name == "rtn":
                _round_each(model, written, files)
            else:
                _calibrate(path, model, method, written, files)
            files.finish()
        finally:
            files.abandon()
        _copy_others(path, folder)
        config = read_object(path / "config.json")
        config.pop("transformers_weights", None)  # named files of the original
        config["quantization_config"] = written.settings(model.ignored, method.most_first)
        _write_json(folder / "config.json", config)
        _publish(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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


class _Files:
    """The weight files of the new checkpoint, one for each of the old one."""

    def __init__(self, path: Path, folder: Path, model: PlainModel, written: WrittenFormat) -> None:
        self._folder, self._model, self._written = folder, model, written
        self._layers = {layer.key: layer for layer in model.layers}
        names = safetensors_files(path)
        self._file_of: dict[str, SafetensorsWriter] = {}
        self._index: dict[str, str] = {}
        self._writers: list[SafetensorsWriter] = []
        self._bytes = 0
        for name in names:
            old = list(read_header(path / name))
            entries: dict[str, Entry] = {}
            for key in old:
                entries |= self._entries(key)
            target = name if len(names) > 1 else SINGLE
            writer = SafetensorsWriter(folder / target, entries)
            self._writers.append(writer)
            self._index |= dict.fromkeys(entries, target)
            for key in old:
                self._file_of[key] = writer
            self._bytes += sum(
                torch.Size(shape).numel() * dtype.itemsize for dtype, shape in entries.values()
            )

    def put(self, layer: PlainLayer, steps: Steps) -> None:
        """Write what a layer's weight was rounded to."""
        prefix = layer.key.removesuffix("weight")
        for leaf, tensor in self._written.tensors(steps).items():
            self._file_of[layer.key].put(prefix + leaf, tensor)

    def finish(self) -> None:
        """Write what was not quantized, and the index."""
        for key, writer in self._file_of.items():
            if key not in self._layers:
                writer.put(key, self._model.checkpoint.tensor(key))
                self._model.checkpoint.release()
        for writer in self._writers:
            writer.close()
        if len(self._writers) > 1:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": self._index}
            _write_json(self._folder / INDEX, index)

    def abandon(self) -> None:
        for writer in self._writers:
            writer.abandon()

    def _entries(self, key: str) -> dict[str, Entry]:
        tensor = self._model.checkpoint.tensor(key)
        if key not in self._layers:
            return {key: Entry(tensor.dtype, tuple(tensor.shape))}
        n, k = tensor.shape
        prefix = key.removesuffix("weight")
        layout = self._written.layout(n, k, tensor.dtype)
        return {prefix + leaf: Entry(*one) for leaf, one in layout.items()}


def _round_each(model: PlainModel, written: WrittenFormat, files: _Files) -> None:
    for layer in track(model.layers, len(model.layers), "Rounding the weights to nearest"):
        weight = model.checkpoint.tensor(layer.key)
        scales = written.scales_of(weight.dtype)
        files.put(layer, nearest_steps(weight.to(model.device), written.grid, scales))
        model.checkpoint.release()


def _calibrate(
    path: Path, model: PlainModel, method: Method, written: WrittenFormat, files: _Files
) -> None:
    bos = model.module.config.get_text_config().bos_token_id
    ids = sequences_of(path, method.text or builtin_text(), method.n_tokens, bos)
    say(f"Calibrating with {ids.numel()} tokens")
    if ids.numel() < method.n_tokens:
        say(f"The text has no more; {method.n_tokens} were asked for")
    blocks = {name: at for at, name in enumerate(model.blocks, 1)}
    last = {layer.block: layer.name for layer in model.layers}
    errors: list[float] = []

    def rounded(layer: PlainLayer, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _expect_empty(out: Path) -> None:
    """Raise WrongArguments for a place where something is, but for what a run left that was
    killed."""
    if out.exists() and not out.is_dir():
        raise WrongArguments(f"{out} is a file: give a folder that is empty or not there yet")
    if out.is_dir() and [one for one in out.iterdir() if one.name != UNFINISHED]:
        raise WrongArguments(f"{out} is not empty: give a folder that is empty or not there yet")


def _begin(out: Path) -> Path:
    """Return the folder to write to, in `out`. Raises OSError where it cannot be made."""
    folder = out / UNFINISHED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _copy_others(path: Path, folder: Path) -> None:
    """Copy everything of a model but its config and its weights."""
    for pattern in COPIED:
        for file in sorted(path.glob(pattern)):
            name = file.relative_to(path)
            if file.is_file() and name.name not in NOT_COPIED and ".index." not in name.name:
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / name)


def _publish(folder: Path, out: Path) -> None:
    """Move all files to their place, config.json last: without it there is no model."""
    for file in sorted(folder.iterdir(), key=lambda one: one.name == "config.json"):
        file.rename(out / file.name)
    folder.rmdir()
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_json(path: Path, value: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


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
        text = options.calibration.read_text(encoding="utf-8")
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
        _expect_empty(out)
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
