"""The discovery documents of an API server."""

from typing import Any

import msgspec
from aiohttp import web

from tests.fakes.refusals import unknown
from tests.fakes.store import KINDS

VERSION = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "$Format:%H$",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.26.4",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def discovery(path: str, unserved: set[str]) -> web.Response:
    """Answers what clients ask about the server: its health, its version, its groups and resources."""
    served = [kind for kind in KINDS.values() if kind.kind not in unserved]
    groups = sorted({kind.group for kind in served} - {"v1"})
    answer: dict[str, Any]
    if path in ("/healthz", "/livez", "/readyz"):
        return web.Response(text="ok", headers={"X-Content-Type-Options": "nosniff"})
    if path == "/version":
        answer = VERSION
    elif path == "/api":
        answer = {"kind": "APIVersions", "versions": ["v1"]}
    elif path == "/apis":
        versions = [{"groupVersion": group, "version": group.partition("/")[2]} for group in groups]
        named = [
            {"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v}
            for v in versions
        ]
        answer = {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    elif resources := [kind for kind in served if kind.path == path]:
        answer = {
            "kind": "APIResourceList",
            "groupVersion": resources[0].group,
            "resources": [
                {
                    "name": kind.plural,
                    "singularName": kind.kind.lower(),
                    "namespaced": kind.namespaced,
                    "kind": kind.kind,
                    "shortNames": ["svc"] if kind.kind == "Service" else [],
                    "verbs": ["create", "delete", "get", "list", "update", "watch"],
                }
                for kind in resources
            ],
        }
    else:
        raise unknown() if path.startswith("/api") else web.HTTPNotFound(text="404 page not found\n")
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
