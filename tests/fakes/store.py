"""What the fake API server knows: objects by kind, one resourceVersion for all, and the changes that led here.

Objects are encoded once, when they are put, so that a list of 20,000 costs a join. Nothing is validated: an object
may be broken in any way a test wants. All calls belong to one thread; `changed` wakes whoever watches.
"""

import asyncio
import bisect
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import msgspec


class Kind(NamedTuple):
    """A kind of object and where it is served."""

    kind: str
    group: str  # "v1" or "discovery.k8s.io/v1"
    plural: str
    namespaced: bool = True
    own_fields: tuple[str, ...] = ()
    empty: str = '"spec":{},"status":{}'  # what an object without content has beside its metadata

    @property
    def api_group(self) -> str:
        """The group without its version; empty for the core group."""
        return self.group.rpartition("/")[0]

    @property
    def qualified(self) -> str:
        """The resource as messages name it."""
        return f"{self.plural}.{self.api_group}" if self.api_group else self.plural

    @property
    def fields(self) -> frozenset[str]:
        """What field selectors may name."""
        return frozenset({"metadata.name", "metadata.namespace", *self.own_fields})

    @property
    def path(self) -> str:
        """The group version's path."""
        return f"/api{'' if self.group == 'v1' else 's'}/{self.group}"


_SYSTEM = (
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
)
_EMPTY_NODE = (
    '"spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{'
    + ",".join(f'"{name}":""' for name in _SYSTEM)
    + "}}"
)

KINDS = {
    kind.kind: kind
    for kind in (
        Kind(
            "Service",
            "v1",
            "services",
            own_fields=("spec.clusterIP",),
            empty='"spec":{},"status":{"loadBalancer":{}}',
        ),
        Kind("Endpoints", "v1", "endpoints", empty='"subsets":null'),
        Kind("Node", "v1", "nodes", namespaced=False, empty=_EMPTY_NODE),
        Kind(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            "endpointslices",
            empty='"addressType":"","endpoints":null,"ports":null',
        ),
        Kind("ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", namespaced=False),
    )
}


class Stored(NamedTuple):
    """An object as it was put.

    Attributes:
        key: namespace and name.
        head: its kind and apiVersion, encoded.
        bare: all the rest, encoded: so objects are in lists.
        labels: its labels.
        fields: what field selectors see.
    """

    key: tuple[str, str]
    head: bytes
    bare: bytes
    labels: dict[str, Any]
    fields: dict[str, str]

    @property
    def data(self) -> bytes:
        """The whole object, encoded: so it is in watches and by itself."""
        return self.head[:-1] + b"," + self.bare[1:]

    def at(self, version: int) -> Self:
        """The object with another resourceVersion."""
        obj = msgspec.json.decode(self.bare)
        obj["metadata"]["resourceVersion"] = str(version)
        return self._replace(bare=msgspec.json.encode(obj))


class Change(NamedTuple):
    """A step of history; `before` or `after` is None where the object did not exist."""

    version: int
    before: Stored | None
    after: Stored | None


class Backup(NamedTuple):
    """A store as it was once."""

    version: int
    objects: dict[str, dict[tuple[str, str], Stored]]


class Store:
    """Objects, and what happened to them."""

    def __init__(self) -> None:
        self.version = 1
        self.oldest = 1  # changes up to here are forgotten
        self.objects: dict[str, dict[tuple[str, str], Stored]] = {kind: {} for kind in KINDS}
        self.history: dict[str, list[Change]] = {kind: [] for kind in KINDS}
        self._waiting: set[asyncio.Event] = set()

    def put(self, obj: dict[str, Any]) -> Stored:
        """Creates or replaces an object given as its manifest."""
        kind = KINDS[obj["kind"]]
        given = obj.get("metadata") or {}
        key = (str(given.get("namespace", "default")) if kind.namespaced else "", str(given["name"]))
        self.version += 1
        metadata = {
            "uid": f"uid-{kind.plural}-{'-'.join(key)}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **given,
            "resourceVersion": str(self.version),
        }
        if key[0]:
            metadata["namespace"] = key[0]
        head = {"kind": obj["kind"], "apiVersion": obj.get("apiVersion", kind.group)}
        rest = {key: value for key, value in obj.items() if key not in head}
        bare = msgspec.json.encode({**rest, "metadata": metadata})
        spec = obj.get("spec")
        fields = {"metadata.name": key[1], "metadata.namespace": key[0]}
        if kind.kind == "Service":
            fields["spec.clusterIP"] = str(spec.get("clusterIP", "")) if isinstance(spec, dict) else ""
        labels = given.get("labels")
        stored = Stored(
            key, msgspec.json.encode(head), bare, labels if isinstance(labels, dict) else {}, fields
        )
        before = self.objects[kind.kind].get(key)
        self.objects[kind.kind][key] = stored
        self._happened(kind.kind, Change(self.version, before, stored))
        return stored

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Removes an object."""
        key = (namespace if KINDS[kind].namespaced else "", name)
        before = self.objects[kind].pop(key)
        self.version += 1
        # A deletion bears its own version.
        self._happened(kind, Change(self.version, before.at(self.version), None))

    def select(self, kind: str, labels: str, fields: str) -> list[Stored]:
        """The objects that fit both selectors, by name."""
        fits = selector(labels, fields)
        return [stored for _, stored in sorted(self.objects[kind].items()) if fits(stored)]

    def since(self, kind: str, version: int) -> list[Change]:
        """The changes after a version."""
        history = self.history[kind]
        return history[bisect.bisect_right(history, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forgets how it came to be: watches at older versions get 410."""
        self.oldest = self.version
        for history in self.history.values():
            history.clear()

    def backup(self) -> Backup:
        """Keeps the objects as they are now."""
        return Backup(self.version, {kind: dict(objects) for kind, objects in self.objects.items()})

    def restore(self, backup: Backup) -> None:
        """Becomes what it was, version included; what happened since never did."""
        self.version = backup.version
        self.objects = {kind: dict(objects) for kind, objects in backup.objects.items()}
        self.compact()

    def wake(self) -> None:
        """Makes every watcher look."""
        for event in self._waiting:
            event.set()

    async def changed(self, seconds: float) -> None:
        """Waits until something happens, at most so long."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)

    def _happened(self, kind: str, change: Change) -> None:
        self.history[kind].append(change)
        self.wake()


class Selector(NamedTuple):
    """Label and field terms as (key, operator, value), all of which must hold."""

    labels: tuple[tuple[str, str, str], ...]
    fields: tuple[tuple[str, str, str], ...]

    def __call__(self, stored: Stored | None) -> bool:
        return stored is not None and all(
            _holds(term, values)
            for terms, values in ((self.labels, stored.labels), (self.fields, stored.fields))
            for term in terms
        )


def selector(labels: str, fields: str) -> Selector:
    """Parses both selectors: `!a,b=c,d!=e,f`.

    Raises:
        ValueError: they cannot be parsed.
    """
    return Selector(tuple(_terms(labels)), tuple(_terms(fields)))


def _terms(text: str) -> Iterator[tuple[str, str, str]]:
    for term in filter(None, text.split(",")):
        if term.startswith("!!"):
            raise ValueError("unable to parse requirement: found '!', expected: identifier")
        if term.startswith("!"):
            yield term[1:], "absent", ""
        elif "!=" in term:
            key, _, value = term.partition("!=")
            yield key, "!=", value
        elif "=" in term:
            key, _, value = term.replace("==", "=").partition("=")
            yield key, "=", value
        else:
            yield term, "present", ""


def _holds(term: tuple[str, str, str], values: dict[str, Any]) -> bool:
    key, operator, value = term
    match operator:
        case "absent":
            return key not in values
        case "present":
            return key in values
        case "=":
            return bool(values.get(key) == value)
        case _:
            return bool(values.get(key) != value)
