"""The sockets of relays as lines, and what differs between those that are open and those that are wanted.

A line is what `ss` prints of a socket, with the Service port as comment, and where it sends connections.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends import relayed
from kubeproxy.backends.base import HeldState, KernelComparison
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.backends.shared.listeners import HeldListener
from kubeproxy.model.plan import Key, ServicePlan


def lines(sockets: Iterable[RelaySocket]) -> Iterator[str]:
    """One line for each kind of client of each socket."""
    for each in sockets:
        listener = each.listener
        service = listener.name.split(" ")[1]
        shown = f'{HeldListener(each.address, each.port, listener)} comment "{service}"'
        header = " with PROXY protocol" if listener.header else ""
        kept = f" for {listener.affinity} s" if listener.affinity else ""
        for choice in listener.choices:
            yield f"{shown} -> {relayed.described(choice)}{kept}{header}"


def compare(
    found: KernelComparison, held: Iterable[RelaySocket], wanted: Iterable[RelaySocket]
) -> KernelComparison:
    """A comparison of rules, with that of sockets.

    Args:
        found: what rules lack and what is foreign to them.
        held: the sockets that are open.
        wanted: those that should be.
    """
    have, want = Counter(lines(held)), Counter(lines(wanted))
    lacking, foreign = tuple((want - have).elements()), tuple((have - want).elements())
    if not lacking and not foreign:
        return found
    return replace(
        found,
        lacking=(*found.lacking, *lacking),
        foreign=(*found.foreign, *foreign),
        writes=found.writes + len(lacking) + len(foreign),
    )


def of(
    sockets: Sequence[RelaySocket], held: HeldState, plans: Mapping[Key, ServicePlan]
) -> Sequence[RelaySocket]:
    """The sockets to compare with plans: all, or of a part of the kernel those of these Services."""
    if not getattr(held, "part", False):
        return sockets
    groups = {relayed.group(port) for plan in plans.values() for port in plan.ports}
    return [each for each in sockets if each.listener.group in groups]
