"""The Serve application: the replicas' deployment, with defaults that fit the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from tgi_async.ray_serve.flags import settings_of
from tgi_async.ray_serve.replica import Replica

NAME = "server"
"""Of the deployment, by which a config file sets its options."""
MOST_ONGOING_REQUESTS = 16_384
"""The engine has its own limit and its own fair queue, in front of which nothing should wait."""
LEAVING_SECONDS = 35.0
"""What Serve spends of the time to stop before it waits for requests, at most: its load balancers
learn of it meanwhile."""
STARTS = 3
"""A model that is not there or does not fit will not be at the twentieth time."""


def application(args: Mapping[str, Any], replica: type[Replica] = Replica) -> Any:
    """Return the application for the `args` of a config file. Raises StartError naming what is
    wrong with them."""
    settings = settings_of(args, os.environ)
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=MOST_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=LEAVING_SECONDS + settings.graceful_termination_timeout,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        max_constructor_retry_count=STARTS,
    )(serve.ingress()(replica))
    return deployment.bind(dict(args))
