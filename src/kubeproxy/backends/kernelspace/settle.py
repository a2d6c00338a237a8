"""Brings load balancers and endpoints of HNS to what is asked for.

HNS has no transactions, so the order matters. First endpoints are created, then load balancers are changed
and created, then those are deleted that are not wanted, and at last endpoints that no load balancer names. So
no load balancer ever names an endpoint that is not there, and a front is served until its successor is. Only
a load balancer that belongs to another Service now is deleted first.

What HNS refuses concerns one load balancer or one endpoint: it is recorded, and all else is done. A load
balancer that cannot be changed stays as it is; one that had to be deleted for its successor, which is refused
then, is created again.
"""

import logging
from collections.abc import Iterable

from kubeproxy.api.addresses import IPV6
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.kernelspace.compile import BalancerTarget, FrontBalancer
from kubeproxy.backends.kernelspace.desired import BalancerDelta, DesiredBalancers
from kubeproxy.backends.kernelspace.names import BalancerKey, key_of, made_up_mac
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.model.plan import Key
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint, HcnLoadBalancer, PortMapping

log = logging.getLogger(__name__)


class Refused:
    """What HNS refused, each with the message, until it is done.

    Attributes:
        balancers: load balancers.
        addresses: endpoints on other nodes, by their addresses.
        vips: endpoints of ClusterIPs.
        left: load balancers that cannot be deleted, by id, each with the Service that had it, if that is
            known.
    """

    def __init__(self) -> None:
        self.balancers: dict[BalancerKey, str] = {}
        self.addresses: dict[str, str] = {}
        self.vips: dict[str, str] = {}
        self.left: dict[str, tuple[Key | None, str]] = {}

    def __bool__(self) -> bool:
        return bool(self.balancers or self.addresses or self.vips or self.left)

    def services(self, desired: DesiredBalancers) -> dict[Key, str]:
        """The Services concerned, each with the messages."""
        found: dict[Key, dict[str, None]] = {}
        for key, words in self.balancers.items():
            for service in desired.claimants(key):
                found.setdefault(service, {})[f"load balancer {key}: {words}"] = None
        for address, words in self.addresses.items():
            for key in desired.users.get(address, ()):
                for service in desired.claimants(key):
                    found.setdefault(service, {})[f"endpoint {address}: {words}"] = None
        for vip, words in self.vips.items():
            for service in desired.vips.get(vip, ()):
                found.setdefault(service, {})[f"endpoint of ClusterIP {vip}: {words}"] = None
        for owner, words in self.left.values():
            if owner is not None:
                found.setdefault(owner, {})[words] = None
        return {service: "; ".join(words) for service, words in found.items()}


class Settling:
    """One sync of some load balancers, or of all."""

    def __init__(self, view: HnsView, facts: HnsFacts, desired: DesiredBalancers, refused: Refused) -> None:
        """Nothing is done before `run`.

        Args:
            view: what HNS has.
            facts: what is known of HNS and its network.
            desired: what is asked for.
            refused: what was refused before; it is kept up to date.
        """
        self._view = view
        self._facts = facts
        self._desired = desired
        self._refused = refused
        self._ipv6 = facts.family == IPV6
        self._looked = False
        self._tried: set[str] = set()  # addresses whose endpoints were created, or refused
        self._replaced: dict[
            BalancerKey, HcnLoadBalancer
        ] = {}  # deleted for a successor that is not there yet
        self.missing: dict[Key, dict[str, None]] = {}
        """The endpoints on this node that HNS does not have, by Service."""

    def run(self, delta: BalancerDelta, owners: dict[BalancerKey, Key], *, everything: bool) -> None:
        """Does what is to be done.

        Args:
            delta: what may have changed.
            owners: the Services that had the load balancers before.
            everything: compare all there is in HNS, and collect what is not wanted.

        Raises:
            StaleError: something is out of date that only a full sync reads.
            SyncError: HNS does not answer.
        """
        desired = self._desired
        self._ensure_source_vip()
        for vip in desired.vips if everything else delta.vips:
            self._ensure_vip(vip)
        keys = list(desired if everything else delta.keys)
        wanted = {key: self._resolved(key) for key in keys}
        for key in delta.moved:
            if wanted.get(key) is not None:
                for found in self._ours(key):
                    self._delete(key, found, owners.get(key))
        for key, balancer in wanted.items():
            if balancer is not None:
                self._bring(key, balancer)
        for key in self._there() if everything else keys:
            if wanted.get(key) is None and not self._is_blocked(key):
                self._refused.balancers.pop(key, None)
                for found in self._ours(key):
                    self._delete(key, found, owners.get(key))
        if everything:
            there = {each.id for each in self._view.balancers()}
            self._refused.left = {ident: why for ident, why in self._refused.left.items() if ident in there}
        else:
            self.retry_left()
        self._collect(None if everything else delta.addresses)

    def retry_left(self) -> None:
        """Tries again to delete what could not be deleted."""
        there = {each.id: each for each in self._view.balancers()} if self._refused.left else {}
        for ident, (owner, _) in list(self._refused.left.items()):
            found = there.get(ident)
            key = None if found is None else key_of(found)
            del self._refused.left[ident]
            if found is not None and key is not None and self._resolved(key) is None:
                self._delete(key, found, owner)

    # Endpoints

    def _ensure_source_vip(self) -> None:
        address = self._facts.settings.source_vip
        if not self._facts.overlay or self._view.endpoints_at(address):
            return
        try:
            self._create_endpoint(address, self._facts.host_mac, flags=0)
        except HcnError as e:
            raise SyncError(
                f"HNS refuses the endpoint of the source VIP {address}, set by --source-vip, which all Services need: {e}"
            ) from e

    def _ensure_vip(self, vip: str) -> None:
        self._refused.vips.pop(vip, None)
        there = self._view.endpoints_at(vip)
        if there:
            self._adopt(there[0])
            return
        try:
            self._create_endpoint(vip, self._facts.host_mac, provider=self._facts.address)
        except HcnError as e:
            self._refused.vips[vip] = str(e)

    def _create_endpoint(
        self, address: str, mac: str, *, flags: int = REMOTE_ENDPOINT, provider: str = ""
    ) -> HcnEndpoint:
        assert self._facts.network is not None
        wanted = HcnEndpoint(self._facts.network.id, (address,), mac, flags, provider)
        try:
            return self._view.create_endpoint(wanted)
        except HcnError as e:
            _check(e)
            if e.trouble is HcnTrouble.NOT_FOUND:
                raise StaleError(f"the HNS network {self._facts.network.name} is gone: {e}") from e
            if e.trouble is HcnTrouble.EXISTS:
                self._view.look_at_endpoints()
                if there := self._view.endpoints_at(address):
                    return there[0]
            raise

    def _target(self, target: BalancerTarget) -> str:
        """The id of an endpoint, "" if there is none. One on another node is created."""
        if not target.address:
            return self._facts.root
        found = self._view.endpoints_at(target.address)
        if target.local:
            found = [each for each in found if not each.remote]
        if found:
            self._refused.addresses.pop(target.address, None)
            self._adopt(found[0])
            return found[0].id
        if target.local or target.address in self._tried:
            return ""
        self._tried.add(target.address)
        self._refused.addresses.pop(target.address, None)
        provider = ""
        if self._facts.overlay:
            provider = self._facts.provider(target.address) or self._facts.address
        try:
            return self._create_endpoint(target.address, made_up_mac(target.address), provider=provider).id
        except HcnError as e:
            self._refused.addresses[target.address] = str(e)
            return ""

    def _adopt(self, endpoint: HcnEndpoint) -> None:
        if endpoint.remote and not self._view.is_own_endpoint(endpoint, self._facts.host_mac):
            self._view.adopted.add(endpoint.id)

    # Load balancers

    def _is_blocked(self, key: BalancerKey) -> bool:
        """Whether the Service of a load balancer lacks the endpoint of its ClusterIP."""
        owner = self._desired.owner(key)
        if owner is None or not self._refused.vips:
            return False
        return any(vip in self._refused.vips for vip in self._desired.services[owner].vips)

    def _resolved(self, key: BalancerKey) -> HcnLoadBalancer | None:
        """A load balancer as it is to be in HNS; None: it is not to be there."""
        balancer = self._desired.balancer(key)
        if balancer is None or self._is_blocked(key):
            return None
        return self._with_ids(balancer)

    def _with_ids(self, balancer: FrontBalancer) -> HcnLoadBalancer | None:
        ids: dict[str, None] = {}
        for target in balancer.targets:
            ident = self._target(target)
            if ident:
                ids[ident] = None
            elif target.local:
                owner = self._desired.owner(balancer.key)
                assert owner is not None
                self.missing.setdefault(owner, {})[target.address] = None
        if not ids:
            return None
        key = balancer.key
        mapping = PortMapping(
            key.protocol, balancer.internal_port, key.port, balancer.distribution, balancer.port_flags
        )
        return HcnLoadBalancer(
            tuple(sorted(ids)), (key.vip,) if key.vip else (), (mapping,), balancer.source_vip, balancer.flags
        )

    def _ours(self, key: BalancerKey) -> list[HcnLoadBalancer]:
        """The load balancers with a key that this program may change."""
        try:
            return [each for each in self._view.balancers_with(key) if self._view.is_ours(each)]
        except HcnError as e:
            _check(e)
            return []  # what cannot be read may be another program's

    def _bring(self, key: BalancerKey, wanted: HcnLoadBalancer) -> None:
        """Changes or creates one."""
        try:
            self._changed(key, wanted)
            self._refused.balancers.pop(key, None)
        except HcnError as e:
            _check(e)
            if self._looked or e.trouble not in {HcnTrouble.EXISTS, HcnTrouble.NOT_FOUND}:
                self._refuse(key, e)
                return
            self._look_again()
            found = self._resolved(key)
            if found is None or (e.trouble is HcnTrouble.EXISTS and not self._ours(key)):
                self._refuse(key, e)
            else:
                self._bring(key, found)

    def _look_again(self) -> None:
        """HNS has other objects than is known."""
        self._looked = True
        try:
            self._view.look()
        except HcnError as e:
            _check(e)

    def _changed(self, key: BalancerKey, wanted: HcnLoadBalancer) -> None:
        there = self._ours(key)
        found = next((each for each in there if _is_same(each, wanted)), None)
        if found is not None:
            there.remove(found)
        elif there:
            self._change(key, there.pop(0), wanted)
        else:
            self._view.create_balancer(wanted)
        for other in there:
            self._delete(key, other, self._desired.owner(key))

    def _change(self, key: BalancerKey, found: HcnLoadBalancer, wanted: HcnLoadBalancer) -> None:
        """Changes one in place if HNS can do that, else replaces it."""
        wanted = _with_id(wanted, found.id)
        in_place = (found.vips, found.mappings, found.flags) == (wanted.vips, wanted.mappings, wanted.flags)
        if in_place and self._view.modifies != "no":
            try:
                if self._view.modify_balancer(wanted):
                    return
                self._view.stop_modifying(
                    f"load balancer {key} was changed without an error, and is what it was before"
                )
                found = next((each for each in self._ours(key) if each.id == found.id), found)
            except HcnError as e:
                if e.trouble is HcnTrouble.UNSUPPORTED:
                    self._view.stop_modifying(str(e))
                elif e.trouble is not HcnTrouble.DAMAGED:
                    raise
        self._view.delete_balancer(found)
        self._replaced[key] = found
        self._create_after_deletion(_with_id(wanted, ""))

    def _create_after_deletion(self, wanted: HcnLoadBalancer) -> None:
        """Creates one whose key was in use until now. Some versions of HNS free it at the second attempt."""
        try:
            self._view.create_balancer(wanted)
        except HcnError as e:
            if e.trouble is not HcnTrouble.EXISTS:
                raise
            self._view.create_balancer(wanted)

    def _refuse(self, key: BalancerKey, error: HcnError) -> None:
        """One is refused: what was deleted for it is created again, if its endpoints are still there."""
        self._refused.balancers[key] = str(error)
        before = self._replaced.pop(key, None)
        if before is None or self._ours(key) or not all(map(self._view.endpoint, before.endpoints)):
            return
        try:
            self._create_after_deletion(_with_id(before, ""))
        except HcnError as e:
            _check(e)
            log.warning(
                "Load balancer %(key)s was deleted for a successor that HNS refuses, and cannot be created again: %(err)s",
                {"key": key, "err": e},
            )

    def _there(self) -> list[BalancerKey]:
        """The keys of all load balancers of this family."""
        keys = map(key_of, self._view.balancers())
        return [key for key in keys if key is not None and key.ipv6 == self._ipv6]

    def _delete(self, key: BalancerKey, balancer: HcnLoadBalancer, owner: Key | None) -> None:
        try:
            self._view.delete_balancer(balancer)
        except HcnError as e:
            _check(e)
            words = f"load balancer {key} cannot be deleted: {e}"
            if owner is None:
                owner = self._refused.left.get(balancer.id, (None, ""))[0]
            self._refused.left[balancer.id] = owner, words
            if owner is None:
                log.warning("%(reason)s; it is tried again", {"reason": words})

    # What is not needed any more

    def _collect(self, addresses: Iterable[str] | None) -> None:
        """Deletes endpoints that nothing names or wants; those that have a twin on this host last."""
        if addresses is None:
            found = [each for each in self._view.endpoints() if each.remote]
        else:
            found = [e for address in addresses for e in self._view.endpoints_at(address) if e.remote]
        twins, others = [], []
        for endpoint in found:
            if not endpoint.addresses or (":" in endpoint.addresses[0]) != self._ipv6:
                continue
            at = self._view.endpoints_at(endpoint.addresses[0])
            if not at[0].remote:
                twins.append(endpoint)
            elif self._view.is_own_endpoint(endpoint, self._facts.host_mac) and not (
                at[0].id == endpoint.id and self._desired.wants_remote(endpoint.addresses[0])
            ):
                others.append(endpoint)
        for endpoint in others + twins:
            if self._view.is_used(endpoint.id):
                continue
            try:
                self._view.delete_endpoint(endpoint)
            except HcnError as e:
                _check(e)
                log.warning(
                    "HNS endpoint %(address)s is not needed any more and cannot be deleted, which is tried again: %(err)s",
                    {"address": endpoint.addresses[0], "err": e},
                )


def _check(error: HcnError) -> None:
    """Raises SyncError if HNS does not answer, or the process may not use it."""
    if error.trouble is HcnTrouble.AWAY:
        raise SyncError(
            f"HNS does not answer; nothing is changed, and all is compared when it does: {error}"
        ) from error
    if error.trouble is HcnTrouble.DENIED:
        raise SyncError(str(error)) from error


def _with_id(balancer: HcnLoadBalancer, ident: str) -> HcnLoadBalancer:
    return HcnLoadBalancer(
        balancer.endpoints, balancer.vips, balancer.mappings, balancer.source_vip, balancer.flags, ident
    )


def _is_same(one: HcnLoadBalancer, other: HcnLoadBalancer) -> bool:
    return _with_id(one, "") == _with_id(other, "")
