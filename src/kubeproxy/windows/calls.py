"""The functions of computenetwork.dll, one by one: `binding` makes them through ctypes, `fake` in memory.

Texts are JSON documents, ids are GUIDs as text, handles are numbers that are not 0. Every method blocks, for
seconds and more when HNS is busy, so it is called in a thread.
"""

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Protocol

from msgspec import Struct


class Entity(Enum):
    """A kind of object of HNS; the value is its name in the names of functions."""

    NETWORK = "Network"
    ENDPOINT = "Endpoint"
    LOAD_BALANCER = "LoadBalancer"

    @property
    def plural(self) -> str:
        """The name of several, in HcnEnumerate... ."""
        return self.value + "s"


class NoticeKind(IntEnum):
    """What HNS reports (HCN_NOTIFICATIONS). It reports nothing about load balancers."""

    NETWORK_PRE_CREATE = 1
    NETWORK_CREATE = 2
    NETWORK_PRE_DELETE = 3
    NETWORK_DELETE = 4
    NAMESPACE_CREATE = 5
    NAMESPACE_DELETE = 6
    GUEST_SERVICE_CREATE = 7
    GUEST_SERVICE_DELETE = 8
    ENDPOINT_ATTACHED = 9
    ENDPOINT_DETACHED = 0x10
    SERVICE_DISCONNECT = 0x01000000


class HnsNotice(Struct, frozen=True, gc=False):
    """A notification of HNS.

    Attributes:
        kind: what happened; a number that is no `NoticeKind` is one of a newer HNS.
        code: the HRESULT that HNS adds, as an unsigned number.
        data: the document that HNS adds, or "".
    """

    kind: int
    code: int = 0
    data: str = ""


class Calls(Protocol):
    """The functions of the HCN API.

    All of them raise `HcnError`.
    """

    def version(self) -> str:
        """HNSCall("GET", "/globals/version"): the document with the version of HNS."""

    def enumerate(self, entity: Entity, query: str) -> str:
        """HcnEnumerate...: a JSON array of ids."""

    def open(self, entity: Entity, ident: str) -> int:
        """HcnOpen...: a handle of an object."""

    def query(self, entity: Entity, handle: int, query: str) -> str:
        """HcnQuery...Properties: an object's document."""

    def create_endpoint(self, network: int, ident: str, settings: str) -> int:
        """HcnCreateEndpoint: a handle of the new endpoint; with "" as id, HNS chooses one."""

    def create_load_balancer(self, ident: str, settings: str) -> int:
        """HcnCreateLoadBalancer: a handle of the new load balancer; with "" as id, HNS chooses one."""

    def modify_load_balancer(self, handle: int, settings: str) -> None:
        """HcnModifyLoadBalancer."""

    def delete(self, entity: Entity, ident: str) -> None:
        """HcnDelete...; networks cannot be deleted by it."""

    def close(self, entity: Entity, handle: int) -> None:
        """HcnClose...; every handle must be closed. This raises nothing."""

    def register(self, notified: Callable[[HnsNotice], None]) -> int:
        """HcnRegisterServiceCallback: a handle of the registration. HNS calls back in a thread of its own."""

    def unregister(self, handle: int) -> None:
        """HcnUnregisterServiceCallback; afterwards it is not called back."""
