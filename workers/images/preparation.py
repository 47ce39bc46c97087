"""Answers to lines of JSON: what a model's images are like, and images prepared for it.

The first line has `folder`, of the model, and `max_pixels`. Those that follow either ask to
`describe` the model, or have the `file` of an encoded image, its `detail`, and the file `out` to
write its arrays to.
"""

from __future__ import annotations

import json
import sys
import traceback
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from tgi_async.subprocess_pool.child import address_space, answer_lines, limit_memory
from workers.images import arrays
from workers.images.decode import decode
from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.reader import Reader
from workers.images.readers import reader
from workers.images.refused import ImageRefused

SECONDS = 20.0
"""Limit of processor time for an image; the largest that are allowed take a few."""
MEMORY = 2 << 30
"""Limit of address space in bytes, beyond what the libraries have and an image's pixels."""
BYTES_PER_PIXEL = 16
"""Of an image while it is decoded and turned: as it was, as RGB, and copies in between."""


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until `requests` ends."""
    start = json.loads(requests.readline())
    preparation = Preparation(Path(start["folder"]), start["max_pixels"])
    if size := address_space():
        limit_memory(size + MEMORY + BYTES_PER_PIXEL * preparation.max_pixels)
    answer_lines(
        requests,
        replies,
        lambda line: json.dumps(preparation.answer(json.loads(line))).encode(),
        lambda line: SECONDS,
    )


class Preparation:
    """Prepares images of at most `max_pixels` for the model in `folder`."""

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.folder = folder
        self.max_pixels = max_pixels

    @cached_property
    def reader(self) -> Reader:
        return reader(ModelFiles(self.folder))

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Return `family` or `image`; or an `error`, which is for the operator or the client."""
        try:
            if "describe" in job:
                return {"family": msgspec.to_builtins(self.reader.family())}
            return {"image": self._prepare(job)}
        except (ImageRefused, UnsupportedImages) as error:
            return {"error": str(error)}
        except MemoryError:
            return {"error": "the image takes more memory than is allowed: send a smaller one"}
        except Exception:  # whose text may tell of this process
            traceback.print_exc(file=sys.stderr)
            return {"error": "the image cannot be prepared for this model: send another one"}

    def _prepare(self, job: dict[str, Any]) -> dict[str, Any]:
        with open(job["file"], "rb") as file:
            image = decode(file, self.max_pixels)
        read = self.reader.read(image, job["detail"])
        try:
            places, n_bytes = arrays.write(job["out"], read.arrays)
        except OSError as error:
            print(f"arrays of an image cannot be written: {error}", file=sys.stderr)
            raise ImageRefused("the server has no room for the image: try again later") from error
        return {
            "digest": read.digest.hex(),
            "text": read.text,
            "n_tokens": read.text.count(self.reader.image_token),
            "n_bytes": n_bytes,
            "width": image.width,
            "height": image.height,
            "arrays": places,
        }
