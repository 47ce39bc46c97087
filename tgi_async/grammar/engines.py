"""The engines of grammars by name. The workers have them (`workers/grammar`)."""

from __future__ import annotations

from importlib.util import find_spec

from tgi_async.errors import StartError

ENGINES = ("llguidance", "xgrammar")
"""The name of each is that of its package too."""


def require(name: str) -> None:
    """Raises StartError if the package of the engine `name` is not installed."""
    if find_spec(name) is None:
        raise StartError(
            f"--grammar-engine {name} needs the package {name}, which is not installed. Install it "
            f"(pip install 'tgi-async[{name}]') or choose another engine."
        )
