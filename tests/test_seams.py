"""What holds beyond the import rules of pyproject.toml, which `lint-imports` checks."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tgi_async

ROOT = Path(tgi_async.__file__).parent.parent
HEAVY = {"torch", "transformers", "numpy", "workers"}
MOST_PARAMETERS = 8
CALLED_BY_OTHERS = {
    # transformers calls it with all of these.
    "workers/attention/paged.py:paged_attention",
}
GONE = {
    "tgi_async.grammar.verdict:Verdict",
    "tgi_async.grammar.vetting:Vetting",
    "tgi_async.incarnations:Incarnations",
    "tgi_async.scheduler.results:spread",
    "workers.assembly:Assembly",
    "workers.attention.paged:Attend",
    "workers.attention.reach:Reach",
    "workers.following:Follower",
    "workers.following:Leader",
    "workers.launched:Forwarded",
    "workers.launched:Launched",
    "workers.layers.linear:PlainWeight",
    "workers.lifeline:die_with_parent",
    "workers.models.adapters:adapt",
    "workers.ranks:FellOut",
    "workers.runner:Model",
}
"""Names that had another one's meaning, or none; see docs/architecture.md for today's."""


def sources() -> list[Path]:
    return sorted(path for name in ("tgi_async", "workers") for path in (ROOT / name).rglob("*.py"))


def functions() -> Iterator[tuple[str, int]]:
    """Every function that is no kernel, and the number of its parameters but for `self`."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if any("jit" in ast.unparse(one) for one in node.decorator_list):
                continue
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            n = sum(one.arg not in ("self", "cls") for one in given)
            yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", n


def test_no_function_has_more_parameters_than_a_reader_can_keep_in_mind() -> None:
    found = dict(functions())
    assert found["workers/attention/paged.py:paged_attention"] > MOST_PARAMETERS
    long = {name for name, n in found.items() if n > MOST_PARAMETERS}
    assert long <= CALLED_BY_OTHERS


@pytest.mark.parametrize("name", sorted(GONE))
def test_an_old_name_does_not_come_back(name: str) -> None:
    module, _, identifier = name.partition(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.exists():
        return
    defined = {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert identifier not in defined


def test_the_router_never_loads_what_only_workers_need() -> None:
    modules = [found.name for found in pkgutil.walk_packages(tgi_async.__path__, "tgi_async.")]
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(printed_by(script)))
    assert "tgi_async" in loaded
    assert loaded & HEAVY == set()


def test_engines_of_grammars_do_without_torch() -> None:
    script = (
        "import sys, workers.grammar.llguidance_engine, workers.grammar.check_process\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert printed_by(script) == "[]"


def test_a_worker_ties_its_life_to_the_router_before_it_loads_torch() -> None:
    """Where it does, torch is not there yet, and nothing that it waits for has been opened."""
    script = (
        "import sys, workers.__main__ as worker\n"
        "def tied(router):\n"
        "    print(router, 'torch' in sys.modules)\n"
        "    raise SystemExit\n"
        "worker.die_with_parent = tied\n"
        "worker.WorkerChannel = None\n"
        "sys.argv[1:] = '--folder /nowhere --epoch 1 --rank 0 --router 1234'.split()\n"
        "worker.main()"
    )
    assert printed_by(script) == "1234 False"


def printed_by(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
