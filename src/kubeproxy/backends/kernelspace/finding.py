"""Looks up the network and what depends on it: whether a family is served, the host's MAC and endpoint."""

import logging
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.kernelspace.network import HnsFacts, facts_of, source_vip_trouble
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.model.node import NodeConfig
from kubeproxy.windows.values import HcnNetwork

log = logging.getLogger(__name__)

_KNOWN_TYPES: Final = {"l2bridge", "l2tunnel", "overlay"}


class FactFinder:
    """What is known of HNS and its network, for the driver of one IP family.

    Attributes:
        facts: it.
        served: whether HNS can serve the family on this network.
    """

    def __init__(self, view: HnsView, node: NodeConfig, host_mac: Callable[[str], str]) -> None:
        """Nothing is looked up yet. The arguments are those of the driver."""
        self.facts = facts_of(node, view.hcn.version)
        self.served = True
        self._view = view
        self._primary = node.primary
        self._host_mac = host_mac
        self._said: set[str] = set()

    @property
    def node(self) -> NodeConfig:
        """The node, as far as it is known here."""
        facts = self.facts
        return NodeConfig(
            family=facts.family, address=facts.address, hns=facts.settings, primary=self._primary
        )

    def look(self, node: NodeConfig) -> None:
        """Looks up everything, and what HNS has.

        Raises:
            HcnError: HNS does not answer.
            SyncError: something is not there.
        """
        facts, view = facts_of(node, self._view.hcn.version), self._view
        network = view.find_network(facts.settings.network)
        view.look()
        facts = replace(facts, network=network)
        self.served = self._primary or not facts.overlay
        if not self.served:
            self._say(
                f"Only the node's primary IP family is served, not {node.family}: HNS has no dual stack on overlay"
                f" networks, which {network.name} is"
            )
        if network.type.lower() not in _KNOWN_TYPES:
            self._say(
                f"HNS network {network.name} is of type {network.type or '(unknown)'}; this mode is for L2Bridge, L2Tunnel"
                " and Overlay"
            )
        if facts.overlay and self.served:
            if trouble := source_vip_trouble(facts.settings):  # the network was not there at the start
                raise SyncError(trouble)
            mac = self._host_mac(node.address)
            if not mac:
                raise SyncError(
                    f"no interface of this host has the node's address {node.address}, whose MAC address endpoints on the"
                    f" overlay network {network.name} need: set --bind-address, or correct the addresses of the Node"
                )
            facts = replace(facts, host_mac=mac)
        if facts.settings.health_vips:
            facts = replace(facts, root=self._root(facts))
        self.facts = facts

    def check_network(self) -> None:
        """Compares the network with what is known: it may have been created again, or have other subnets.

        Raises:
            HcnError: HNS does not answer.
            StaleError: it has changed.
        """
        found = self._view.find_network(self.facts.settings.network)
        if not self.is_known(found):
            raise StaleError(f"the HNS network {found.name} has changed")

    def is_known(self, network: HcnNetwork | None) -> bool:
        """Whether a network is the known one with the same subnets, in whatever order HNS returns them."""
        known = self.facts.network
        if network is None or known is None:
            return network is known
        return (network.id, network.type) == (known.id, known.type) and (
            network.subnets == known.subnets or set(network.subnets) == set(known.subnets)
        )

    def _root(self, facts: HnsFacts) -> str:
        """The id of the endpoint of the host."""
        known = self._view.endpoint(self.facts.root) if self.facts.root else None
        found = known or self._view.hcn.endpoint_named(facts.settings.root_endpoint)
        if found is None:
            self._say(
                f"--forward-healthcheck-vip has no effect yet: HNS has no endpoint {facts.settings.root_endpoint!r};"
                " --root-hnsendpoint-name names another one"
            )
            return ""
        return found.id

    def _say(self, words: str) -> None:
        """Logs a warning once."""
        if words not in self._said:
            self._said.add(words)
            log.warning("%(ipFamily)s: %(reason)s", {"ipFamily": self.facts.family, "reason": words})
