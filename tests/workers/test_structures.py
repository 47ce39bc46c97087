"""The ctypes mirrors of C structures have the sizes and offsets that the C compiler gives them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

import workers
from workers import native
from workers.attention import native as attention
from workers.decoder import native as decoder
from workers.kernels import packed

MIRRORS = {
    "weight": packed.Weight,
    "product": packed.Product,
    "kv_codes": attention.CodesStruct,
    "call": attention._Call,
    "block": decoder._Block,
    "decoder": decoder._Decoder,
    "step": decoder._Step,
}
C_NAMES = {
    ("product", "weight"): "w",
    ("decoder", "head_dim"): "dim",
    ("decoder", "vocab_size"): "vocab",
    ("decoder", "attention_scale"): "scale",
    ("decoder", "attention_softcap"): "softcap",
}
"""Of fields that Python calls by a longer name."""
SOURCE = Path(workers.__file__).parent / "decoder" / "decoder.c"


COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirror_has_the_layout_of_its_structure(name: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    mirror = MIRRORS[name]
    checks = [(f"sizeof({name})", ctypes.sizeof(mirror))]
    for field, *_ in mirror._fields_:
        c_name = C_NAMES.get((name, field), field)
        checks.append((f"offsetof({name}, {c_name})", getattr(mirror, field).offset))
    probe = tmp_path / "probe.c"
    probe.write_text(
        f'#include <stddef.h>\n#include "{SOURCE}"\n'
        + "".join(f'_Static_assert({what} == {n}, "{what}");\n' for what, n in checks)
    )

    command = (COMPILER, *native.FLAGS, "-O0", "-fsyntax-only", str(probe))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
