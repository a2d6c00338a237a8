"""Removes iptables mode's rules and chains, of both kinds of programs, whoever wrote them.

What others have put into the same tables stays, and so do chains of ours that their rules lead to: KUBE-MARK-MASQ is
used by network plugins. KUBE-FIREWALL is the kubelet's.
"""

import logging
import shutil
from collections.abc import Iterable

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.iptables import names
from kubeproxy.backends.programs import NAT, TABLES, Programs, RefusedError, Tables, Variant, target

log = logging.getLogger(__name__)

_CHAINS = {
    names.SERVICES,
    names.EXTERNAL_SERVICES,
    names.NODE_PORTS,
    names.POSTROUTING,
    names.MARK_MASQ,
    names.FORWARD,
    names.PROXY_FIREWALL,
    names.CANARY,
}
_PROGRAMS: tuple[tuple[Family, str], ...] = ((IPV4, "iptables"), (IPV6, "ip6tables"))
_VARIANTS: tuple[tuple[Variant, str], ...] = (("legacy", "-legacy"), ("nf_tables", "-nft"), ("legacy", ""))


def cleanup() -> None:
    """Cleans up through every iptables program there is.

    Raises:
        SyncError: a program failed; the others did what they could.
    """
    troubles = []
    for family, base in _PROGRAMS:
        found = [(v, base + suffix) for v, suffix in _VARIANTS if shutil.which(f"{base}{suffix}-restore")]
        for variant, name in found[:2]:
            try:
                count = clean(Programs(family, f"{name}-save", f"{name}-restore", variant))
            except (RefusedError, SyncError) as e:
                troubles.append(str(e))
                continue
            if count:
                log.info("Removed %d chains of iptables mode through %s", count, name)
    if troubles:
        raise SyncError("; ".join(troubles))


def clean(tables: Tables) -> int:
    """Removes our rules and chains from some tables; returns how many chains went.

    Raises:
        RefusedError: it was refused.
        SyncError: it could not be tried.
    """
    count = 0
    for table, lines in _by_table(tables.save()).items():
        chains = [line[1 : line.index(" ")] for line in lines if line.startswith(":")]
        rules = [line[3:].partition(" ")[::2] for line in lines if line.startswith("-A ")]
        ours = {c for c in chains if c in _CHAINS or (table == NAT and names.is_owned(c))}
        hooks = [(c, rule) for c, rule in rules if c not in ours and target(rule) in ours - {names.MARK_MASQ}]
        for c, rule in rules:
            if c not in ours and (c, rule) not in hooks:
                ours.discard(target(rule))
        if ours:
            tables.restore(
                table,
                [
                    *[f"-D {c} {rule}\n" for c, rule in hooks],
                    *[f":{c} - [0:0]\n" for c in sorted(ours)],
                    *[f"-X {c}\n" for c in sorted(ours)],
                ],
            )
            count += len(ours)
    return count


def _by_table(lines: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
            if table in TABLES:
                found[table] = []
        elif table in found:
            found[table].append(line)
    return found
