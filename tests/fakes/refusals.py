"""How an API server refuses: Status objects, as kube-apiserver writes them (tests/oracle/apiserver)."""

from typing import Any

import msgspec
from aiohttp import web

from tests.fakes.store import Kind


def status(
    code: int,
    reason: str,
    message: str,
    details: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """A meta/v1 Status of a failure."""
    found: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": metadata or {},
        "status": "Failure",
        "message": message,
    }
    if reason:
        found["reason"] = reason
    if details is not None:
        found["details"] = details
    return msgspec.json.encode({**found, "code": code})


class RefusalError(Exception):
    """Ends a request with a Status object."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.body = status(code, reason, message, details, metadata)
        self.retry_after = retry_after

    def response(self) -> web.Response:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.code == 403:
            headers["X-Content-Type-Options"] = "nosniff"
        return web.Response(
            body=self.body, status=self.code, content_type="application/json", headers=headers
        )


def _details(kind: Kind, name: str = "") -> dict[str, Any]:
    found = {"name": name, "group": kind.api_group, "kind": kind.plural}
    return {key: value for key, value in found.items() if value}


def forbidden(user: str, verb: str, kind: Kind, namespace: str, name: str) -> RefusalError:
    """The user may not do that."""
    what = f'{kind.qualified} "{name}"' if name else kind.qualified
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = (
        f'{what} is forbidden: User "{user}" cannot {verb} resource "{kind.plural}" in API group'
        f' "{kind.api_group}" {where}'
    )
    return RefusalError(403, "Forbidden", message, _details(kind, name))


def not_found(kind: Kind, name: str) -> RefusalError:
    """There is no such object."""
    return RefusalError(404, "NotFound", f'{kind.qualified} "{name}" not found', _details(kind, name))


def exists(kind: Kind, name: str) -> RefusalError:
    """There is such an object already."""
    message = f'{kind.qualified} "{name}" already exists'
    return RefusalError(409, "AlreadyExists", message, _details(kind, name))


def unknown() -> RefusalError:
    """There is no such resource."""
    return RefusalError(404, "NotFound", "the server could not find the requested resource", {})


def invalid(what: str, details: dict[str, Any], field: str, reason: str, message: str) -> RefusalError:
    """A field of an object, or of the request's options, is wrong."""
    causes = [{"reason": reason, "message": message, "field": field}]
    return RefusalError(
        422, "Invalid", f"{what} is invalid: {field}: {message}", {**details, "causes": causes}
    )


def bad_request(message: str) -> RefusalError:
    return RefusalError(400, "BadRequest", message)


def too_large(version: int, current: int) -> RefusalError:
    """The server is not at that resourceVersion yet."""
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    return RefusalError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {version}, current: {current}",
        {"causes": causes, "retryAfterSeconds": 1},
        retry_after=1,
    )


def bad_version(given: str) -> RefusalError:
    """That is no resourceVersion."""
    message = (
        f'resourceVersion: Invalid value: "{given}": strconv.ParseUint: parsing "{given}": invalid syntax'
    )
    return RefusalError(500, "", message)


def not_acceptable() -> RefusalError:
    """The client accepts nothing that the server can send."""
    forms = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
    more = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
    message = f"406: Not Acceptable\n\nAvailable representations: {forms}, {more}"
    return RefusalError(406, "NotAcceptable", message, {})
