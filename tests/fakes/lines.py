"""The lines of a watch, and how they go wrong."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

import msgspec
from aiohttp import web

from tests.fakes.refusals import status
from tests.fakes.store import Kind, Selector, Stored

PIECE = 256 * 1024


class Fault(NamedTuple):
    """Something that goes wrong with one request.

    `status` answers with a refusal at once. Otherwise the answer begins well, and after so many lines of a watch
    (lists: in the middle of the body) `then` happens: "drop" resets the connection, "half" sends half a line and
    does the same, "garbage" sends a line that is not JSON, "error" an ERROR event with `code`, "stall" says nothing
    more, "end" ends the answer, "lines" sends `lines` and then nothing more. An Event is taken; "drop" resets the connection in place of the answer.
    """

    status: int = 0
    reason: str = ""
    message: str = "made to fail"
    retry_after: int = 0
    body: bytes | None = None
    content_type: str = "application/json"
    after: int = 0
    then: str = ""
    code: int = 500
    lines: tuple[str, ...] = ()


class Lines:
    """Sends the lines of one watch, and causes its fault when it is due."""

    def __init__(self, request: web.Request, response: web.StreamResponse, fault: Fault) -> None:
        self.over = False
        self._request, self._response, self._fault = request, response, fault
        self._left = fault.after

    async def send(self, lines: Iterable[bytes]) -> None:
        if not self._fault.then:
            piece, size = [], 0
            for line in lines:
                piece.append(line)
                size += len(line)
                if size >= PIECE:
                    await self._response.write(b"".join(piece))
                    piece, size = [], 0
            if piece:
                await self._response.write(b"".join(piece))
            return
        lines = iter(lines)
        for line in itertools.islice(lines, self._left):
            self._left -= 1
            await self._response.write(line)
        if self._left:
            return
        following = next(lines, None) or event("MODIFIED", b'{"metadata":{"name":"never-seen"}}')
        match self._fault.then:
            case "drop":
                abort(self._request)
            case "half":
                await self._response.write(following[: len(following) // 2])
                abort(self._request)
            case "garbage":
                await self._response.write(b"<html>not found</html>\n")
            case "error":
                error = status(self._fault.code, self._fault.reason, self._fault.message)
                await self._response.write(event("ERROR", error))
            case "lines":
                await self._response.write("".join(f"{line}\n" for line in self._fault.lines).encode())
                await asyncio.Event().wait()
            case "stall":
                await asyncio.Event().wait()
        self.over = True


def abort(request: web.Request) -> NoReturn:
    """Resets the connection of a request."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


def event(type_: str, data: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (type_.encode(), data)


def change(before: Stored | None, after: Stored | None, fits: Selector) -> bytes | None:
    """How a watch with a selector sees a change: what leaves the selector is deleted."""
    was, is_ = fits(before), fits(after)
    if is_:
        assert after
        return event("MODIFIED" if was else "ADDED", after.data)
    if not was:
        return None
    assert before
    if after is None:
        return event("DELETED", before.data)
    version = msgspec.json.decode(after.bare)["metadata"]["resourceVersion"]
    return event("DELETED", before.at(int(version)).data)


def bookmark(kind: Kind, version: int, *, ends_list: bool = False) -> bytes:
    """An object without content, which only marks what the server has sent."""
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if ends_list:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    obj = b'{"kind":"%s","apiVersion":"%s","metadata":%s,%s}' % (
        kind.kind.encode(),
        kind.group.encode(),
        msgspec.json.encode(metadata),
        kind.empty.encode(),
    )
    return event("BOOKMARK", obj)
