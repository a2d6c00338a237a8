"""Chains that Services share: one for each number of endpoints that some front has.

    pick-N       sends to one of the N endpoints of the packet's front
    here-N       the same, of those for traffic that starts on this node
    external-N   marks for masquerading; pick-N
    local-M-N    policy Local: this node's Pods here-N; this node itself marked, here-N; all others pick-M

and the same with `nodeport-` in front, for node ports. The name of a chain determines its rules.
"""

from typing import NamedTuple, Self

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft.messages import GOTO, verdict


class SharedChain(NamedTuple):
    """A shared chain.

    Attributes:
        kind: pick, here, external or local.
        node_port: it is for node ports.
        endpoints: their number, N above.
        local: number of endpoints on this node, M above.
    """

    kind: str
    node_port: bool
    endpoints: int
    local: int = 0

    @property
    def name(self) -> str:
        """Its name in the table."""
        counts = f"{self.local}-{self.endpoints}" if self.kind == "local" else str(self.endpoints)
        return f"{'nodeport-' if self.node_port else ''}{self.kind}-{counts}"

    def slots(self, family: int) -> layout.SetType | None:
        """The map it picks from, if it does."""
        if self.kind not in {"pick", "here"}:
            return None
        return layout.endpoints(family, self.endpoints, here=self.kind == "here", node_port=self.node_port)

    @property
    def leads_to(self) -> tuple[Self, ...]:
        """The chains its rules lead to."""
        if self.kind == "external":
            return (self._replace(kind="pick"),)
        if self.kind == "local":
            here = self._replace(kind="here", local=0)
            return (
                (here, self._replace(kind="pick", endpoints=self.local, local=0)) if self.local else (here,)
            )
        return ()

    def rules(self, statements: Statements) -> list[Rule]:
        """Its rules."""
        targets = [go_to(chain.name) for chain in self.leads_to]
        if self.kind == "external":
            return [Rule((*statements.mark(), targets[0]), "masquerade")]
        if self.kind == "local":
            return short_circuit(statements, targets[0]) + [Rule((target,)) for target in targets[1:]]
        slots = self.slots(statements.family)
        assert slots is not None
        return [Rule(statements.pick(slots.name, self.endpoints, node_port=self.node_port))]


def go_to(chain: str) -> bytes:
    """Goes to a chain and does not come back."""
    return x.verdict(verdict(GOTO, chain))


def short_circuit(statements: Statements, everywhere: bytes) -> list[Rule]:
    """Policy Local does not apply to traffic that starts on this node: it is sent to any endpoint."""
    rules = []
    if (pod := statements.from_local_pod()) is not None:
        rules.append(Rule((*pod, everywhere), "short-circuit pod traffic"))
    rules.append(Rule((*statements.from_this_host(), *statements.mark()), "masquerade local traffic"))
    rules.append(Rule((*statements.from_this_host(), everywhere), "short-circuit local traffic"))
    return rules
