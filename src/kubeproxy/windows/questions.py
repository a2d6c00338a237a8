"""Questions about HNS that only a real Windows answers: asks them, and removes what it made.

Each question is one or a few calls with the documents that were sent and returned. Everything is made at
addresses for documentation (RFC 5737), which no host has, over an endpoint that exists or one of its own.
"""

import contextlib
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from kubeproxy.windows import documents
from kubeproxy.windows.calls import Calls, Entity
from kubeproxy.windows.errors import HcnError
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint, HcnLoadBalancer, HcnNetwork, PortMapping

VIP: Final = "192.0.2.1"
OTHER_VIP: Final = "192.0.2.2"
REMOTE: Final = "198.51.100.1"
PORT: Final = 65001
_OURS: Final = frozenset({VIP, OTHER_VIP, REMOTE})
_TCP: Final = 6
_MAC: Final = "02-11-c6-33-64-01"

_ENDPOINT, _BALANCER, _NETWORK = Entity.ENDPOINT, Entity.LOAD_BALANCER, Entity.NETWORK
Document = dict[str, Any]


class HnsExchange(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One call.

    Attributes:
        call: the function.
        sent: the document that was sent, or an id.
        returned: what it returned, a document or an id.
        error: the error, if it failed.
    """

    call: str
    sent: str = ""
    returned: str = ""
    error: str = ""


class HnsFinding(Struct, frozen=True, rename="camel"):
    """The answer to a question.

    Attributes:
        question: the question.
        answer: the answer in words.
        exchanges: the calls.
    """

    question: str
    answer: str
    exchanges: tuple[HnsExchange, ...]


def ask(calls: Calls, network: str, made: Callable[[int, int], socket.socket]) -> Iterator[HnsFinding]:
    """Asks all questions.

    Args:
        calls: the functions of HNS.
        network: the name of the network.
        made: makes a socket of a domain and a type.

    Raises:
        HcnError: HNS does not answer at all.
        LookupError: there is no such network.
    """
    asking = _Asking(calls, made)
    try:
        yield from asking.about(network)
    finally:
        asking.remove()
    left = asking.left()
    yield HnsFinding(
        "Is everything removed?", "yes" if not left else f"no: {', '.join(left)}", asking.taken()
    )


class _Asking:
    def __init__(self, calls: Calls, made: Callable[[int, int], socket.socket]) -> None:
        self._calls = calls
        self._socket = made
        self._exchanges: list[HnsExchange] = []

    def about(self, name: str) -> Iterator[HnsFinding]:
        """The questions, one after another."""
        version = self._call("HNSCall", "/globals/version", self._calls.version)
        yield self._finding("Which version is this?", version or "none")
        network = self._network(name)
        yield self._finding("Which forms do texts have?", f"network {network.name} is {network.id}")
        endpoint = self._endpoint(network)
        if endpoint is None:
            yield self._finding("Can an endpoint be created?", "no: nothing else can be asked")
            return
        yield self._finding("Can an endpoint be created without Dns and Health?", "see the documents")
        for question in (self._names, self._modify, self._without_endpoint, self._listener):
            yield from question(network, endpoint)

    def _names(self, _: HcnNetwork, endpoint: str) -> Iterator[HnsFinding]:
        ident = str(uuid.uuid4())
        found = self._balancer(_settings(endpoint) | {"Name": "kube-proxy", "Owner": "kube-proxy"}, ident)
        kept = [field for field in ("Name", "Owner") if found is not None and found.get(field)]
        answer = "refused" if found is None else ", ".join(kept) or "neither is kept"
        yield self._finding("Are Name and Owner of a load balancer kept?", answer)
        own = self._balancer(_settings(endpoint), ident) if found is None else found
        same = own is not None and documents.read_id(json.dumps(own)) == ident
        yield self._finding("Is an id of ours taken?", "yes" if same else "no")
        self.remove(_BALANCER)

    def _modify(self, _: HcnNetwork, endpoint: str) -> Iterator[HnsFinding]:
        before = _settings(endpoint)
        for what, changed in (
            ("the address", before | {"FrontendVIPs": [OTHER_VIP]}),
            ("the port", _settings(endpoint, port=PORT + 1)),
            ("the flags", before | {"Flags": 1}),
            ("the source VIP", before | {"SourceVIP": OTHER_VIP}),
        ):
            found = self._balancer(before)
            if found is not None:
                ident = documents.read_id(json.dumps(found))
                after = self._modified(ident, changed)
                answer = _judged(found, after, changed)
            else:
                answer = "a load balancer cannot be created"
            yield self._finding(f"Does Modify change {what}?", answer)
            self.remove(_BALANCER)

    def _without_endpoint(self, _: HcnNetwork, endpoint: str) -> Iterator[HnsFinding]:
        found = self._balancer(_settings(endpoint))
        answer = "a load balancer cannot be created"
        if found is not None:
            ident = documents.read_id(json.dumps(found))
            self._delete(_ENDPOINT, endpoint)
            after = self._read(_BALANCER, ident)
            answer = "it is gone, too" if after is None else f"it names {after.get('HostComputeEndpoints')}"
        yield self._finding("What becomes of a load balancer whose endpoint is deleted?", answer)
        self.remove(_BALANCER)

    def _listener(self, network: HcnNetwork, _: str) -> Iterator[HnsFinding]:
        endpoint = self._endpoint(network)
        if endpoint is None:
            return
        with contextlib.closing(self._socket(socket.AF_INET, socket.SOCK_STREAM)) as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            port: int = server.getsockname()[1]
            found = self._balancer(_settings(endpoint, port=port))
        answer = "yes" if found is not None else "no"
        yield self._finding("Is a port taken that a program of the host listens on?", answer)

    # Objects

    def _network(self, name: str) -> HcnNetwork:
        for ident in sorted(documents.read_ids(self._calls.enumerate(_NETWORK, documents.query()))):
            text = self._text(_NETWORK, ident)
            found = documents.read_network(text) if text else None
            if found is not None and found.name.lower() == name.lower():
                return found
        raise LookupError(f"HNS has no network {name}; Get-HnsNetwork lists them")

    def _endpoint(self, network: HcnNetwork) -> str | None:
        """The id of a remote endpoint that was made, with a document as short as possible."""
        wanted = HcnEndpoint(network.id, (REMOTE,), _MAC, REMOTE_ENDPOINT, REMOTE if network.overlay else "")
        whole = json.loads(documents.endpoint_settings(wanted))
        for without in (("Dns", "Health"), ()):
            document = {key: value for key, value in whole.items() if key not in without}
            ident = self._created(_ENDPOINT, document, network.id)
            if ident:
                return ident
        return None

    def _balancer(self, document: Document, ident: str = "") -> Document | None:
        made = self._created(_BALANCER, document, ident=ident)
        return self._read(_BALANCER, made) if made else None

    def _created(self, entity: Entity, document: Document, network: str = "", ident: str = "") -> str:
        """The id of what was created; "" if it was refused."""
        settings, function = json.dumps(document), f"HcnCreate{entity.value}"

        def create() -> str:
            if entity is _BALANCER:
                handle = self._calls.create_load_balancer(ident, settings)
            else:
                at = self._calls.open(_NETWORK, network)
                try:
                    handle = self._calls.create_endpoint(at, ident, settings)
                finally:
                    self._calls.close(_NETWORK, at)
            try:
                return documents.read_id(self._calls.query(entity, handle, documents.query()))
            finally:
                self._calls.close(entity, handle)

        return self._call(function, settings, create)

    def _read(self, entity: Entity, ident: str) -> Document | None:
        text = self._text(entity, ident)
        found: Document | None = json.loads(text) if text else None
        return found

    def _text(self, entity: Entity, ident: str) -> str:
        def read() -> str:
            handle = self._calls.open(entity, ident)
            try:
                return self._calls.query(entity, handle, documents.query())
            finally:
                self._calls.close(entity, handle)

        return self._call(f"HcnQuery{entity.value}Properties", ident, read)

    def _modified(self, ident: str, document: Document) -> Document | None:
        settings = json.dumps(document)

        def modify() -> str:
            handle = self._calls.open(_BALANCER, ident)
            try:
                self._calls.modify_load_balancer(handle, settings)
            finally:
                self._calls.close(_BALANCER, handle)
            return "done"

        return self._read(_BALANCER, ident) if self._call("HcnModifyLoadBalancer", settings, modify) else None

    def _delete(self, entity: Entity, ident: str) -> None:
        def delete() -> str:
            self._calls.delete(entity, ident)
            return "done"

        self._call(f"HcnDelete{entity.value}", ident, delete)

    def remove(self, *kinds: Entity) -> None:
        """Deletes what was made; twice, because HNS may refuse it once."""
        for _ in range(2):
            for entity in kinds or (_BALANCER, _ENDPOINT):
                for ident in self._there(entity):
                    self._delete(entity, ident)

    def left(self) -> list[str]:
        """What could not be removed."""
        return [
            f"{entity.value} {ident}" for entity in (_BALANCER, _ENDPOINT) for ident in self._there(entity)
        ]

    def _there(self, entity: Entity) -> list[str]:
        """The ids of what was made, found by its addresses: its creation may have failed to return the id."""
        found = []
        for ident in sorted(documents.read_ids(self._calls.enumerate(entity, documents.query()))):
            try:
                handle = self._calls.open(entity, ident)
                try:
                    text = self._calls.query(entity, handle, documents.query())
                finally:
                    self._calls.close(entity, handle)
                if _OURS & _addresses(entity, text):
                    found.append(ident)
            except (HcnError, ValueError):  # it is gone, or of a kind that is not made here
                continue
        return found

    # Exchanges

    def _call(self, function: str, sent: str, work: Callable[[], str]) -> str:
        """What a call returns; "" if it failed."""
        try:
            returned = work()
        except (HcnError, ValueError) as e:
            self._exchanges.append(HnsExchange(function, sent, error=str(e)))
            return ""
        self._exchanges.append(HnsExchange(function, sent, returned))
        return returned

    def taken(self) -> tuple[HnsExchange, ...]:
        """The calls since the last question."""
        found, self._exchanges = tuple(self._exchanges), []
        return found

    def _finding(self, question: str, answer: str) -> HnsFinding:
        return HnsFinding(question, answer, self.taken())


def _addresses(entity: Entity, text: str) -> set[str]:
    """The addresses of an object."""
    if entity is _ENDPOINT:
        return set(documents.read_endpoint(text).addresses)
    return set(documents.read_load_balancer(text).vips)


def _settings(endpoint: str, port: int = PORT) -> Document:
    mapping = PortMapping(_TCP, port, port)
    found: Document = json.loads(
        documents.load_balancer_settings(HcnLoadBalancer((endpoint,), (VIP,), (mapping,)))
    )
    return found


def _judged(before: Document, after: Document | None, wanted: Document) -> str:
    """What Modify did, from the load balancer before and after."""
    if after is None:
        return "it is refused"
    fields = ("FrontendVIPs", "PortMappings", "Flags", "SourceVIP")
    differing = [field for field in fields if before.get(field) != after.get(field)]
    asked = [field for field in fields if wanted.get(field) != before.get(field)]
    if set(differing) & set(asked):
        return "yes"
    return "it reports success and changes nothing" if not differing else f"it changes {', '.join(differing)}"
