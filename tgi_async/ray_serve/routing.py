"""Requests to the replicas that have their prefixes, in Serve's HAProxy mode.

HAProxy asks an application of ours, `Guide`, for the replica of each POST, and gives it the head of
the body. That it can be asked, and how it finds the replicas' addresses, is not public in Ray, so
that this is for the version of Ray that it was tested with. It is left out by default: then HAProxy
takes the replica with the fewest connections.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve._private import constants
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tgi_async.errors import StartError
from tgi_async.ray_serve.prefixes import PrefixTable, keys_of

log = logging.getLogger(__name__)

TESTED = "2.60."
NAME = "guide"
LOAD = "requests"
"""Under which a replica reports its load to routers."""
REPORT_SECONDS = 1.0


class PrefixRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Chooses among the replicas by a request's keys, which are its only argument."""

    def initialize_state(self, **_: Any) -> None:
        self._table = PrefixTable()
        self._sent: dict[str, tuple[Any, int]] = {}
        """Of each replica its last report, and how many requests it was sent since."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Sequence[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        keys: list[int] = []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            keys = pending_request.kwargs.get("keys", [])
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {name: self._load(name, one.routing_stats) for name, one in by_name.items()}
        self._sent = {name: self._sent[name] for name in by_name}
        chosen = self._table.choose(keys, loads).replica
        report, n_sent = self._sent[chosen]
        self._sent[chosen] = (report, n_sent + 1)
        others = [one for name, one in by_name.items() if name != chosen]
        return [[by_name[chosen]], others] if others else [[by_name[chosen]]]

    def _load(self, name: str, stats: Any) -> float:
        report, n_sent = self._sent.get(name, (None, 0))
        if stats is not report:
            report, n_sent = stats, 0
        self._sent[name] = (report, n_sent)
        return float((stats or {}).get(LOAD, 0)) + n_sent


class Guide:
    """Answers HAProxy's question where a request goes."""

    def __init__(self, server: Any) -> None:
        self._server = server

    async def __serve_build_asgi_app__(self) -> Starlette:
        self._server._init()
        return Starlette(routes=[Route("/internal/route", self._route, methods=["POST"])])

    async def _route(self, request: Request) -> Response:
        # The one header that HAProxy passes on.
        tenant = request.headers.get(constants.SERVE_SESSION_ID, "")
        keys = keys_of(await request.body(), tenant)
        async with self._server.choose_replica(keys=keys, _reserve=False) as selection:
            replica = selection._replica
            host, port = replica.backend_http_endpoint
            name = replica.replica_id.to_full_id_str()
        return JSONResponse({"host": host, "port": port, "replica_id": name})


def check() -> None:
    """Raise StartError where requests cannot be routed by prefix."""
    if not ray.__version__.startswith(TESTED):
        raise StartError(
            f"`routing: prefix` was tested with Ray {TESTED}* and uses what is not public there. "
            f"Here is {ray.__version__}. Leave it out, or install that version."
        )
    for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"):
        if not getattr(constants, name, False):
            raise StartError(
                f"`routing: prefix` needs {name}=1 in the environment in which Ray is started. "
                f"Given: {os.environ.get(name, 'nothing')}."
            )


def router_config() -> Any:
    """Return the part of the replicas' deployment that chooses one by a request's keys."""
    return RequestRouterConfig(
        request_router_class=PrefixRouter, request_routing_stats_period_s=REPORT_SECONDS
    )


def guided(application: Any) -> Any:
    """Return `application` with a guide for HAProxy."""
    guide = serve.deployment(name=NAME, max_ongoing_requests=1000)(serve.ingress()(Guide))
    return application._with_ingress_request_router(guide.bind(application))
