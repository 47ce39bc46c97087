"""`python -m workers.models.prepare`: make sure that a model folder ready for serving is here.

Progress goes to stderr. stdout gets one JSON line, `{"path": ..., "model_id": ..., "revision": ...,
"speculator": ...}`, where revision is the commit of a Hub model and null for others. Of a draft
model, which names the model that it drafts for, path is that other one's folder, and speculator its
own; of all others that is "". A failure is one message on stderr and a non-zero exit status.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workers.build_cache import use_scratch
from workers.errors import ModelUnavailable
from workers.progress import say

if TYPE_CHECKING:
    from workers.models.folder import ModelFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    faulthandler.register(signal.SIGUSR1, sys.__stderr__ or 2)
    if options.scratch is not None:
        use_scratch(options.scratch)
    try:
        prepared = prepare(
            options.model_id,
            revision=options.revision,
            cache=options.cache,
            trust_remote_code=options.trust_remote_code,
            packed=options.quantize == "gguf",
        )
    except ModelUnavailable as error:
        say(f"Error: {error}")
        return 1
    except OSError as error:
        say(f"Error: model {options.model_id} cannot be read: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted")
        return 130
    print(json.dumps(prepared), flush=True)
    return 0


def prepare(
    model_id: str | None,
    *,
    revision: str | None = None,
    cache: str | None = None,
    trust_remote_code: bool = False,
    packed: bool = False,
) -> dict[str, str | None]:
    """The path, model id and revision of a folder with all that serving needs, and what drafts
    for it.

    `model_id` is a folder, a GGUF file, a Hub id, a Hub id with the name of a GGUF file or of a
    quantization (owner/name:Q4_K_M), or None for the embedded model. With `packed`, a GGUF file
    keeps its blocks; of other models it says nothing. Raises `ModelUnavailable`.
    """
    # Imported here so that each kind of model pays for its own imports only.
    from workers.models.draft_folder import base_of, draft_model_in, ready
    from workers.models.embedded import MODEL_ID, prepare_embedded

    prepared: dict[str, str | None] = {"speculator": ""}
    if model_id is None:
        _refuse_revision(revision, "the model that comes with the server")
        path = prepare_embedded(packed=packed)
        return prepared | {"path": str(path), "model_id": MODEL_ID, "revision": None}
    folder = _find(model_id, revision, cache, trust_remote_code)
    prepared |= {"model_id": model_id, "revision": folder.revision}
    draft = draft_model_in(folder)
    if draft is None:
        return prepared | {"path": str(_complete(folder, trust_remote_code, packed))}
    base = base_of(folder, draft)
    prepared["speculator"] = str(ready(folder, draft))
    say(f"{model_id} is {draft.name} for {base}, which is what is served")
    try:
        base_folder = _find(base, None, cache, trust_remote_code)
        if draft_model_in(base_folder) is not None:
            raise base_folder.problem("it is a draft model itself")
        path = _complete(base_folder, trust_remote_code, packed)
    except ModelUnavailable as error:
        raise ModelUnavailable(
            f"model {model_id} is {draft.name} for {base} (base_model_name_or_path in its "
            f"config.json), which cannot be served: {error}"
        ) from error
    return prepared | {"path": str(path)}


def _find(
    model_id: str, revision: str | None, cache: str | None, trust_remote_code: bool
) -> ModelFolder:
    """Return the folder at a path, or that of a model of the Hub. Raises `ModelUnavailable`."""
    from workers.models.folder import local_folder
    from workers.models.hub import download

    # Not `Path.expanduser`, which fails for a user without a home.
    path = Path(os.path.expanduser(model_id))
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        _refuse_revision(revision, f"the {'folder' if path.is_dir() else 'file'} {model_id}")
        return local_folder(model_id)
    repository, _, gguf = model_id.partition(":")
    _refuse_path(repository)
    return download(repository, revision, cache, gguf=gguf or None, with_code=trust_remote_code)


def _complete(folder: ModelFolder, trust_remote_code: bool, packed: bool) -> Path:
    """Return a folder with all that serving needs. Raises `ModelUnavailable`."""
    from workers.models.convert import complete
    from workers.models.folder import examine

    if folder.gguf is not None:
        from workers.models.gguf_convert import prepare_gguf

        return prepare_gguf(folder.gguf, folder.model_id, packed=packed)
    lacks = examine(folder)
    if not lacks:
        return folder.path
    return complete(folder, lacks, trust_remote_code=trust_remote_code)


def _refuse_revision(revision: str | None, model: str) -> None:
    if revision is not None:
        raise ModelUnavailable(
            f"--revision {revision} was given for {model}, which has no revisions: leave it out, "
            "or give a Hub id (owner/name) as the model"
        )


def _refuse_path(model_id: str) -> None:
    """Say that a path is wrong rather than look for it on the Hub."""
    if os.path.exists(os.path.expanduser(model_id)):
        raise ModelUnavailable(
            f"{model_id} is a file; give a model folder, a GGUF file (.gguf) or a Hub id"
        )
    if model_id.startswith(("/", "./", "../", "~")) or model_id.count("/") > 1:
        raise ModelUnavailable(f"the model folder {model_id} does not exist")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workers.models.prepare", description=__doc__)
    parser.add_argument("model_id", nargs="?", help="a folder, a GGUF file or a Hub id")
    parser.add_argument("--revision", help="a branch, tag or commit of a Hub model")
    parser.add_argument("--cache", help="the folder of huggingface_hub's cache")
    parser.add_argument("--trust-remote-code", action="store_true", help="also take the code")
    parser.add_argument(
        "--auto-convert", action="store_true", help="TGI's; pickled weights are always converted"
    )
    parser.add_argument("--extension", help="TGI's; all files of weights count")
    parser.add_argument("--logger-level", help="TGI's; progress is plain lines")
    parser.add_argument("--json-output", action="store_true", help="as --logger-level")
    parser.add_argument(
        "--quantize", choices=("gguf",), help="as `serve` takes it: keep the blocks of a GGUF file"
    )
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # a server's own
    return parser


if __name__ == "__main__":
    sys.exit(main())
