"""What HNS holds, as a value."""

from collections.abc import Iterable

from msgspec import Struct

from kubeproxy.api.addresses import Family
from kubeproxy.backends.kernelspace import describe
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HcnNetwork, HnsVersion


class HeldHns(Struct, frozen=True):
    """What HNS holds that concerns one IP family.

    Attributes:
        family: the IP family.
        version: the version of HNS.
        network: the network.
        root: the id of the endpoint of the host, "" if it was not asked for or is not there.
        host_mac: the MAC address of the host, on overlay networks.
        endpoints: the endpoints of the network, in the order of their ids.
        balancers: the load balancers that a kube-proxy on this network made, in the order of their keys.
        others: the load balancers of other programs.
        part: only what concerns some Services.
    """

    family: Family
    version: HnsVersion
    network: HcnNetwork
    root: str
    host_mac: str
    endpoints: tuple[HcnEndpoint, ...]
    balancers: tuple[HcnLoadBalancer, ...]
    others: tuple[HcnLoadBalancer, ...] = ()
    part: bool = False

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return not self.balancers and not any(each.remote for each in self.endpoints)

    def lines(self) -> list[str]:
        """See `HeldState`: load balancers and remote endpoints, as commands of PowerShell's HNS module.

        Load balancers of other programs are left out.
        """
        addresses = {each.id: describe.address_of(each, self.family) for each in self.endpoints}
        named = {ident for each in self.balancers for ident in each.endpoints}
        found: list[str] = []
        for endpoint in self.endpoints:
            if endpoint.remote and addresses[endpoint.id] and (not self.part or endpoint.id in named):
                found += describe.endpoint(addresses[endpoint.id], endpoint.mac, endpoint.provider)
        for each in self.balancers:
            found += describe.balancer(each, [addresses.get(i) or f"{{{i}}}" for i in each.endpoints])
        return found

    def commands(self) -> list[str]:
        """See `HeldPart`."""
        return self.lines()


def read(view: HnsView, facts: HnsFacts) -> HeldHns:
    """What a view has that was looked up; our load balancers in the form in which they were asked for.

    Raises:
        HcnError: HNS does not answer.
    """
    assert view.network is not None
    ours, others = [], []
    for each in view.balancers():
        key = view.key(each)
        if key is None or not view.is_ours(each):
            others.append(each)
        elif key.family == facts.family:
            ours.append((key, each.id, view.forms.asked(each)))
    return HeldHns(
        facts.family,
        facts.version,
        view.network,
        facts.root,
        facts.host_mac,
        _in_order(view.endpoints()),
        tuple(each for *_, each in sorted(ours)),
        tuple(sorted(others, key=lambda each: each.id)),
    )


def _in_order(endpoints: Iterable[HcnEndpoint]) -> tuple[HcnEndpoint, ...]:
    return tuple(sorted(endpoints, key=lambda each: each.id))
