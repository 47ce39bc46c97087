"""The Serve application: the replicas' deployment, with defaults that fit the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from tgi_async.errors import StartError
from tgi_async.ray_serve import routing
from tgi_async.ray_serve.flags import settings_of
from tgi_async.ray_serve.replica import Replica

NAME = "server"
"""Of the deployment, by which a config file sets its options."""
MOST_ONGOING_REQUESTS = 16_384
"""The engine has its own limit and its own fair queue, in front of which nothing should wait."""
LEAVING_SECONDS = 35.0
"""What Serve spends of the time to stop before it waits for requests, at most: its load balancers
learn of it meanwhile."""
ROUTING = "routing"
"""The one of the `args` that is no flag: how requests find a replica."""
HOW = ("leastconn", "prefix")
STARTS = 3
"""A model that is not there or does not fit will not be at the twentieth time."""


def application(args: Mapping[str, Any], replica: type[Replica] = Replica) -> Any:
    """Return the application for the `args` of a config file. Raises StartError naming what is
    wrong with them."""
    flags = dict(args)
    how = flags.pop(ROUTING, HOW[0])
    if how not in HOW:
        raise StartError(f"'routing' in args must be one of {', '.join(HOW)}. Given: {how!r}.")
    settings = settings_of(flags, os.environ)
    options: dict[str, Any] = {}
    if how == "prefix":
        routing.check()
        options["request_router_config"] = routing.router_config()
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=MOST_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=LEAVING_SECONDS + settings.graceful_termination_timeout,
        health_check_period_s=5.0,
        max_constructor_retry_count=STARTS,
        **options,
    )(serve.ingress()(replica))
    bound = deployment.bind(flags)
    return routing.guided(bound) if how == "prefix" else bound
