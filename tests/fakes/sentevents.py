"""The Events that clients send (events.k8s.io/v1), and what validation refuses in them."""

import re
from typing import Any

import msgspec
from aiohttp import web

from tests.fakes.refusals import RefusalError, exists, invalid, not_found
from tests.fakes.store import Kind

EVENTS = Kind("Event", "events.k8s.io/v1", "events")
NAMESPACES = Kind("Namespace", "v1", "namespaces", namespaced=False)
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_PATCH = "application/merge-patch+json"


async def take(
    request: web.Request,
    events: list[dict[str, Any]],
    namespace: str,
    name: str,
    namespaces: set[str] | None,
) -> web.Response:
    """Creates an Event among others, or patches one.

    Raises:
        RefusalError: it is invalid, or is there already, or is not there.
    """
    given = msgspec.json.decode(await request.read())
    if request.method == "POST" and not name:
        if namespaces is not None and namespace not in namespaces:
            raise not_found(NAMESPACES, namespace)
        _check(given, namespace)
        name = given["metadata"]["name"]
        if _find(events, namespace, name) is not None:
            raise exists(EVENTS, name)
        events.append(given)
        return _answer(given, 201)
    if request.method != "PATCH" or request.content_type != _PATCH:
        raise RefusalError(415, "UnsupportedMediaType", f"the body of the request must be {_PATCH}")
    found = _find(events, namespace, name)
    if found is None:
        raise not_found(EVENTS, name)
    patched = {**events[found], **given}
    _check(patched, namespace)
    events[found] = patched
    return _answer(patched)


def _answer(event: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(event), status=status, content_type="application/json")


def _find(events: list[dict[str, Any]], namespace: str, name: str) -> int | None:
    wanted = {"name": name, "namespace": namespace}
    return next((i for i, e in enumerate(events) if wanted.items() <= e["metadata"].items()), None)


def _check(event: dict[str, Any], namespace: str) -> None:
    if field := wrong_with(event, namespace):
        name = event["metadata"]["name"]
        empty = event.get(field) == ""
        reason, message = (
            ("FieldValueRequired", "Required value") if empty else ("FieldValueInvalid", "Invalid value")
        )
        raise invalid(f'Event "{name}"', {"name": name, "kind": "Event"}, field, reason, message)


def wrong_with(event: dict[str, Any], namespace: str) -> str:
    """Which field of an Event an API server would refuse; "" for none."""
    about, series = (
        event["regarding"],
        event.get("series", {"count": 2, "lastObservedTime": event["eventTime"]}),
    )
    good = {
        "metadata.namespace": namespace
        == event["metadata"]["namespace"]
        == about.get("namespace", "default"),
        "metadata.name": re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", event["metadata"]["name"]),
        "eventTime": _MICRO_TIME.fullmatch(event["eventTime"]),
        "reportingController": event["reportingController"],
        "reportingInstance": 0 < len(event["reportingInstance"]) <= 128,
        "action": 0 < len(event["action"]) <= 128,
        "reason": 0 < len(event["reason"]) <= 128,
        "note": len(event["note"]) <= 1024,
        "type": event["type"] in {"Normal", "Warning"},
        "series.count": series["count"] >= 2,
        "series.lastObservedTime": _MICRO_TIME.fullmatch(series["lastObservedTime"]),
    }
    return next((field for field, fine in good.items() if not fine), "")
