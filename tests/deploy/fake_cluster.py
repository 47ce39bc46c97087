"""An API server that has one Secret, for what a chart looks up while it is rendered."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

GROUP = "leaderworkerset.x-k8s.io"
KINDS = {
    "/api/v1": ("v1", {"Secret": "secrets", "Service": "services"}),
    f"/apis/{GROUP}/v1": (f"{GROUP}/v1", {"LeaderWorkerSet": "leaderworkersets"}),
}
VERSION = {"groupVersion": f"{GROUP}/v1", "version": "v1"}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}


def _answers(release: str, name: str, value: bytes) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "groups": [{"name": GROUP, "versions": [VERSION], "preferredVersion": VERSION}],
        },
        f"/api/v1/namespaces/default/secrets/{name}": {
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {
                    "meta.helm.sh/release-name": release,
                    "meta.helm.sh/release-namespace": "default",
                },
            },
            "data": {"secret": base64.b64encode(value).decode()},
        },
    }
    for path, (version, kinds) in KINDS.items():
        answers[path] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {"name": plural, "namespaced": True, "kind": kind, "verbs": ["get"]}
                for kind, plural in kinds.items()
            ],
        }
    return answers


@contextlib.contextmanager
def cluster_with_secret(release: str, name: str, value: bytes) -> Iterator[str]:
    """Yield the URL of a cluster whose namespace default has a Secret of a release's."""
    answers = _answers(release, name, value)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.split("?")[0])
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer or NOT_FOUND).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
