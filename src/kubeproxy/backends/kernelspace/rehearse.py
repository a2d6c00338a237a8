"""An HNS in memory that holds what was read from the real one: a `load` over it shows what it would do."""

from collections.abc import Callable

from msgspec.structs import replace

from kubeproxy.api.addresses import Family
from kubeproxy.backends.kernelspace import describe
from kubeproxy.backends.kernelspace.held import HeldHns
from kubeproxy.backends.kernelspace.steps import HnsStep
from kubeproxy.windows.calls import HnsNotice
from kubeproxy.windows.features import Feature, supports
from kubeproxy.windows.timed import CallInProgress
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HcnNetwork, HnsVersion


class RehearsedHcn:
    """See `windows.hcn.Hcn`. It refuses nothing.

    Attributes:
        steps: what was changed, in order.
    """

    def __init__(self, held: HeldHns) -> None:
        self.steps: list[HnsStep] = []
        self._held = held
        self._endpoints = {each.id: each for each in held.endpoints}
        self._balancers = {each.id: each for each in (*held.balancers, *held.others)}
        self._new = 0

    @property
    def version(self) -> HnsVersion:
        """See `Hcn`."""
        return self._held.version

    @property
    def in_progress(self) -> CallInProgress | None:
        """See `Hcn`. It answers at once."""
        return None

    def supports(self, feature: Feature) -> bool:
        """See `Hcn`."""
        return supports(self.version, feature)

    def network(self, name: str) -> HcnNetwork | None:  # noqa: ARG002
        """See `Hcn`. It has one."""
        return self._held.network

    def endpoint_ids(self, network: str) -> frozenset[str]:  # noqa: ARG002
        """See `Hcn`."""
        return frozenset(self._endpoints)

    def endpoint(self, ident: str) -> HcnEndpoint | None:
        """See `Hcn`. Endpoints of other networks that load balancers name are there, too."""
        if any(ident in each.endpoints for each in self._held.others):
            return self._endpoints.get(ident, HcnEndpoint("", (), id=ident))
        return self._endpoints.get(ident)

    def endpoint_named(self, name: str) -> HcnEndpoint | None:  # noqa: ARG002
        """See `Hcn`. Only the endpoint of the host is asked for by its name."""
        return self._endpoints.get(self._held.root)

    def create_endpoint(self, endpoint: HcnEndpoint) -> str:
        """See `Hcn`."""
        made = replace(endpoint, id=self._next())
        self._endpoints[made.id] = made
        self._step("create", self._lines_of(made))
        return made.id

    def delete_endpoint(self, ident: str) -> None:
        """See `Hcn`."""
        self._step("delete", self._lines_of(self._endpoints.pop(ident)))

    def load_balancer_ids(self) -> frozenset[str]:
        """See `Hcn`."""
        return frozenset(self._balancers)

    def load_balancer(self, ident: str) -> HcnLoadBalancer | None:
        """See `Hcn`."""
        return self._balancers.get(ident)

    def create_load_balancer(self, balancer: HcnLoadBalancer) -> HcnLoadBalancer:
        """See `Hcn`."""
        made = replace(balancer, id=self._next())
        self._balancers[made.id] = made
        self._step("create", self._balancer(made))
        return made

    def modify_load_balancer(self, balancer: HcnLoadBalancer) -> None:
        """See `Hcn`."""
        self._balancers[balancer.id] = balancer
        self._step("modify", self._balancer(balancer))

    def delete_load_balancer(self, ident: str) -> None:
        """See `Hcn`."""
        self._step("delete", self._balancer(self._balancers.pop(ident))[:1])

    def watch(self, notified: Callable[[HnsNotice], None]) -> None:
        """See `Hcn`. Nothing else changes it."""

    def close(self) -> None:
        """See `Hcn`."""

    def held(self) -> HeldHns:
        """What it holds now."""
        others = {each.id for each in self._held.others}
        return replace(
            self._held,
            endpoints=tuple(self._endpoints.values()),
            balancers=tuple(each for each in self._balancers.values() if each.id not in others),
        )

    @property
    def _family(self) -> Family:
        return self._held.family

    def _next(self) -> str:
        self._new += 1
        return f"new-{self._new}"

    def _step(self, verb: str, lines: list[str]) -> None:
        self.steps.append(HnsStep(verb, tuple(lines)))

    def _lines_of(self, endpoint: HcnEndpoint) -> list[str]:
        address = describe.address_of(endpoint, self._family)
        return list(describe.endpoint(address, endpoint.mac, endpoint.provider))

    def _balancer(self, balancer: HcnLoadBalancer) -> list[str]:
        ids = balancer.endpoints
        found = (self._endpoints.get(ident) for ident in ids)
        addresses = [
            (describe.address_of(each, self._family) if each is not None else "") or f"{{{ident}}}"
            for ident, each in zip(ids, found, strict=True)
        ]
        return list(describe.balancer(balancer, addresses))
