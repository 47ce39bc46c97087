"""How many schemas of a collection are supported, and whether the generated texts are valid.

    python -m benchmarks.schema_coverage FOLDER... [--share 4 --part 0] [--walks 3] [--why]

Each folder holds JSON files, at any depth: a schema, or an object with a `schema` and perhaps
`tests` (`{"data": ..., "valid": true}`), as maskbench and the JSON-Schema-Test-Suite have them.
Counted apart: what is no schema of its draft, what refers to other documents, and what no value
satisfies. Of each schema that is followed, random texts of the grammar are checked by `jsonschema`,
and the valid instances of its tests are taken token by token, with their properties in our order.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from tests.grammar.engines import accepts, engine_of, is_taken, one_line, vocab_size, walk
from tgi_async.grammar.check import seconds_for
from tgi_async.grammar.checker import SECONDS
from tgi_async.grammar.grammar import Json, decode, encode
from tgi_async.grammar.schema.drafts import draft_of, guess
from tgi_async.grammar.schema.errors import UnsupportedSchema
from tgi_async.grammar.schema.normalize import check_size
from workers.grammar.check_process import check
from workers.grammar.engine import GrammarError

VALIDATORS = {
    3: jsonschema.Draft3Validator,
    4: jsonschema.Draft4Validator,
    6: jsonschema.Draft6Validator,
    7: jsonschema.Draft7Validator,
    2019: jsonschema.Draft201909Validator,
    2020: jsonschema.Draft202012Validator,
}
APART = ("invalid", "elsewhere", "unsatisfiable")


def validator(schema: Any) -> Any:
    draft = draft_of(schema) or guess(schema)
    cls = validator_for(schema, default=VALIDATORS[draft])
    cls.check_schema(schema)
    return cls(schema, registry=Registry())


def outcome(schema: Any, tests: list[Any], walks: int, notes: list[str]) -> tuple[str, str]:
    try:
        judge = validator(schema)
    except Exception as error:
        return "invalid", str(error).partition("\n")[0][:80]
    words = -(-vocab_size() // 32)
    encoded = encode(Json(schema))
    try:
        check_size(len(encoded))
    except UnsupportedSchema as error:
        return "refused", str(error)
    began = time.process_time()
    answer = check(engine_of(), words, encoded)
    took = time.process_time() - began
    if took > seconds_for(len(encoded), SECONDS):
        return "slow", f"{took:.1f} s"
    if answer.refusal:
        if "which is not in the schema" in answer.refusal:
            return "elsewhere", ""
        if "no value satisfies" in answer.refusal:
            return "unsatisfiable", ""
        return "refused", answer.refusal
    grammar = decode(answer.grammar)
    assert isinstance(grammar, Json)
    matcher = engine_of().matcher(grammar)
    for seed in range(walks):
        try:
            text, complete = walk(matcher, seed, 300)
        except GrammarError as error:
            notes.append(f"engine: {error}"[:60])
            continue
        notes.append("complete" if complete else "cut")
        if not complete:
            continue
        try:
            if not judge.is_valid(json.loads(text)):
                return "WRONG", text[:300]
        except (Unresolvable, re.error, RecursionError) as error:
            return "elsewhere" if isinstance(error, Unresolvable) else "invalid", str(error)[:80]
    taken = [
        is_taken(matcher, test["data"], grammar.schema)
        for test in tests
        if test.get("valid") and len(json.dumps(test["data"])) < 20_000
    ]
    notes += ["taken" if one else "not taken" for one in taken]
    for test in tests:
        text = one_line(test["data"])
        if judge.is_valid(json.loads(text)):
            continue
        if accepts(matcher, text):
            return "WRONG", f"takes {json.dumps(test['data'])[:300]}"
    if taken and np.mean(taken) < 0.5:
        return "narrow", f"{sum(taken)} of {len(taken)}"
    return "followed", ""


def schemas_in(path: Path) -> Iterator[tuple[Any, list[Any]]]:
    try:
        given = json.loads(path.read_text())
    except ValueError:
        return
    if isinstance(given, list):  # a file of the suite
        yield from ((case["schema"], case["tests"]) for case in given)
    elif "schema" in given and ("tests" in given or "meta" in given):
        yield given["schema"], given.get("tests", [])
    else:
        yield given, []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--share", type=int, default=1, help="of so many parts ...")
    parser.add_argument("--part", type=int, default=0, help="... take this one")
    parser.add_argument("--walks", type=int, default=3)
    parser.add_argument("--why", action="store_true", help="each that is not followed")
    options = parser.parse_args()
    for folder in options.folders:
        counts: Counter[str] = Counter()
        notes: list[str] = []
        for path in sorted(folder.rglob("*.json") if folder.is_dir() else [folder]):
            if zlib.crc32(path.name.encode()) % options.share != options.part:
                continue
            for schema, tests in schemas_in(path):
                what, why = outcome(schema, tests, options.walks, notes)
                counts[what] += 1
                if options.why and what not in ("followed", *APART):
                    print(what, path.name, re.sub(r"\s+", " ", why), sep="\t", flush=True)
        n = sum(count for what, count in counts.items() if what not in APART)
        share = counts["followed"] / max(1, n)
        print(f"{folder}: {counts['followed']} of {n} followed ({share:.1%}); {dict(counts)}")
        print(f"  texts and instances: {dict(Counter(notes))}")


if __name__ == "__main__":
    main()
