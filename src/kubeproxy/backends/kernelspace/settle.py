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
from collections.abc import Collection

from msgspec.structs import replace

from kubeproxy.api.addresses import Family
from kubeproxy.backends.kernelspace.compile import FrontBalancer
from kubeproxy.backends.kernelspace.desired import BalancerDelta, DesiredBalancers
from kubeproxy.backends.kernelspace.endpoints import EndpointSettling, check_available
from kubeproxy.backends.kernelspace.names import BalancerKey
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.backends.kernelspace.refused import Refused
from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.model.plan import Key
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.values import HcnLoadBalancer, PortMapping

log = logging.getLogger(__name__)


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
        self._desired = desired
        self._refused = refused
        self._endpoints = EndpointSettling(view, facts, desired, refused)
        self._looked = False
        self._replaced: dict[
            BalancerKey, HcnLoadBalancer
        ] = {}  # deleted for a successor that is not there yet
        self.missing: dict[Key, dict[str, None]] = {}
        """The endpoints on this node that HNS does not have, by Service."""

    def run(
        self,
        delta: BalancerDelta,
        owners: dict[BalancerKey, Key],
        *,
        families: Collection[Family],
        everything: bool,
    ) -> None:
        """Does what is to be done.

        Args:
            delta: what may have changed.
            owners: the Services that had the load balancers before.
            families: the IP families whose objects are this driver's: its own, and one that no driver serves.
            everything: compare all there is in HNS, and collect what is not wanted.

        Raises:
            StaleError: something is out of date that only a full sync reads.
            SyncError: HNS does not answer.
        """
        desired = self._desired
        self._endpoints.ensure_source_vip()
        for vip in desired.vips if everything else delta.vips:
            self._endpoints.ensure_vip(vip)
        keys = list(desired if everything else delta.keys)
        wanted = {key: self._resolved(key) for key in keys}
        for key in delta.moved:
            if (now := wanted.get(key)) is not None:
                for found in self._ours(key):
                    if not self._is_as_wanted(found, now):
                        self._delete(key, found, owners.get(key))
        for key, balancer in wanted.items():
            if balancer is not None:
                self._bring(key, balancer)
        for key in self._there(families) if everything else keys:
            if wanted.get(key) is None and not self._is_blocked(key):
                self._refused.balancers.discard(key)
                for found in self._ours(key):
                    self._delete(key, found, owners.get(key))
        if not everything:
            self._retry_left()
        self._endpoints.collect(None if everything else delta.addresses, families)

    def _retry_left(self) -> None:
        """Tries again to delete what could not be deleted, as far as it is time."""
        for ident in self._refused.left.take_due():
            found = self._view.balancer(ident)
            key = None if found is None else self._view.key(found)
            if found is None or key is None:
                self._refused.left.discard(ident)
            elif (wanted := self._resolved(key)) is not None:  # it is wanted again, or in addition to another
                self._refused.left.discard(ident)
                self._bring(key, wanted)
            else:
                self._delete(key, found, None)

    # Load balancers

    def _is_blocked(self, key: BalancerKey) -> bool:
        """Whether the Service of a load balancer lacks the endpoint of its ClusterIP."""
        owner = self._desired.owner(key)
        if owner is None or not len(self._refused.vips):
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
            ident = self._endpoints.target(target)
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
            check_available(e)
            return []  # what cannot be read may be another program's

    def _bring(self, key: BalancerKey, wanted: HcnLoadBalancer) -> None:
        """Changes or creates one."""
        try:
            self._changed(key, wanted)
            self._refused.balancers.discard(key)
        except HcnError as e:
            check_available(e)
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
            check_available(e)

    def _changed(self, key: BalancerKey, wanted: HcnLoadBalancer) -> None:
        there = self._ours(key)
        # Also one that is not known to be ours serves, if it is exactly what is wanted.
        found = next(
            (each for each in self._view.balancers_with(key) if self._is_as_wanted(each, wanted)), None
        )
        if found is not None:
            there = [each for each in there if each.id != found.id]
        elif there:
            self._change(key, there.pop(0), wanted)
        else:
            self._view.create_balancer(wanted)
        for other in there:
            self._delete(key, other, self._desired.owner(key))

    def _is_as_wanted(self, held: HcnLoadBalancer, wanted: HcnLoadBalancer) -> bool:
        return self._view.forms.as_asked(held, wanted) == replace(wanted, id=held.id)

    def _change(self, key: BalancerKey, found: HcnLoadBalancer, wanted: HcnLoadBalancer) -> None:
        """Changes one in place if HNS can do that, else replaces it."""
        wanted = replace(wanted, id=found.id)
        was = self._view.forms.as_asked(found, wanted)
        in_place = (was.vips, was.mappings, was.flags) == (wanted.vips, wanted.mappings, wanted.flags)
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
        self._replaced[key] = was
        self._create_after_deletion(replace(wanted, id=""))

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
        self._refused.balancers.add(key, str(error))
        before = self._replaced.pop(key, None)
        if before is None or self._ours(key) or not all(map(self._view.endpoint, before.endpoints)):
            return
        try:
            self._create_after_deletion(replace(before, id=""))
        except HcnError as e:
            check_available(e)
            log.warning(
                "Load balancer %(key)s was deleted for a successor that HNS refuses, and cannot be created again: %(err)s",
                {"key": key, "err": e},
            )

    def _there(self, families: Collection[Family]) -> list[BalancerKey]:
        """The keys of all load balancers of some families."""
        keys = map(self._view.key, self._view.balancers())
        return [key for key in keys if key is not None and key.family in families]

    def _delete(self, key: BalancerKey, balancer: HcnLoadBalancer, owner: Key | None) -> None:
        left, owners = self._refused.left, self._refused.owners
        try:
            self._view.delete_balancer(balancer)
        except HcnError as e:
            check_available(e)
            words = f"load balancer {key} cannot be deleted: {e}"
            left.add(balancer.id, words)
            if owner is not None:
                owners[balancer.id] = owner
            if balancer.id not in owners:
                log.warning("%(reason)s; it is tried again", {"reason": words})
        else:
            left.discard(balancer.id)
            owners.pop(balancer.id, None)
