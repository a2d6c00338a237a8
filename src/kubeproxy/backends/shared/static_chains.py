"""Chains of iptables that do not depend on Services: what all modes share, and how such chains are written.

Inputs are lines for `iptables-restore --noflush`. Each chain is declared before rules lead to it.
"""

from collections.abc import Callable, Iterable, Sequence

Chain = tuple[str, str]
"""Table and chain."""


def marking(mark: str) -> list[str]:
    """The rules of KUBE-MARK-MASQ: the packet is to be masqueraded."""
    return [f"-j MARK --set-xmark {mark}/{mark}"]


def masquerading(mark: str) -> list[str]:
    """The last rules of KUBE-POSTROUTING: what has the mark loses it and is masqueraded."""
    return [
        f"-m mark ! --mark {mark}/{mark} -j RETURN",
        f"-j MARK --set-xmark {mark}/0x0",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    ]


def forwarding(mark: str) -> list[str]:
    """The last rules of the chain for forwarded packets: those of Services are accepted."""
    return [
        f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {mark}/{mark} -j ACCEPT',
        '-m comment --comment "kubernetes forwarding conntrack rule"'
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]


def declared(chain: str) -> str:
    """Makes a chain; one that is there becomes empty."""
    return f":{chain} - [0:0]\n"


def filled(chain: str, rules: Iterable[str]) -> list[str]:
    """Appends rules to a chain."""
    return [f"-A {chain} {rule}\n" for rule in rules]


def on_top(hooks: Sequence[tuple[Chain, str]], has: Callable[[Chain, str], bool]) -> list[tuple[str, str]]:
    """Puts single rules on top of chains of the kernel, as far as they are not there.

    Args:
        hooks: chains and rules, the topmost first.
        has: whether a rule is in a chain.

    Returns:
        Tables and lines.
    """
    return [(where[0], f"-I {where[1]} {rule}\n") for where, rule in reversed(hooks) if not has(where, rule)]


def removed(rules: Iterable[tuple[str, str]], chains: Sequence[str]) -> list[str]:
    """Deletes single rules, each with its chain, and then whole chains, which may lead to each other."""
    return [
        *[f"-D {chain} {rule}\n" for chain, rule in rules],
        *map(declared, chains),
        *[f"-X {chain}\n" for chain in chains],
    ]
