"""Time of a model's linear layers: ours, oneDNN with reordered weights, torch's own.

    python -m benchmarks.linear [--threads 2] [--rows 1,16,64]

Every layer has weights of its own, so that they come from memory as in a model. The three take
turns, pass by pass; the best pass of each counts. Shapes are SmolLM2-135M's, n x k; `joined` has
q, k and v in one layer, and gate and up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from workers.layers.linear import Linear, PlainWeight, ReorderedWeight

LAYER = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
JOINED = [(0, 1, 2), (3,), (4, 5), (6,)]
N_LAYERS = 30
HEAD = (49152, 576)

Layers = list[tuple[int, Callable[[torch.Tensor], torch.Tensor]]]


def forms(shapes: list[tuple[int, int]], joined: list[tuple[int, ...]]) -> dict[str, Layers]:
    """The same weights in every form, each layer with its k."""
    made: dict[str, Layers] = {"ours": [], "joined": [], "oneDNN": [], "torch": []}
    linears = [nn.Linear(k, n, bias=False, dtype=torch.bfloat16) for n, k in shapes]
    for linear in linears:
        k, weight = linear.in_features, linear.weight.detach()
        made["ours"].append((k, Linear.from_linear(linear)))
        made["oneDNN"].append((k, ReorderedWeight(weight, None)))
        made["torch"].append((k, PlainWeight(weight, None)))
    for group in joined:
        layer = Linear.from_linear(*(linears[i] for i in group))
        made["joined"].append((layer.in_features, layer))
    return {name: layers for name, layers in made.items() if layers}


def milliseconds(made: dict[str, Layers], rows: int, passes: int) -> dict[str, float]:
    """Best pass through all layers, for each form."""
    inputs = {k: torch.randn(rows, k, dtype=torch.bfloat16) for k, _ in made["ours"]}
    best = dict.fromkeys(made, float("inf"))
    for _ in range(passes):
        for name, layers in made.items():
            begin = time.perf_counter()
            for k, layer in layers:
                layer(inputs[k])
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: seconds * 1e3 for name, seconds in best.items()}


def report(what: str, made: dict[str, Layers], n_rows: list[int], weights: int) -> None:
    print(f"\n{what}, {weights * 2 / 1e6:.0f} MB of weights. ms; ours in GB/s of them and TFLOP/s")
    print(f"{'rows':>5}" + "".join(f"{name:>9}" for name in made) + f"{'GB/s':>9}{'TFLOP/s':>9}")
    for rows in n_rows:
        took = milliseconds(made, rows, 20 if rows <= 64 else 5)
        rates = weights * 2 / took["ours"] / 1e6, weights * 2 * rows / took["ours"] / 1e9
        row = [*took.values(), *rates]
        print(f"{rows:5}" + "".join(f"{x:9.2f}" for x in row), flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="1,8,16,32,64,128,512")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n_rows = [int(x) for x in given.rows.split(",")]
    joined = [
        tuple(i + layer * len(LAYER) for i in group)
        for layer in range(N_LAYERS)
        for group in JOINED
    ]
    layers = forms(LAYER * N_LAYERS, joined)
    size = N_LAYERS * sum(n * k for n, k in LAYER)
    report(f"{N_LAYERS} layers of {len(LAYER)} linears", layers, n_rows, size)
    small = [x for x in n_rows if x <= 64]
    report("the output layer", forms([HEAD], []), small, HEAD[0] * HEAD[1])


if __name__ == "__main__":
    main()
