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
WITH_RAY = {"tgi_async.ray_serve.application", "tgi_async.ray_serve.routing"}
"""What imports Ray, which is an extra."""
CALLED_BY_OTHERS = {
    # transformers calls it with all of these.
    "workers/attention/paged.py:paged_attention",
}
GONE = {
    "tgi_async.api.body:Json",
    "tgi_async.api.engine:Engine",
    "tgi_async.api.result:Text",
    "tgi_async.api.unsupported:Refusal",
    "tgi_async.confined.pool:ProcessPool",
    "tgi_async.generation_stream:hand_on",
    "tgi_async.generation_stream:score",
    "tgi_async.grammar.check:Start",
    "tgi_async.grammar.schema.clause:Numbers",
    "tgi_async.grammar.schema.clause:Strings",
    "tgi_async.grammar.schema.clause:Unsupported",
    "tgi_async.grammar.schema.document:Node",
    "tgi_async.grammar.schema.keyword_visitor:meet",
    "tgi_async.grammar.verdict:Verdict",
    "tgi_async.grammar.vetting:Vetting",
    "tgi_async.incarnations:Incarnations",
    "tgi_async.live_streams:hand_on",
    "tgi_async.refusal:Refusal",
    "tgi_async.scheduler.core:_score",
    "tgi_async.scheduler.plan:Draft",
    "tgi_async.scheduler.plan:Part",
    "tgi_async.scheduler.request:scored",
    "tgi_async.scheduler.results:spread",
    "tgi_async.telemetry.traces:Part",
    "tgi_async.text.chat_environment:Refused",
    "tgi_async.text.stream:Decoder",
    "tgi_async.text.tools.events:Prose",
    "tgi_async.text.tools.literals:Literals",
    "tgi_async.text.tools.tags:_told_apart",
    "workers.assembly:Assembly",
    "workers.attention.paged:Attend",
    "workers.attention.reach:Reach",
    "workers.attention.registry:Choice",
    "workers.attention.tracing:Layer",
    "workers.cache:build_once",
    "workers.constraints.constraints:late",
    "workers.constraints.constraints:sits_out",
    "workers.constraints.literals:Literals",
    "workers.constraints.nodes:Node",
    "workers.constraints.strings:Strings",
    "workers.decoder.families:Numbers",
    "workers.decoder.families:Part",
    "workers.errors:Unsupported",
    "workers.following:DriverRank",
    "workers.following:Follower",
    "workers.following:Leader",
    "workers.grammar.engine:Engine",
    "workers.grammar.engine:forced",
    "workers.grammar.json_text:Frame",
    "workers.grammar.llguidance_engine:forced",
    "workers.launched:Forwarded",
    "workers.launched:Launched",
    "workers.launched:LaunchedStep",
    "workers.launched_step:Scored",
    "workers.layers.linear:PlainWeight",
    "workers.lifeline:die_with_parent",
    "workers.models.adapters:adapt",
    "workers.models.families:TESTED",
    "workers.models.gguf_rope:Metadata",
    "workers.models.loading:Decoder",
    "workers.models.rope:Limits",
    "workers.ranks:FellOut",
    "workers.models.description:Shape",
    "workers.runner:Model",
    "workers.runner:_score",
    "workers.sampling.masking:allowed_maxima",
    "workers.sampling.maxima:maxima",
    "workers.sampling.race:raced",
    "workers.sampling.race:winners",
    "workers.sampling.triton_kernels:maxima",
    "workers.sampling.triton_scores:raced",
    "workers.sampling.truncation:Limits",
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
    modules = [
        found.name
        for found in pkgutil.walk_packages(tgi_async.__path__, "tgi_async.")
        if found.name not in WITH_RAY
    ]
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
