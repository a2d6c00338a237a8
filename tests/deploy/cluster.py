"""An API server as far as Helm's `lookup` asks one: discovery, and one DaemonSet."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

_KINDS = {
    "v1": {"ServiceAccount": True, "ConfigMap": True},
    "apps/v1": {"DaemonSet": True},
    "rbac.authorization.k8s.io/v1": {"ClusterRole": False, "ClusterRoleBinding": False},
}
"""The kinds it knows, by their group; whether they have a namespace."""


def _resources(group: str) -> dict[str, Any]:
    kinds = [
        {
            "name": f"{kind.lower()}s",
            "singularName": kind.lower(),
            "namespaced": namespaced,
            "kind": kind,
            "verbs": ["get"],
        }
        for kind, namespaced in _KINDS[group].items()
    ]
    return {"kind": "APIResourceList", "groupVersion": group, "resources": kinds}


def _group(group: str) -> dict[str, Any]:
    version = {"groupVersion": group, "version": "v1"}
    return {"name": group.removesuffix("/v1"), "versions": [version], "preferredVersion": version}


_DISCOVERY: dict[str, Any] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(group) for group in _KINDS if "/" in group],
    },
    **{f"/{'apis' if '/' in group else 'api'}/{group}": _resources(group) for group in _KINDS},
}
_MISSING = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@contextlib.contextmanager
def with_kube_proxy(nodes: int | None) -> Iterator[str]:
    """The URL of a server whose DaemonSet kube-proxy is to run on so many nodes; None: it has no such DaemonSet."""
    pages = dict(_DISCOVERY)
    if nodes is not None:
        pages["/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"] = {
            "kind": "DaemonSet",
            "apiVersion": "apps/v1",
            "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
            "status": {"desiredNumberScheduled": nodes},
        }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            body = json.dumps(page or _MISSING).encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: tests are quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
