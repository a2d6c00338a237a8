"""Lists, and pages of them: what a continue token stands for, and when it is too old."""

import base64
from typing import Any

import msgspec

from tests.fakes.refusals import RefusalError, bad_request
from tests.fakes.store import Kind, Selector, Store, Stored

TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the"
    " continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing"
    " with the provided token results in an inconsistent list - objects that were created, modified, or deleted between"
    " the time the first chunk was returned and now may show up in the list."
)
_ANY_VERSION = -1


class Lists:
    """Answers lists of a store, and remembers what was there when their first pages were sent.

    Attributes:
        cached: as a server with a watch cache: lists at resourceVersion 0 are whole, whatever their limit, and pages outlive a
            compaction.
    """

    def __init__(self, store: Store) -> None:
        self.cached = False
        self._store = store
        self._kept: dict[str, list[Stored]] = {}

    def page(self, kind: Kind, fits: Selector, query: dict[str, str]) -> bytes:
        """A list, or a page of one.

        Raises:
            RefusalError: the token is too old, or is none.
        """
        limit = int(query.get("limit", 0))
        given = query.get("continue", "")
        version, found = self._continued(kind, fits, given, query) if given else self._first(kind, fits)
        if self.cached and query.get("resourceVersion") == "0":
            limit = 0
        shown, rest = (found[:limit], found[limit:]) if limit else (found, [])
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if rest:
            token = _encode(version, shown[-1].key)
            self._kept[token] = rest
            metadata["continue"] = token
            if not fits.labels and not fits.fields:
                metadata["remainingItemCount"] = len(rest)
        return b'{"kind":"%sList","apiVersion":"%s","metadata":%s,"items":[%s]}\n' % (
            kind.kind.encode(),
            kind.group.encode(),
            msgspec.json.encode(metadata),
            b",".join(stored.bare for stored in shown),
        )

    def _first(self, kind: Kind, fits: Selector) -> tuple[int, list[Stored]]:
        found = [stored for _, stored in sorted(self._store.objects[kind.kind].items()) if fits(stored)]
        return self._store.version, found

    def _continued(
        self, kind: Kind, fits: Selector, token: str, query: dict[str, str]
    ) -> tuple[int, list[Stored]]:
        if query.get("resourceVersion"):
            raise bad_request("specifying resource version is not allowed when using continue")
        version, key = _decode(token)
        if version == _ANY_VERSION:
            now, found = self._first(kind, fits)
            return now, [stored for stored in found if stored.key > key]
        if token not in self._kept or (version < self._store.oldest and not self.cached):
            raise RefusalError(410, "Expired", TOO_OLD, metadata={"continue": _encode(_ANY_VERSION, key)})
        return version, self._kept[token]


def _encode(version: int, key: tuple[str, str]) -> str:
    start = "/".join(filter(None, key)) + "\0"
    plain = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(plain).decode().rstrip("=")


def _decode(token: str) -> tuple[int, tuple[str, str]]:
    plain = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    try:
        found = msgspec.json.decode(plain)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request(
            "invalid continue token: continue key is not valid: invalid character"
            f" '{chr(plain[0])}' looking for beginning of value"
        ) from None
    namespace, _, name = found["start"].rstrip("\0").rpartition("/")
    return found["rv"], (namespace, name)
