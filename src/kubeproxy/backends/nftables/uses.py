"""What several Services need together: elements and chains that stay as long as one of them does."""

from collections import Counter
from collections.abc import Iterable, Iterator

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.compile import Element, ServiceElements
from kubeproxy.backends.nftables.firewall import Firewall

_SHARED_SETS = (layout.CLUSTER_IPS, layout.HAIRPIN)


class UseCounts:
    """Counts how many Services need an object, by the `ServiceElements` values that are added and removed."""

    def __init__(self) -> None:
        self._elements: Counter[Element] = Counter()
        self._chains: Counter[SharedChain] = Counter()

    @property
    def chains(self) -> list[SharedChain]:
        """The chains that are needed."""
        return list(self._chains)

    def clear(self) -> None:
        """Sets all counts to zero."""
        self._elements.clear()
        self._chains.clear()

    def difference(
        self, before: ServiceElements, after: ServiceElements
    ) -> tuple[list[Element], list[Element]]:
        """The elements to delete and those to add when a Service needs something else; both are counted."""
        gone = [e for e in before.elements if e not in after.elements]
        come = [e for e in after.elements if e not in before.elements]
        delete = [e for e in gone if e[0] not in _SHARED_SETS or self._less(e)]
        add = [e for e in come if e[0] not in _SHARED_SETS or self._more(e)]
        old, new = before.firewalls, after.firewalls
        for front in {**old, **new}:
            was, will = old.get(front), new.get(front)
            if was != will:
                delete += _sources(front, was, will)
                add += _sources(front, will, was)
        return delete, add

    def acquire(self, chains: Iterable[SharedChain]) -> list[SharedChain]:
        """Counts chains, and those they lead to; returns the ones to make, each after those it leads to."""
        made: list[SharedChain] = []
        for chain in sorted(chains):
            self._chains[chain] += 1
            if self._chains[chain] == 1:
                made += [*self.acquire(chain.leads_to), chain]
        return made

    def release(self, chains: Iterable[SharedChain]) -> list[SharedChain]:
        """The reverse; returns the ones to delete, each before those it leads to."""
        gone: list[SharedChain] = []
        for chain in sorted(chains):
            self._chains[chain] -= 1
            if not self._chains[chain]:
                del self._chains[chain]
                gone += [chain, *self.release(chain.leads_to)]
        return gone

    def _more(self, element: Element) -> bool:
        self._elements[element] += 1
        return self._elements[element] == 1

    def _less(self, element: Element) -> bool:
        self._elements[element] -= 1
        if self._elements[element]:
            return False
        del self._elements[element]
        return True


def _sources(front: bytes, firewall: Firewall | None, other: Firewall | None) -> Iterator[Element]:
    """The elements of one firewall that another one has not."""
    for element in firewall.elements(front, other) if firewall is not None else ():
        yield layout.firewall_sources(front), element
