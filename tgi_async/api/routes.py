"""All operations of a server, and their routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp

from tgi_async.api import status
from tgi_async.api.auth import Keyring, RequireKey
from tgi_async.api.chat import handler as chat
from tgi_async.api.cloud import kserve, sagemaker, vertex
from tgi_async.api.completions import handler as completions
from tgi_async.api.endpoint import Endpoint, get_endpoint
from tgi_async.api.generate import handler as generate
from tgi_async.api.limits import Limits
from tgi_async.api.openapi.docs import Docs
from tgi_async.api.openapi.document import document
from tgi_async.api.operation import Get, Operation, Post
from tgi_async.api.service import Service
from tgi_async.api.tokenize import chat as chat_tokenize
from tgi_async.api.tokenize import handler as tokenize
from tgi_async.errors import StartError


def operations(limits: Limits, docs: Docs) -> list[Operation]:
    """Return the operations of a server with these limits, but for those that Vertex AI names."""
    dialect = limits.dialect
    return [
        *generate.OPERATIONS,
        *tokenize.operations(dialect),
        chat_tokenize.OPERATION,
        chat.operation(dialect),
        completions.operation(dialect),
        *status.MODELS,
        sagemaker.operation(dialect),
        vertex.OPERATION,
        *status.OPERATE,
        *docs.operations,
        *(kserve.OPERATIONS if limits.kserve else ()),
    ]


def routes(service: Service, environment: Mapping[str, str]) -> list[Route]:
    """Return all routes. `environment` has the names that Vertex AI gives to two of them.

    Raises:
        StartError: one of these names is no path, or the root path is the beginning of one.
    """
    docs = Docs()
    found = operations(service.limits, docs)
    root_path = service.limits.root_path or ""
    docs.write(document(found, service.limits, service.build.version), root_path)
    # Before the others: Vertex AI may name an existing route, and sends no key.
    named: list[Operation] = []
    if path := _path(environment, "AIP_HEALTH_ROUTE"):
        named.append(status.health_operation(path))
    if path := _path(environment, "AIP_PREDICT_ROUTE"):
        named.append(replace(vertex.OPERATION, path=path, keyed=False))
    for operation in (*named, *found):
        if root_path and f"{operation.path}/".startswith(f"{root_path}/"):
            raise StartError(
                f"--root-path must not be the beginning of one of the server's own paths. Given: "
                f"{root_path}, as in {operation.path}."
            )
    return [_route(service, operation) for operation in [*named, *found]]


def _route(service: Service, operation: Operation) -> Route:
    if isinstance(operation, Get):
        return Route(operation.path, get_endpoint(service, operation), methods=["GET"])
    assert isinstance(operation, Post)
    return Route(operation.path, _guarded(service, operation), methods=["POST"])


def _guarded(service: Service, operation: Post[Any]) -> ASGIApp:
    endpoint = Endpoint(service, operation)
    limits = service.limits
    if not operation.needs_key(limits):
        return endpoint
    keys = Keyring(
        limits.api_key or None, limits.key_file, any_case=limits.dialect.folds_case_of_key
    )
    return RequireKey(endpoint, keys, error_form=operation.error_form(limits.dialect))


def _path(environment: Mapping[str, str], name: str) -> str | None:
    path = environment.get(name)
    if path and not path.startswith("/"):
        raise StartError(
            f"The environment variable {name} must be a path that begins with a slash. "
            f"Given: {path!r}."
        )
    return path
