"""Which host has an address, by the subnets of an overlay network.

A network has a subnet for each node, and every endpoint of every Service is looked up. So the subnets are
kept by the length of their prefixes, and a look-up takes as many steps as there are different lengths.
"""

import ipaddress
from collections.abc import Iterable

from kubeproxy.api.addresses import pack
from kubeproxy.windows.values import RemoteSubnet


class SubnetTable:
    """The subnets of a network that are on other hosts."""

    def __init__(self, subnets: Iterable[RemoteSubnet] = ()) -> None:
        """Makes the table. A subnet that is none is left out."""
        self._hosts: set[str] = set()
        self._subnets: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
        for number, subnet in enumerate(subnets):
            self._hosts.add(subnet.provider)
            try:
                network = ipaddress.ip_network(subnet.prefix, strict=False)
            except ValueError:
                continue
            free = network.max_prefixlen - network.prefixlen
            of_length = self._subnets.setdefault((network.max_prefixlen, free), {})
            of_length[int(network.network_address) >> free] = number, subnet.provider

    def provider(self, address: str) -> str:
        """The host that has an address, by its own address; "" if no subnet has it.

        An address that is a host's own is its provider. Of several subnets the last one counts.
        """
        if address in self._hosts:
            return address
        try:
            packed = pack(address)
        except OSError:
            return ""
        value, bits = int.from_bytes(packed, "big"), 8 * len(packed)
        found = -1, ""
        for (length, free), subnets in self._subnets.items():
            if length == bits and (match := subnets.get(value >> free)) is not None:
                found = max(found, match)
        return found[1]
