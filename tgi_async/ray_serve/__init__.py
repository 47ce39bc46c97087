"""The server as an application of Ray Serve, for many replicas over many machines.

`tgi_async.ray_serve:app` is what a Serve config file imports. Everything but `application` does
without Ray, which is the extra `ray`.
"""

from __future__ import annotations

from typing import Any

from tgi_async.errors import StartError


def app(args: dict[str, Any]) -> Any:
    """Return the Serve application for these settings: the `args` of a config file, by the names of
    the flags of `tgi-async serve`. Raises StartError naming what is wrong."""
    try:
        from tgi_async.ray_serve.application import application
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise StartError(
            "Ray Serve is not installed. Install it with `pip install 'tgi-async[ray]'`, on every "
            "machine of the cluster."
        ) from None
    return application(args)
