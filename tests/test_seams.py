"""Who may import whom."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tgi_async
import workers

ROOT = Path(tgi_async.__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "workers"}
OF_THE_ROUTER = (
    *("tgi_async.wire.", "tgi_async.grammar.", "tgi_async.confined."),
    "tgi_async.cgroups",
)
"""What workers may import of it."""


def modules(package: object) -> list[str]:
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    return [found.name for found in pkgutil.walk_packages(path, f"{name}.")]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, with the names imported from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_router_never_loads_what_only_workers_need() -> None:
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules(tgi_async)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(found.stdout))
    assert "tgi_async" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("path", sources("tgi_async"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_router_imports_it_even_late(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)} & HEAVY == set()


@pytest.mark.parametrize("path", sources("workers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_workers_know_only_the_wire_and_grammars_of_the_router(path: Path) -> None:
    of_the_router = [name for name in imports(path) if name.split(".")[0] == "tgi_async"]
    assert [name for name in of_the_router if not name.startswith(OF_THE_ROUTER)] == []


def test_no_modules_of_the_workers_import_each_other() -> None:
    """Not even late, or for their types alone; so each can be read, and changed, behind the ones
    that it imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("workers")}
    imported = {
        name: {
            # A module that is imported from its package does not import the package's own file.
            next((one for one in (found, found.rpartition(".")[0]) if one in names), name)
            for found in imports(ROOT / f"{name.replace('.', '/')}.py")
        }
        - {name}
        for name in names
    }
    TopologicalSorter(imported).prepare()  # raises CycleError, with the cycle


def test_engines_of_grammars_do_without_torch() -> None:
    script = (
        "import sys, workers.grammar.llguidance_engine, workers.grammar.check_process\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def test_a_worker_ties_its_life_to_the_router_before_it_loads_torch() -> None:
    script = "import sys, workers.__main__; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "False"


def test_all_modules_of_the_workers_are_seen() -> None:
    assert {"workers.runner", "workers.models.gguf"} <= set(modules(workers))


@pytest.mark.parametrize("folder", ["attention", "layers", "quantization", "sampling"])
def test_parts_of_a_model_do_not_know_how_it_is_loaded(folder: str) -> None:
    found = {name for path in sources(f"workers/{folder}") for name in imports(path)}
    loading = ("workers.models", "workers.decoder", "workers.worker", "workers.executor")
    assert found
    assert [name for name in sorted(found) if name.startswith(loading)] == []


def test_quantization_is_below_the_layers_that_use_it() -> None:
    """But for the kernels of weights that are not quantized."""
    kernels = ("workers.layers.packed.", "workers.layers.device_linear.")
    found = {name for path in sources("workers/quantization") for name in imports(path)}
    used = [name for name in found if name.startswith("workers.layers")]
    assert used
    assert [name for name in used if not name.startswith(kernels)] == []
