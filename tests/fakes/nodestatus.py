"""Strategic merge patches of the conditions in the status of a Node, whose key is their type."""

import re
from typing import Any

import msgspec
from aiohttp import web

from tests.fakes.refusals import RefusalError, not_found
from tests.fakes.store import KINDS, Store

PATH = re.compile(r"/api/v1/nodes/([^/]+)/status")
_STRATEGIC = "application/strategic-merge-patch+json"
_FIELDS = {"type", "status", "reason", "message", "lastHeartbeatTime", "lastTransitionTime"}


async def take(request: web.Request, store: Store, name: str) -> web.Response:
    """Patches a Node.

    Raises:
        RefusalError: there is no such Node, or it is another kind of request.
    """
    if request.method != "PATCH" or request.content_type != _STRATEGIC:
        raise RefusalError(415, "UnsupportedMediaType", f"the body of the request must be {_STRATEGIC}")
    found = store.objects["Node"].get(("", name))
    if found is None:
        raise not_found(KINDS["Node"], name)
    node: dict[str, Any] = msgspec.json.decode(found.data)
    conditions = {each["type"]: each for each in node.setdefault("status", {}).get("conditions") or ()}
    for patch in msgspec.json.decode(await request.read())["status"]["conditions"]:
        if patch.pop("$patch", "") == "delete":
            conditions.pop(patch["type"], None)
        else:
            assert patch.keys() <= _FIELDS
            assert patch["status"] in {"True", "False", "Unknown"}
            conditions[patch["type"]] = conditions.get(patch["type"], {}) | patch
    node["status"]["conditions"] = list(conditions.values())
    stored = store.put({"kind": "Node", **node})
    return web.Response(body=stored.data, content_type="application/json")
