"""The HNS in memory outside of the HCN API: what tests look at, what other programs change."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from kubeproxy.windows import documents
from kubeproxy.windows.calls import Entity, HnsNotice, NoticeKind
from kubeproxy.windows.fake_profiles import Profile
from kubeproxy.windows.fake_rules import Document
from kubeproxy.windows.fake_state import FakeState
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer

_NETWORK, _ENDPOINT, _LOAD_BALANCER = Entity.NETWORK, Entity.ENDPOINT, Entity.LOAD_BALANCER


class FakeWorld:
    """An HNS without functions.

    Attributes:
        profile: the version of Windows.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._state = FakeState(profile)
        self._callbacks: dict[int, Callable[[HnsNotice], None]] = {}

    def endpoints(self) -> dict[str, HcnEndpoint]:
        """All endpoints, by id."""
        return {
            ident: documents.read_endpoint(msgspec.json.encode(document).decode())
            for ident, document in self._state.objects[_ENDPOINT].items()
        }

    def load_balancers(self) -> dict[str, HcnLoadBalancer]:
        """All load balancers, by id."""
        return {
            ident: documents.read_load_balancer(msgspec.json.encode(document).decode())
            for ident, document in self._state.objects[_LOAD_BALANCER].items()
        }

    def add_network(
        self,
        name: str,
        kind: str = "L2Bridge",
        *,
        prefixes: Iterable[str] = (),
        remote: Mapping[str, str] | None = None,
        ident: str = "",
    ) -> str:
        """Creates a network; returns its id.

        Args:
            name: its name.
            kind: its type.
            prefixes: its subnets on this host; without any, a local endpoint may have any address.
            remote: the subnets on other hosts, each with the address of the host.
            ident: its id; "": a new one.
        """
        routes = [
            {
                "Type": documents.REMOTE_SUBNET_ROUTE,
                "Settings": {
                    "DestinationPrefix": prefix,
                    "IsolationId": 4096,
                    "ProviderAddress": provider,
                    "DistributedRouterMacAddress": "00-15-5D-00-00-02",
                },
            }
            for prefix, provider in (remote or {}).items()
        ]
        document: Document = {"Name": name, "Type": kind, "Policies": routes}
        if subnets := [{"IpAddressPrefix": prefix} for prefix in prefixes]:
            document["Ipams"] = [{"Type": "Static", "Subnets": subnets}]
        network = self._state.store(_NETWORK, ident, document)
        self._notify(NoticeKind.NETWORK_CREATE, network)
        return network

    def remove_network(self, network: str) -> None:
        """Removes a network with its endpoints."""
        for document in self._state.endpoints_of(network):
            if not self.profile.keeps_dangling:
                for user in self._state.users(document["ID"]):
                    self._state.drop(_LOAD_BALANCER, user)
            self._state.drop(_ENDPOINT, document["ID"])
        self._state.drop(_NETWORK, network)
        self._notify(NoticeKind.NETWORK_DELETE, network)

    def hide_network(self, network: str, *, hidden: bool = True) -> None:
        """Makes a network, but not its endpoints, invisible for a time."""
        (self._state.hidden.add if hidden else self._state.hidden.discard)(network)

    def rename_network(self, network: str, ident: str = "") -> str:
        """Gives a network another id, which its endpoints then have; returns it."""
        document = self._state.objects[_NETWORK].pop(network)
        new = self._state.store(_NETWORK, ident, document)
        for endpoint in self._state.endpoints_of(network):
            endpoint["HostComputeNetwork"] = new
        return new

    def add_endpoint(self, endpoint: HcnEndpoint) -> str:
        """Creates an endpoint, as a network plug-in does; no rule is checked. Returns its id."""
        document = msgspec.json.decode(documents.endpoint_settings(endpoint))
        return self._state.store(_ENDPOINT, endpoint.id, document)

    def add_load_balancer(self, balancer: HcnLoadBalancer | Document) -> str:
        """Creates a load balancer of another program; no rule is checked.

        Args:
            balancer: it, or its document, which may be one that HNS would not create.

        Returns:
            Its id.
        """
        if isinstance(balancer, HcnLoadBalancer):
            ident, document = balancer.id, msgspec.json.decode(documents.load_balancer_settings(balancer))
        else:
            ident, document = str(balancer.get("ID", "")), dict(balancer)
        return self._state.store(_LOAD_BALANCER, ident, document)

    def change(self, entity: Entity, ident: str, fields: Mapping[str, Any]) -> None:
        """Replaces fields of an object's document, as another program could."""
        document = self._state.objects[entity][ident] | dict(fields)
        self._state.drop(entity, ident)
        self._state.store(entity, ident, document)

    def listen(self, protocol: int, port: int) -> None:
        """Lets a program listen on a port of this host."""
        self._state.listening.add((protocol, port))

    def remove(self, entity: Entity, ident: str) -> None:
        """Removes an endpoint or a load balancer, as another program could; no rule is checked."""
        self._state.drop(entity, ident)

    def _notify(self, kind: NoticeKind, ident: str) -> None:
        data = msgspec.json.encode({"ID": ident}).decode() if ident else ""
        for notified in list(self._callbacks.values()):
            notified(HnsNotice(kind, 0, data))
