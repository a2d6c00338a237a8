"""The part of HNS that concerns some Services."""

from collections.abc import Iterable

from msgspec.structs import replace

from kubeproxy import protocols
from kubeproxy.api.addresses import IPV6
from kubeproxy.backends.base import KernelComparison
from kubeproxy.backends.kernelspace.compile import compile_service
from kubeproxy.backends.kernelspace.held import HeldHns
from kubeproxy.backends.kernelspace.names import BalancerKey, key_of
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.model.plan import ServicePlan, fronts_of


def only(whole: HeldHns, plans: Iterable[ServicePlan], facts: HnsFacts) -> HeldHns:
    """The load balancers at the fronts of some Services, and the endpoints that they have or need."""
    keys: set[BalancerKey] = set()
    addresses: set[str] = set()
    for plan in plans:
        needs = compile_service(plan, facts)
        keys.update(needs.balancers)
        keys.update(
            BalancerKey(address, protocols.NUMBERS[protocol], port, facts.family == IPV6)
            for address, protocol, port in fronts_of(plan)
        )
        addresses.update(needs.vips)
        addresses.update(target.address for each in needs.balancers.values() for target in each.targets)
    balancers = tuple([each for each in whole.balancers if key_of(each) in keys])
    named = {ident for each in balancers for ident in each.endpoints}
    endpoints = [
        each
        for each in whole.endpoints
        if not each.remote or each.id in named or not addresses.isdisjoint(each.addresses)
    ]
    return replace(whole, endpoints=tuple(endpoints), balancers=balancers, part=True)


def own(found: KernelComparison) -> KernelComparison:
    """A comparison without endpoints that only other Services may need."""
    foreign = tuple([line for line in found.foreign if not line.startswith("New-HnsEndpoint")])
    return replace(found, foreign=foreign)
