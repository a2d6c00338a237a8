"""The two ways in which a request fails: the server answered no, or there was no whole answer."""

import msgspec
from msgspec import Struct

from kubeproxy.api.jsontext import BROKEN


class ApiError(Exception):
    """The server's answer is no: an HTTP status of 300 or more, or an ERROR event of a watch.

    Attributes:
        status: HTTP status code.
        reason: the API's word for it, e.g. "Expired".
        retry_after: seconds the server asks us to wait, or 0.
        too_large: the server does not know the resourceVersion yet, or, after a restore, not any more.
        bad_version: the server cannot read the resourceVersion, which another server gave us.
    """

    def __init__(
        self,
        status: int,
        message: str,
        reason: str = "",
        *,
        retry_after: float = 0.0,
        too_large: bool = False,
        bad_version: bool = False,
    ) -> None:
        super().__init__(f"{message} ({status}{f' {reason}' if reason else ''})")
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.too_large = too_large
        self.bad_version = bad_version

    @property
    def expired(self) -> bool:
        """The resourceVersion or continue token is too old: only a new list helps."""
        return self.status == 410 or self.reason in {"Expired", "Gone"}


class UnreachableError(Exception):
    """No answer, or only a part of one."""


class SilentError(UnreachableError):
    """A watch is open but has sent nothing for longer than it should."""


class _Cause(Struct, frozen=True, gc=False):
    reason: str = ""


class _Details(Struct, frozen=True, gc=False, rename="camel"):
    causes: tuple[_Cause, ...] | None = None
    retry_after_seconds: int = 0


class _ApiStatus(Struct, frozen=True, gc=False):
    """meta/v1 Status."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


def api_error(
    body: bytes | msgspec.Raw, status: int = 0, retry_after: float = 0.0, *, more: str = ""
) -> ApiError:
    """Reads a refusal: a Status object, or whatever text a proxy sent instead.

    Args:
        body: the answer's body or an ERROR event's object.
        status: HTTP status code, 0 to take the Status object's.
        retry_after: seconds of the Retry-After header, or 0.
        more: what to add to the message.
    """
    try:
        status_object = msgspec.json.decode(body, type=_ApiStatus)
    except BROKEN:
        status_object = _ApiStatus(bytes(body)[:200].decode(errors="replace").strip())
    details = status_object.details or _Details()
    too_large = any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes or ())
    return ApiError(
        status or status_object.code or 500,
        (status_object.message or "no message") + more,
        status_object.reason,
        retry_after=retry_after or details.retry_after_seconds,
        too_large=too_large or "Too large resource version" in status_object.message,
        bad_version="resourceVersion: Invalid value" in status_object.message,
    )
