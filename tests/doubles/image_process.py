"""A mock of the process that prepares images, for tests: it speaks the real lines.

Started as `python -m tests.doubles.image_process`, it decodes nothing: an "image" is a few words.
`size 4 6` is 4 by 6 pixels, whose array has 24 bytes; before it may stand `sleep 0.5`, which takes
that time, `die 3`, which ends the process with that status, and `no` with a reason to refuse it. It
appends a line to the file `journal` in the model's folder for each image that it is asked for, and
refuses a model whose folder has a file `refused`. The id of `<image>` is that of `tokenizer.json`
there, if it has one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.vision_tokens import token_id

COMMAND = (sys.executable, "-m", "tests.doubles.image_process")
FAMILY = {
    "kind": "mock",
    "placeholder": "<image>",
    "image_token": "<image>",
    "reserved": ["<image>"],
}


def asked(model: Path) -> list[dict[str, Any]]:
    """What it was asked to prepare, in order."""
    journal = model / "journal"
    return list(map(json.loads, journal.read_text().splitlines())) if journal.exists() else []


def main() -> None:
    start = json.loads(sys.stdin.readline())
    folder = Path(start["folder"])
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), folder, start["max_pixels"])), flush=True)


def _answer(job: dict[str, Any], folder: Path, max_pixels: int) -> dict[str, Any]:
    if "describe" in job:
        refused = folder / "refused"
        if refused.exists():
            return {"error": refused.read_text()}
        return {"family": FAMILY | {"image_token_id": _image_token_id(folder / "tokenizer.json")}}
    data = Path(job["file"]).read_bytes()
    with (folder / "journal").open("a") as journal:
        entry = {"data": data.decode(errors="replace")[:80], "detail": job["detail"]}
        journal.write(json.dumps(entry) + "\n")
    words = data.decode(errors="replace").split()
    while words:
        match words:
            case ["sleep", seconds, *words]:
                time.sleep(float(seconds))
            case ["die", status, *_]:
                os._exit(int(status))
            case ["no", *why]:
                return {"error": " ".join(why)}
            case ["size", width, height, *_]:
                return _image(job, data, int(width), int(height), max_pixels)
            case _:
                break
    return {"error": "it is no image. Allowed: words of this mock"}


def _image_token_id(tokenizer: Path) -> int:
    if not tokenizer.exists():
        return token_id("<image>")
    added = json.loads(tokenizer.read_text())["added_tokens"]
    ids: dict[str, int] = {token["content"]: token["id"] for token in added}
    return ids["<image>"]


def _image(
    job: dict[str, Any], data: bytes, width: int, height: int, max_pixels: int
) -> dict[str, Any]:
    if width * height > max_pixels:
        return {"error": f"it has {width * height} pixels, and at most {max_pixels} are allowed"}
    with open(job["out"], "wb") as file:
        file.write(bytes(width * height))
    array = {"name": "pixel_values", "dtype": "uint8", "shape": [height, width], "offset": 0}
    digest = hashlib.sha256(data + job["detail"].encode()).hexdigest()[:32]
    n_tokens = 2
    return {
        "image": {
            "digest": digest,
            "text": "<image>" * n_tokens,
            "n_tokens": n_tokens,
            "n_bytes": len(data),
            "width": width,
            "height": height,
            "arrays": [array],
        }
    }


if __name__ == "__main__":
    main()
