"""The owner of a front that several Services name.

It is decided here, once for all modes, before plans are made.

An API server gives a ClusterIP and a node port to one Service only. But it lets any Service name any address
in its externalIPs, including the ClusterIP of another Service (CVE-2020-8554), and a folder of manifests can
contain duplicates. A front has one owner:

- a front at a ClusterIP belongs to the Service whose ClusterIP it is;
- a node port has precedence over a health-check node port, because its rules take the packets before a socket
  does;
- of several Services with an equal claim, the first by namespace and name is the owner.

The owner depends on the Services that exist, and not on the order in which they were added. When the owner no
longer names the front, the next Service becomes its owner, and both must be planned again in the same sync:
`change` returns them.

A front at an address of the node has precedence over the node port of the same number at that address, as in
the rules of the reference. This needs no claim: `plan` looks up the owner of the address and excludes it from
the node port.
"""

from msgspec import Struct

from kubeproxy.api.addresses import Family, family_of
from kubeproxy.api.rows import ServiceRow
from kubeproxy.model.plan import Front, Key

_CLUSTER_IP, _OTHER, _HEALTH_CHECK = range(3)
"""The lowest has precedence."""


class _Claim(Struct, frozen=True, order=True, gc=False):
    """The claim of a Service to a front. The smallest claim is that of the owner."""

    rank: int
    key: Key


class Claims:
    """The claims of all Services of one IP family."""

    def __init__(self, family: Family, *, external_ips: bool) -> None:
        """Creates it without claims.

        Args:
            family: the family.
            external_ips: whether Services' externalIPs are honoured.
        """
        self._family = family
        self._external_ips = external_ips
        self._owners: dict[Front, _Claim] = {}
        self._rivals: dict[Front, set[_Claim]] = {}

    def owner(self, front: Front) -> Key | None:
        """The Service that owns a front; None if no Service names it."""
        claim = self._owners.get(front)
        return None if claim is None else claim.key

    def rivals(self, front: Front) -> list[Key]:
        """The Services that name a front, its owner first; empty if no Service names it."""
        claims = self._rivals.get(front)
        if claims is None:
            owner = self.owner(front)
            return [] if owner is None else [owner]
        return [claim.key for claim in sorted(claims)]

    def change(self, key: Key, before: ServiceRow | None, after: ServiceRow | None) -> set[Key]:
        """Replaces the claims of a Service.

        The cost depends on its fronts and, if an owner changes, on the rivals.

        Args:
            key: the Service.
            before: the Service before the change; None if it did not exist.
            after: the Service after the change; None if it does not exist.

        Returns:
            The other Services whose plans may have changed.
        """
        old, new = self._ranks(before), self._ranks(after)
        touched: set[Key] = set()
        if old != new:
            for front, rank in old.items():
                if new.get(front) != rank:
                    self._withdraw(front, _Claim(rank, key), touched)
            for front, rank in new.items():
                if old.get(front) != rank:
                    self._claim(front, _Claim(rank, key), touched)
            touched.discard(key)
        return touched

    def _ranks(self, row: ServiceRow | None) -> dict[Front, int]:
        """The fronts that a Service names, with the rank of its claim.

        The better one if it names a front twice.
        """
        found: dict[Front, int] = {}
        if row is None:
            return found
        cluster_ip = next((ip for ip in row.cluster_ips if family_of(ip) == self._family), None)
        if cluster_ip is None:
            return found
        others = (*row.load_balancer_ips, *(row.external_ips if self._external_ips else ()))
        for port in row.ports:
            for address in others:
                if family_of(address) == self._family:
                    found.setdefault((address, port.protocol, port.port), _OTHER)
            if port.node_port:
                found["", port.protocol, port.node_port] = _OTHER
            found[cluster_ip, port.protocol, port.port] = _CLUSTER_IP
        if row.health_check_port:
            found.setdefault(("", "TCP", row.health_check_port), _HEALTH_CHECK)
        return found

    def _claim(self, front: Front, claim: _Claim, touched: set[Key]) -> None:
        owner = self._owners.get(front)
        if owner is not None:
            self._rivals.setdefault(front, {owner}).add(claim)
        if owner is None or claim < owner:
            self._set_owner(front, claim, touched)

    def _withdraw(self, front: Front, claim: _Claim, touched: set[Key]) -> None:
        rivals = self._rivals.get(front)
        if rivals is None:
            self._set_owner(front, None, touched)
            return
        rivals.remove(claim)
        if self._owners[front] == claim:
            self._set_owner(front, min(rivals), touched)
        if len(rivals) == 1:
            del self._rivals[front]

    def _set_owner(self, front: Front, owner: _Claim | None, touched: set[Key]) -> None:
        if owner is None:
            del self._owners[front]
        else:
            self._owners[front] = owner
        touched.update(rival.key for rival in self._rivals.get(front, ()))
        address, protocol, port = front
        if address and (at_node := self._owners.get(("", protocol, port))) is not None:
            touched.add(at_node.key)
