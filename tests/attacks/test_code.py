"""What no file of the product does, because others were attacked through it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_seams import ROOT, sources

NARROWING = (" is not None", " is None", " is not UNSET")
"""Ends of assertions that tell a type checker what holds anyway."""
OTHER_ASSERTIONS = {
    # An atom of a pattern is read again from where it was read before.
    "tgi_async/grammar/schema/regex.py": {"self._at == behind"},
    # Of our own loading: one grouped weight for each of the weights.
    "workers/quantization/grouped.py": {"len(grouped) == len(weights)"},
}
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
LOADS = {"yaml.load": "Loader", "torch.load": "weights_only", "np.load": "allow_pickle"}
ONE_VALUE = {"weights_only": "True", "allow_pickle": "False", "shell": "False"}
NEVER = {"trust_remote_code": "True"}


SIGNS = {"assert ", *RUNS_CODE, *(f"{name.rpartition('.')[2]}(" for name in (*CALLS, *LOADS))} | {
    *ONE_VALUE,
    *NEVER,
}
"""What a file has that could be at fault."""


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in sources():
        text = path.read_text()
        if any(sign in text for sign in SIGNS):
            for node in ast.walk(ast.parse(text)):
                yield path.relative_to(ROOT).as_posix(), node


def broken(path: str, node: ast.AST) -> str:
    """What a piece of code does that it must not; empty for most."""
    match node:
        case ast.Assert():
            test = ast.unparse(node.test)
            parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            narrows = all(
                ast.unparse(part).endswith(NARROWING) or ast.unparse(part).startswith("isinstance(")
                for part in parts
            )
            if not narrows and test not in OTHER_ASSERTIONS.get(path, ()):
                return f"{path}: assert {test}"
        case ast.Import() | ast.ImportFrom():
            names = [one.name for one in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if found := RUNS_CODE & {name.split(".")[0] for name in names}:
                return f"{path}: import of {found}"
        case ast.Call():
            name = dotted(node.func)
            given = {one.arg or "": one.value for one in node.keywords}
            if name in CALLS or LOADS.get(name, "") not in ("", *given):
                return f"{path}: {ast.unparse(node)}"
            for keyword in given.keys() & (ONE_VALUE.keys() | NEVER.keys()):
                value = ast.unparse(given[keyword])
                if value != ONE_VALUE.get(keyword, value) or value == NEVER.get(keyword):
                    return f"{path}: {name}({keyword}={value})"
    return ""


def dotted(node: ast.expr) -> str:
    """The name of what is called, as it is written; empty for what has none."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute(value=ast.Name(), attr=name):
            return f"{dotted(node.value)}.{name}"
    return ""


def test_nothing_runs_code_of_others_or_checks_input_by_an_assertion() -> None:
    """`python -O` leaves assertions out: CVE-2026-41523. Code in data: CVE-2026-3059, -15976."""
    assert [found for path, node in nodes() if (found := broken(path, node))] == []


@pytest.mark.parametrize(
    "code",
    [
        "assert len(prompt) < 100",
        "assert prompt",
        "assert x is not None and x > 3",
        "import pickle",
        "from dill import loads",
        "import torch.utils, cloudpickle.fast",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_what_must_not_be_is_found(code: str) -> None:
    assert [found for node in ast.walk(ast.parse(code)) if (found := broken("", node))]


def test_exceptions_are_still_needed() -> None:
    for path, tests in OTHER_ASSERTIONS.items():
        tree = ast.parse(Path(ROOT, path).read_text())
        there = {ast.unparse(one.test) for one in ast.walk(tree) if isinstance(one, ast.Assert)}
        assert tests <= there, path
