"""What all Services of one IP family together ask HNS for.

Fronts have one owner, but health checks of a load balancer IP that several Services share are at one
address and port. Of several Services that need a load balancer with the same key the first by name counts,
and one for health checks gives way to a front.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.backends.kernelspace.compile import NOTHING, BalancerTarget, FrontBalancer, ServiceBalancers
from kubeproxy.backends.kernelspace.names import BalancerKey
from kubeproxy.model.plan import Key


class BalancerDelta(Struct):
    """What changed in what is asked for.

    Attributes:
        keys: the load balancers that may have changed, come or gone.
        moved: those of them that another Service had before.
        addresses: the addresses whose endpoints may not be needed any more.
        vips: the ClusterIPs that need an endpoint.
    """

    keys: dict[BalancerKey, None]
    moved: set[BalancerKey]
    addresses: set[str]
    vips: dict[str, None]


def no_delta() -> BalancerDelta:
    """Nothing has changed yet."""
    return BalancerDelta({}, set(), set(), {})


class DesiredBalancers:
    """What is asked for.

    Attributes:
        services: the needs of each Service.
        users: the load balancers that use an address, and whether as one on this node; "" is the endpoint of
            the host.
        vips: the Services that have a ClusterIP which needs an endpoint.
    """

    def __init__(self) -> None:
        self.services: dict[Key, ServiceBalancers] = {}
        self.users: dict[str, dict[BalancerKey, bool]] = {}
        self.vips: dict[str, dict[Key, None]] = {}
        self._claims: dict[BalancerKey, dict[Key, FrontBalancer]] = {}

    def __iter__(self) -> Iterator[BalancerKey]:
        """All load balancers that are asked for."""
        return iter(self._claims)

    def balancer(self, key: BalancerKey) -> FrontBalancer | None:
        """A load balancer that is asked for."""
        owner = self.owner(key)
        return None if owner is None else self._claims[key][owner]

    def owner(self, key: BalancerKey) -> Key | None:
        """The Service that a load balancer is for; None if none asks for it."""
        claims = self._claims.get(key)
        if not claims:
            return None
        if len(claims) == 1:
            return next(iter(claims))
        return min(claims, key=lambda service: (claims[service].health, service))

    def claimants(self, key: BalancerKey) -> Iterable[Key]:
        """All Services that ask for a load balancer."""
        return self._claims.get(key, {})

    def wants_remote(self, address: str) -> bool:
        """Whether anything needs an endpoint with an address that a network plug-in does not make."""
        return address in self.vips or not all(self.users.get(address, {}).values())

    def set(self, service: Key, needs: ServiceBalancers, delta: BalancerDelta) -> None:
        """A Service has these needs now.

        Args:
            service: the Service.
            needs: its needs; NOTHING if it is gone.
            delta: what changes is added to it.
        """
        before = self.services.pop(service, NOTHING)
        if needs != NOTHING:
            self.services[service] = needs
        for key in {**before.balancers, **needs.balancers}:
            self._claim(service, key, needs.balancers.get(key), delta)
        for vip in before.vips:
            if vip not in needs.vips:
                del self.vips[vip][service]
                if not self.vips[vip]:
                    del self.vips[vip]
                delta.addresses.add(vip)
        for vip in needs.vips:
            self.vips.setdefault(vip, {})[service] = None
            delta.vips[vip] = None

    def _claim(
        self, service: Key, key: BalancerKey, balancer: FrontBalancer | None, delta: BalancerDelta
    ) -> None:
        was, owned = self.balancer(key), self.owner(key)
        claims = self._claims.setdefault(key, {})
        if balancer is None:
            claims.pop(service, None)
        else:
            claims[service] = balancer
        if not claims:
            del self._claims[key]
        now, owns = self.balancer(key), self.owner(key)
        if owned is not None and owns != owned:
            delta.moved.add(key)
        if now == was and owns == owned:
            return
        delta.keys[key] = None
        for target in _targets(was):
            users = self.users[target.address]
            users.pop(key, None)
            if not users:
                del self.users[target.address]
                delta.addresses.add(target.address)
        for target in _targets(now):
            self.users.setdefault(target.address, {})[key] = target.local


def _targets(balancer: FrontBalancer | None) -> tuple[BalancerTarget, ...]:
    return () if balancer is None else balancer.targets
