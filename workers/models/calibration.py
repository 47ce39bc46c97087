"""A text through a model, decoder layer by decoder layer.

All sequences go through one decoder layer before any goes through the next. So only one layer has
its weights in memory at a time, and it gets what the layers before make of the text once they are
rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from workers.errors import UnsupportedModel
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.plain_model import PlainLayer, PlainModel

LENGTH = 512
"""Tokens of a sequence, of models that take so many."""
TOGETHER = 2048
"""Tokens that go through a layer at once."""

Inputs = dict[str, torch.Tensor]
"""x^T x over the inputs x that a layer got, float32 [inputs, inputs], by its name."""
Round = Callable[[PlainLayer, torch.Tensor, torch.Tensor], torch.Tensor]
"""A layer, its weight and its inputs (see above) -> the weight in its place, float32."""


def sequences_of(folder: Path, text: str, n: int, length: int, bos: int | None) -> torch.Tensor:
    """Return up to n sequences of a text, int64 [n, length], by the tokenizer of a model, each with
    `bos` before it where the tokenizer puts that before a text.

    Raises UnsupportedModel for a text that is shorter than one.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    before = tokenizer.encode("").ids[:1]
    before = before if before == [bos] else []
    own = length - len(before)
    found = tokenizer.encode(text, add_special_tokens=False).ids
    n = min(n, len(found) // own)
    if not n:
        raise UnsupportedModel(
            f"the text to calibrate with has {len(found)} tokens; at least {own} are needed"
        )
    return torch.tensor([before + found[at * own : (at + 1) * own] for at in range(n)])


def builtin_text() -> str:
    """Return English that comes with Python: its language reference, from the end.

    Raises UnsupportedModel for a Python that lacks it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UnsupportedModel(
            "this Python has no pydoc_data, the text to calibrate with: give one as --calibration"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics, reverse=True))


class Calibration:
    """One pass of sequences through a model."""

    def __init__(self, model: PlainModel, round_weight: Round) -> None:
        self._model, self._round = model, round_weight
        self._layers: dict[str, list[PlainLayer]] = {}
        for one in model.layers:
            self._layers.setdefault(one.block, []).append(one)

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [sequences, tokens] -> the hidden states after the last layer, float32.

        Raises UnsupportedModel for a model whose layers cannot be run so, and BrokenCheckpoint.
        """
        model = self._model
        # What has the decoder layers, and not the head. Not all families call it their base model.
        decoder = model.module.get_submodule(next(iter(model.blocks)).partition(".")[0])
        inside: set[nn.Module] = set() if model.head is None else {model.head}
        for name, block in model.blocks.items():
            inside |= set(block.modules())
            forward = partial(self._through, name, block, block.forward, ids.shape)
            block.forward = forward
        model.weights.fill(model.module, without=inside)
        try:
            with torch.no_grad():
                result = decoder(input_ids=ids.to(model.device), use_cache=False)
        except BrokenCheckpoint:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UnsupportedModel(
                f"{model.module.config.model_type} does not run layer by layer ({error}): use "
                "--method rtn, which needs no text"
            ) from error
        hidden: torch.Tensor = result[0]
        return hidden

    def _through(
        self,
        name: str,
        block: nn.Module,
        forward: Callable[..., Any],
        shape: torch.Size,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        layers = self._layers.pop(name, None)
        if layers is None:
            raise RuntimeError(f"{name} is run twice")
        self._model.weights.fill(block)
        parts = list(_parts(shape, args, kwargs))
        with _watched(layers) as inputs:
            for some, named in parts:
                forward(*some, **named)
        for one in layers:
            (weight, *bias) = one.layer.tensors
            rounded = self._round(one, weight, inputs[one.name])
            one.layer.load({"weight": rounded} | ({"bias": bias[0]} if bias else {}))
            inputs.pop(one.name)
        results = [forward(*some, **named) for some, named in parts]
        # It is not run again: let go of its weights.
        block._modules.clear()
        for one in layers:
            del one.layer.weight
        self._model.weights.release()
        return _joined(results)


@contextmanager
def _watched(layers: list[PlainLayer]) -> Iterator[Inputs]:
    """Gather what layers get while the body runs. Layers that get the very same have it once."""
    found: Inputs = {}
    last: list[Any] = [None, ""]

    def see(name: str, module: nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0]
        if x is last[0] and (name not in found or found[name] is found[last[1]]):
            found[name] = found[last[1]]
            return
        rows = x.reshape(-1, x.shape[-1]).float()
        if name not in found:
            found[name] = rows.new_zeros((rows.shape[1], rows.shape[1]))
        found[name].addmm_(rows.t(), rows)
        last[:] = [x, name]

    hooks = [one.layer.register_forward_pre_hook(partial(see, one.name)) for one in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        last[:] = [None, ""]
        for one in layers:  # an expert that no token was sent to
            if one.name not in found:
                k = one.layer.in_features
                found[one.name] = torch.zeros((k, k), device=one.layer.device)


def _parts(
    shape: torch.Size, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Arguments of a decoder layer for some sequences at a time, where they can be told apart."""
    n, length = shape
    hidden = args[0] if args else kwargs.get("hidden_states")
    known = all(_is_known(one, n) for one in (*args, *kwargs.values()))
    if not known or not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != (n, length):
        yield list(args), dict(kwargs)
        return
    together = max(1, TOGETHER // length)
    for start in range(0, n, together):
        rows = slice(start, start + together)
        yield (
            [_some(one, n, rows) for one in args],
            {key: _some(one, n, rows) for key, one in kwargs.items()},
        )


def _is_known(argument: Any, n: int) -> bool:
    """Whether an argument is the same for all of n sequences or has a part for each, and is none
    that layers write to."""
    if isinstance(argument, tuple | list):
        return all(_is_known(one, n) for one in argument)
    if isinstance(argument, torch.Tensor):
        return argument.dim() < 2 or argument.shape[0] in (1, n)
    return argument is None or isinstance(argument, bool | int | float | str)


def _some(argument: Any, n: int, rows: slice) -> Any:
    if isinstance(argument, tuple | list):
        return type(argument)(_some(one, n, rows) for one in argument)
    if isinstance(argument, torch.Tensor) and argument.dim() > 1 and argument.shape[0] == n > 1:
        return argument[rows]
    return argument


def _joined(results: list[Any]) -> Any:
    """Results of a layer for some sequences each, as one."""
    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(results) if len(results) > 1 else first
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*results, strict=True))
    return first
