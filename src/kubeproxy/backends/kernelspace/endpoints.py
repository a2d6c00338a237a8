"""Creates the endpoints that load balancers need, and deletes those that nothing needs any more.

Network plug-ins make the endpoints of Pods on this node. This program makes those of Pods on other nodes, on
overlay networks one of every ClusterIP, and one that has the source VIP.

On overlay networks an endpoint names the host that has its address. One that names another host than the
network has the address on now is of no use, and HNS cannot change it: another one takes its place.
"""

import logging
from collections.abc import Collection, Iterable

from kubeproxy.api.addresses import Family, family_of
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.kernelspace.compile import BalancerTarget
from kubeproxy.backends.kernelspace.desired import DesiredBalancers
from kubeproxy.backends.kernelspace.names import made_up_mac
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.backends.kernelspace.refused import Refused
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint

log = logging.getLogger(__name__)


class EndpointSettling:
    """The endpoints of one sync.

    Attributes:
        outdated: the addresses whose endpoints are to be replaced.
    """

    def __init__(self, view: HnsView, facts: HnsFacts, desired: DesiredBalancers, refused: Refused) -> None:
        """Nothing is done yet. The arguments are those of `settle.Settling`."""
        self._view = view
        self._facts = facts
        self._desired = desired
        self._refused = refused
        self._tried: set[str] = set()  # addresses whose endpoints were created, or refused
        self.outdated: set[str] = set()

    def ensure_source_vip(self) -> None:
        """On overlay networks there is an endpoint with the source VIP.

        Raises:
            SyncError: HNS refuses it; no Service can be served.
        """
        address = self._facts.settings.source_vip
        if not self._facts.overlay or self._view.endpoints_at(address):
            return
        try:
            self._create(address, self._facts.host_mac, flags=0)
        except HcnError as e:
            raise SyncError(
                f"HNS refuses the endpoint of the source VIP {address}, set by --source-vip, which all Services need: {e}"
            ) from e

    def ensure_vip(self, vip: str) -> None:
        """There is an endpoint of a ClusterIP."""
        there = self._current(vip)
        try:
            if there:
                self._adopt(there[0])
            else:
                self._create_vip(vip)
        except HcnError as e:
            self._refused.vips.add(vip, str(e))
        else:
            self._refused.vips.discard(vip)

    def _create_vip(self, vip: str) -> None:
        """Creates one. No load balancer names it, so one that is outdated may be deleted first."""
        for each in self._view.endpoints_at(vip):
            if self._is_own(each) and not self._view.is_used(each.id):
                self._delete(each)
        self._create(vip, self._facts.host_mac, provider=self._facts.address)

    def target(self, target: BalancerTarget) -> str:
        """The id of an endpoint, "" if there is none. One on another node is created."""
        address = target.address
        if not address:
            return self._facts.root
        found = self._current(address)
        if target.local:
            found = [each for each in found if not each.remote]
        if found:
            self._refused.addresses.discard(address)
            self._adopt(found[0])
            return found[0].id
        if target.local or address in self._tried:
            return ""
        self._tried.add(address)
        if self._view.endpoints_at(address):
            self.outdated.add(address)
        try:
            made = self._create(address, made_up_mac(address), provider=self._provider(address))
        except HcnError as e:
            self._refused.addresses.add(address, str(e))
            return ""
        self._refused.addresses.discard(address)
        return made.id

    def _create(
        self, address: str, mac: str, *, flags: int = REMOTE_ENDPOINT, provider: str = ""
    ) -> HcnEndpoint:
        assert self._facts.network is not None
        wanted = HcnEndpoint(self._facts.network.id, (address,), mac, flags, provider)
        try:
            return self._view.create_endpoint(wanted)
        except HcnError as e:
            check_available(e)
            if e.trouble is HcnTrouble.NOT_FOUND:
                raise StaleError(f"the HNS network {self._facts.network.name} is gone: {e}") from e
            if e.trouble is HcnTrouble.EXISTS:
                self._view.look_at_endpoints()
                if there := self._current(address):
                    return there[0]
            raise

    def _provider(self, address: str) -> str:
        """The host that an endpoint on another node, or that of a ClusterIP, names."""
        if not self._facts.overlay:
            return ""
        if address in self._desired.vips:
            return self._facts.address
        return self._facts.provider(address) or self._facts.address

    def _current(self, address: str) -> list[HcnEndpoint]:
        """The endpoints with an address that name the right host; HNS may not say which one they name."""
        provider = self._provider(address)
        return [
            each
            for each in self._view.endpoints_at(address)
            if not (each.remote and provider and each.provider) or each.provider == provider
        ]

    def _is_own(self, endpoint: HcnEndpoint) -> bool:
        return self._view.is_own_endpoint(endpoint, self._facts.host_mac)

    def _adopt(self, endpoint: HcnEndpoint) -> None:
        if endpoint.remote and not self._is_own(endpoint):
            self._view.adopted.add(endpoint.id)

    def collect(self, addresses: Iterable[str] | None, families: Collection[Family]) -> None:
        """Deletes endpoints that nothing names or wants; those that have a twin on this host last.

        Args:
            addresses: those that may not be needed any more; None: all.
            families: the IP families whose endpoints are this driver's.
        """
        if addresses is None:
            found = [each for each in self._view.endpoints() if each.remote]
        else:
            several = {*addresses, *self.outdated}
            found = [e for address in several for e in self._view.endpoints_at(address) if e.remote]
            for address in several:
                if not self._desired.wants_remote(address):
                    self._refused.addresses.discard(address)
                    self._refused.vips.discard(address)
        twins, others = [], []
        for endpoint in found:
            if not endpoint.addresses or family_of(endpoint.addresses[0]) not in families:
                continue
            address = endpoint.addresses[0]
            if not self._view.endpoints_at(address)[0].remote:
                twins.append(endpoint)
            elif self._is_own(endpoint) and not (
                self._desired.wants_remote(address) and endpoint in self._current(address)[:1]
            ):
                others.append(endpoint)
        for endpoint in others + twins:
            if self._view.is_used(endpoint.id):
                continue
            try:
                self._delete(endpoint)
            except HcnError as e:
                log.warning(
                    "HNS endpoint %(address)s is not needed any more and cannot be deleted, which is tried again: %(err)s",
                    {"address": endpoint.addresses[0], "err": e},
                )

    def _delete(self, endpoint: HcnEndpoint) -> None:
        try:
            self._view.delete_endpoint(endpoint)
        except HcnError as e:
            check_available(e)
            raise


def check_available(error: HcnError) -> None:
    """Raises SyncError if HNS does not answer, or the process may not use it."""
    if error.trouble is HcnTrouble.AWAY:
        raise SyncError(
            f"HNS does not answer; nothing is changed, and all is compared when it does: {error}"
        ) from error
    if error.trouble is HcnTrouble.DENIED:
        raise SyncError(str(error)) from error
