"""The attention backends by name, and the choice of one for a device."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch

from workers.attention.backend import AttentionBackend
from workers.attention.flash import FlashAttention, VarlenAttention
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionShape
from workers.attention.native import NativeAttention
from workers.attention.triton_paged import TritonAttention

Backend = type[AttentionBackend[Any]]

BACKENDS: dict[str, Backend] = {
    one.name: one
    for one in (NativeAttention, TorchAttention, TritonAttention, FlashAttention, VarlenAttention)
}
"""Backends that `--attention` may name."""

AUTO: dict[str, tuple[Backend, ...]] = {
    "cpu": (NativeAttention, TorchAttention),
    "cuda": (TritonAttention,),
}
"""By device type, the best first. The Triton kernels have small pages, so that more of the cache is
shared, and need nothing besides Triton."""

DEVICES = {"cpu": "a CPU", "cuda": "an NVIDIA GPU"}

Registered = TypeVar("Registered", bound=Backend)


class BackendChoice(NamedTuple):
    """The chosen backend, and notes for the user."""

    backend: Backend
    notes: list[str]


def register(backend: Registered) -> Registered:
    """Register this backend for `--attention`. A class decorator."""
    BACKENDS[backend.name] = backend
    return backend


def choose(name: str, device: torch.device) -> BackendChoice:
    """Return the backend of this name, or for "auto" the best one that runs on the device.

    Raises ValueError where there is none, saying what is missing.
    """
    kind = device.type
    if name == "auto":
        if kind not in AUTO:
            raise ValueError(
                f"paged attention is built for the devices {', '.join(AUTO)}, not for {kind}"
            )
        *better, last = AUTO[kind]
        notes: list[str] = []
        for backend in better:
            refusal = backend.refusal()
            if refusal is None:
                return BackendChoice(backend, notes)
            notes.append(
                f"attention runs in plain torch, several times slower with many streams: {refusal}"
            )
        return BackendChoice(last, notes)
    if name not in BACKENDS:
        raise ValueError(f"--attention is auto or one of {', '.join(BACKENDS)}, not {name}")
    chosen = BACKENDS[name]
    if kind not in chosen.devices:
        needed = " or ".join(DEVICES.get(one, one) for one in sorted(chosen.devices))
        serving = "the CPU" if kind == "cpu" else kind
        raise ValueError(
            f"--attention {name} needs {needed}, and serving is on {serving}. Leave it out"
        )
    if refusal := chosen.refusal():
        raise ValueError(
            f"--attention {name} cannot be used: {refusal}. Install it, or leave --attention out"
        )
    return BackendChoice(chosen, [])


def build(backend: Backend, shape: AttentionShape) -> AttentionBackend[Any]:
    """Return the backend for a shape of model; plain torch, with a note, for one that it does not
    take."""
    refusal = backend.shape_refusal(shape)
    if refusal is None:
        return backend(shape)
    plain = TorchAttention(shape)
    plain.notes.append(f"attention runs in plain torch, slower: {refusal}")
    return plain
