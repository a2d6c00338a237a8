"""The outcome for the packets of one kind: the result of evaluating rules, and of plans in the same form."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct

from kubeproxy.api.addresses import join
from kubeproxy.model.plan import FORWARD
from kubeproxy.model.verdict import Packet, Verdict

Fate = Literal["forward", "drop", "reject", "pass"]
Target = tuple[str, int]
"""Address and port of an endpoint."""

SOME: Final = -1
"""The affinity of rules that keep the clients of some endpoints only."""

_SHARE_TOLERANCE: Final = 0.02
"""Shares of endpoints that differ by less count as equal: probabilities in rules are rounded."""


class UnknownRuleError(Exception):
    """A rule that cannot be evaluated; the message is the rule."""


class Path(Struct, frozen=True):
    """One way a packet can take.

    Attributes:
        probability: how likely, from 0 to 1.
        fate: the result.
        target: the endpoint it is forwarded to.
        masquerade: its source becomes an address of the node.
    """

    probability: float
    fate: Fate
    target: Target | None = None
    masquerade: bool = False


class Outcome(Struct, frozen=True):
    """The outcome for packets of one kind.

    Attributes:
        fates: how likely each fate is; more than one only where rules choose at random between endpoints and
            something else.
        targets: the endpoints, each with its share of all packets and whether the source becomes an address
            of the node.
        affinity: so many seconds a client keeps its endpoint; 0 without session affinity, SOME if only for
            some endpoints.
    """

    fates: Mapping[Fate, float]
    targets: Mapping[Target, tuple[float, bool]] = {}
    affinity: int = 0

    def __str__(self) -> str:
        parts = [
            f"{join(*target)} {100 * share:.0f} %{' masqueraded' if masquerade else ''}"
            for target, (share, masquerade) in sorted(self.targets.items())
        ]
        fates = [
            fate if probability > 1 - _SHARE_TOLERANCE else f"{fate} {100 * probability:.0f} %"
            for fate, probability in sorted(self.fates.items())
            if fate != FORWARD
        ]
        seconds = "some endpoints only" if self.affinity == SOME else f"{self.affinity} s"
        affinity = [f"affinity: {seconds}"] if self.affinity else []
        return ", ".join((*fates, *parts, *affinity)) or "nothing"


def of_paths(paths: Iterable[Path]) -> Outcome:
    """The outcome of all ways a packet can take; its affinity is not known from these."""
    fates: dict[Fate, float] = {}
    targets: dict[Target, tuple[float, bool]] = {}
    for path in paths:
        fates[path.fate] = fates.get(path.fate, 0.0) + path.probability
        if path.target is not None:
            share, masquerade = targets.get(path.target, (0.0, False))
            targets[path.target] = share + path.probability, masquerade or path.masquerade
    return Outcome(fates, targets)


def of_verdict(packet: Packet, verdict: Verdict) -> Outcome:
    """The outcome according to plans."""
    if verdict.action != FORWARD:
        return Outcome({verdict.action: 1.0})
    targets = {
        (endpoint.address, endpoint.port): (share, verdict.masquerades(packet, endpoint))
        for endpoint, share in zip(verdict.endpoints, verdict.shares, strict=True)
        if share
    }
    return Outcome({FORWARD: 1.0}, targets, verdict.port.affinity if verdict.port else 0)


def same(one: Outcome, other: Outcome, packet: Packet, local_addresses: Iterable[str]) -> bool:
    """Whether two outcomes are the same for clients and endpoints.

    An endpoint that is an address of the node sees the source of a packet that came in, whether rules ask for
    masquerading or not, because such a packet does not leave the node.

    Args:
        one: an outcome.
        other: another.
        packet: the packet.
        local_addresses: the addresses of the node.
    """
    own = frozenset(local_addresses)
    if not _near(one.fates, other.fates) or one.targets.keys() != other.targets.keys():
        return False
    if one.targets and one.affinity != other.affinity:
        return False
    for target, (share, masquerade) in one.targets.items():
        other_share, other_masquerade = other.targets[target]
        if abs(share - other_share) > _SHARE_TOLERANCE:
            return False
        stays = bool(packet.interface) and target[0] in own
        if masquerade != other_masquerade and not stays:
            return False
    return True


def _near(one: Mapping[Fate, float], other: Mapping[Fate, float]) -> bool:
    return all(abs(one.get(fate, 0.0) - other.get(fate, 0.0)) <= _SHARE_TOLERANCE for fate in {*one, *other})
