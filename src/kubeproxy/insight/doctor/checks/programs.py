"""Other programs that write rules for Services, or rules that packets to Services must pass."""

from collections.abc import Iterator
from typing import Final

from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.backends.ebpf import names
from kubeproxy.backends.nftables import layout
from kubeproxy.insight.doctor.check import ERROR, NOTE, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts
from kubeproxy.netlink.nft.messages import FAMILY_NAMES, FORWARD, OUTPUT, PREROUTING
from kubeproxy.netlink.nft.objects import AnyChain

_GROUP: Final = "other programs"
_IPTABLES: Final = frozenset({"filter", "nat", "mangle", "raw", "security"})
_OF_KUBE_PROXY: Final = "KUBE-SERVICES"
_FIREWALLS: Final = {"firewalld": "firewalld"}


def _of_iptables(chain: AnyChain) -> bool:
    return chain.table in _IPTABLES and FAMILY_NAMES[chain.family] != "inet"


def _with(facts: Facts, start: str) -> list[str]:
    """Where chains of iptables have a name that starts so, in both mechanisms."""
    found = [
        f"{FAMILY_NAMES[c.family]} {c.table}"
        for c in facts.chains()
        if _of_iptables(c) and c.name.startswith(start)
    ]
    found += [f"legacy {t.table} ({t.family})" for t in facts.legacy() if start in t.markers]
    return list(dict.fromkeys(found))


def _programs(facts: Facts, *names: str) -> list[str]:
    return [
        f"{p.program or p.name} (process {p.number})"
        for p in facts.programs()
        if {p.program, p.name} & {*names}
    ]


@check(
    "KP014",
    "no second kube-proxy runs",
    group=_GROUP,
    severity=ERROR,
    looks_at="processes in this network namespace",
)
def second(facts: Facts) -> Iterator[Symptom]:
    """Kubernetes' own kube-proxy, an executable of that name; this program is run by Python."""
    holder = facts.daemon().holder
    for program in facts.programs():
        if program.program == "kube-proxy" and (holder is None or program.number != holder.process):
            yield Symptom(
                f"Kubernetes' kube-proxy runs here{', too' if holder else ''}",
                f"process {program.number}",
                "remove its DaemonSet or static Pod: two proxies replace each other's rules (migrate.md)",
            )


@check(
    "KP015",
    "no rules of another mode in iptables",
    group=_GROUP,
    severity=ERROR,
    looks_at="chain KUBE-SERVICES of iptables",
)
def other_mode(facts: Facts) -> Iterator[Symptom]:
    """Rules of iptables that a kube-proxy in another mode left precede those of nf_tables, or the reverse."""
    mode = facts.snapshot().mode
    if mode.clean_tables is not None:
        return
    if places := _with(facts, _OF_KUBE_PROXY):
        yield Symptom(
            f"iptables has rules of another kube-proxy beside {mode.name} mode",
            f"chain {_OF_KUBE_PROXY} in {', '.join(places)}",
            "if no other kube-proxy runs, remove them by a restart of kube-proxy, or by kube-proxy --cleanup while it is stopped",
        )


@check(
    "KP016",
    "table kube-proxy is ours",
    group=_GROUP,
    severity=ERROR,
    looks_at="the comment of table kube-proxy of nf_tables",
)
def foreign_table(facts: Facts) -> Iterator[Symptom]:
    """The table of a kube-proxy in nftables mode that is not the one that runs."""
    comments = facts.table_comments()
    if not comments:
        return
    in_iptables = facts.snapshot().mode.clean_tables is not None
    for family, comment in comments.items():
        if in_iptables or comment != layout.COMMENT:
            yield Symptom(
                f"{family}: table kube-proxy of nf_tables is not of this kube-proxy",
                f"its comment is {comment!r}",
                "if no other kube-proxy runs, restart kube-proxy, which replaces it, or delete it: nft delete table"
                f" {'ip' if family == IPV4 else 'ip6'} kube-proxy",
            )


@check(
    "KP017",
    "no rules of kube-proxy in both kinds of iptables",
    group=_GROUP,
    severity=ERROR,
    looks_at="chain KUBE-SERVICES, legacy and nf_tables",
)
def both_kinds(facts: Facts) -> Iterator[Symptom]:
    """An earlier kube-proxy with the other programs left rules that are still in force."""
    nft = {FAMILY_NAMES[c.family] for c in facts.chains() if _of_iptables(c) and c.name == _OF_KUBE_PROXY}
    for family, name in ((IPV4, "ip"), (IPV6, "ip6")):
        legacy = [t.table for t in facts.legacy() if t.family == family and _OF_KUBE_PROXY in t.markers]
        if legacy and name in nft:
            yield Symptom(
                f"{family}: rules of kube-proxy are in legacy iptables and in nf_tables",
                f"{_OF_KUBE_PROXY} is in legacy {', '.join(legacy)} and in nf_tables",
                "remove the old ones: kube-proxy --cleanup --cleanup-variant=legacy (or nf_tables), see iptables.md",
            )


@check(
    "KP018",
    "Cilium leaves Services alone",
    group=_GROUP,
    severity=NOTE,
    looks_at="cilium-agent and its interface",
)
def cilium(facts: Facts) -> Iterator[Symptom]:
    """With kubeProxyReplacement, Cilium translates before any rule of ours is asked."""
    found = _programs(facts, "cilium-agent")
    if found or any(link.name == "cilium_host" for link in facts.links()):
        yield Symptom(
            "Cilium runs on this node",
            ", ".join(found) or "interface cilium_host",
            "make sure that it does not replace kube-proxy: cilium-dbg status | grep KubeProxyReplacement must say False",
        )


@check(
    "KP019",
    "Calico leaves Services alone",
    group=_GROUP,
    severity=ERROR,
    looks_at="interfaces of Calico's eBPF mode",
)
def calico(facts: Facts) -> Iterator[Symptom]:
    """Calico in eBPF mode translates Services itself."""
    if any(link.name in {"bpfin.cali", "bpfout.cali"} for link in facts.links()):
        yield Symptom(
            "Calico's eBPF mode serves Services on this node, too",
            "interface bpfin.cali exists",
            "choose one: set bpfEnabled of FelixConfiguration to false, or remove kube-proxy",
        )


@check(
    "KP020",
    "kube-router leaves Services alone",
    group=_GROUP,
    severity=ERROR,
    looks_at="the interface of kube-router's proxy",
)
def kube_router(facts: Facts) -> Iterator[Symptom]:
    """kube-router with --run-service-proxy writes virtual servers."""
    if any(link.name == "kube-dummy-if" for link in facts.links()):
        yield Symptom(
            "kube-router serves Services on this node, too",
            ", ".join(["interface kube-dummy-if exists", *_programs(facts, "kube-router")]),
            "start kube-router with --run-service-proxy=false and run kube-router --cleanup-config",
        )


@check(
    "KP021",
    "firewalld does not filter forwarded packets",
    group=_GROUP,
    severity=WARNING,
    looks_at="table inet firewalld",
)
def firewalld(facts: Facts) -> Iterator[Symptom]:
    """The firewall drops what its zones do not allow, after our rules accepted it."""
    if any(c.table == "firewalld" for c in facts.chains()):
        yield Symptom(
            "firewalld is active",
            "table firewalld exists in nf_tables",
            "allow the Pods' ranges and interfaces in zone trusted, and node ports in the zone of the interface, or disable firewalld",
        )


@check(
    "KP022", "ufw does not filter forwarded packets", group=_GROUP, severity=WARNING, looks_at="chains of ufw"
)
def ufw(facts: Facts) -> Iterator[Symptom]:
    """The default of ufw for forwarded packets is to drop them."""
    if places := [*_with(facts, "ufw-"), *_with(facts, "ufw6-")]:
        yield Symptom(
            "ufw is active",
            f"chains of ufw in {', '.join(places)}",
            'set DEFAULT_FORWARD_POLICY="ACCEPT" in /etc/default/ufw and reload it, or disable ufw',
        )


def _dropping(facts: Facts) -> Iterator[tuple[str, bool]]:
    """Where forwarded packets are dropped by policy, and whether this is table filter of iptables."""
    for chain in facts.chains():
        if (
            chain.drops
            and chain.hook is not None
            and chain.hook.hook == FORWARD
            and chain.table != "firewalld"
        ):
            own = chain.table == "filter" and _of_iptables(chain)
            yield f"table {FAMILY_NAMES[chain.family]} {chain.table}, chain {chain.name}", own
    for table in facts.legacy():
        if table.forward_drops:
            yield f"legacy table filter ({table.family}), chain FORWARD", True


@check(
    "KP023",
    "Docker does not drop forwarded packets",
    group=_GROUP,
    severity=WARNING,
    looks_at="chain DOCKER and the policy of FORWARD",
)
def docker(facts: Facts) -> Iterator[Symptom]:
    """Docker sets the policy of FORWARD to DROP."""
    dropping = [place for place, of_iptables in _dropping(facts) if of_iptables]
    if dropping and _with(facts, "DOCKER"):
        yield Symptom(
            "Docker's policy drops forwarded packets",
            f"policy DROP in {'; '.join(dropping)}, and chain DOCKER",
            'iptables -P FORWARD ACCEPT, or "ip-forward-no-drop": true in /etc/docker/daemon.json; or allow the Pods\' ranges in DOCKER-USER',
        )


@check(
    "KP024",
    "no policy drops forwarded packets",
    group=_GROUP,
    severity=WARNING,
    looks_at="policies of chains at hook forward",
)
def forward_policy(facts: Facts) -> Iterator[Symptom]:
    """Packets to endpoints of other hosts and Pods are forwarded."""
    if _with(facts, "DOCKER") or _with(facts, "ufw-"):
        return
    for place, _ in _dropping(facts):
        yield Symptom(
            "forwarded packets are dropped by policy",
            f"policy DROP in {place}",
            "allow the Pods' ranges there, or set the policy to accept",
        )


@check(
    "KP025",
    "one kind of iptables is used",
    group=_GROUP,
    severity=WARNING,
    looks_at="tables of legacy iptables and of nf_tables",
)
def both_used(facts: Facts) -> Iterator[Symptom]:
    """Rules in both are all in force, and each kind of programs shows only its own."""
    legacy = [
        f"{t.table} ({t.family}, {t.rules} rules)"
        for t in facts.legacy()
        if t.rules > _BUILT_IN.get(t.table, 6)
    ]
    nft = sorted({f"{FAMILY_NAMES[c.family]} {c.table}" for c in facts.chains() if _of_iptables(c)})
    if legacy and nft:
        yield Symptom(
            "rules of legacy iptables and of nf_tables are side by side",
            f"legacy: {', '.join(legacy)}; nf_tables: {', '.join(nft)}",
            "use one kind for all programs of the node (update-alternatives --config iptables), and reboot",
        )


_BUILT_IN: Final = {"filter": 4, "nat": 5, "mangle": 6, "raw": 3, "security": 4}
"""The rules of an empty legacy table: one for the policy of each built-in chain, and one at the end."""


@check(
    "KP026",
    "no other program translates destinations first",
    group=_GROUP,
    severity=WARNING,
    looks_at="base chains of type nat",
)
def priorities(facts: Facts) -> Iterator[Symptom]:
    """Of several chains that translate destinations, the one with the lowest priority takes precedence."""
    for chain in facts.chains():
        hook = chain.hook
        if (
            hook is None
            or hook.type != "nat"
            or hook.hook not in {PREROUTING, OUTPUT}
            or hook.priority > _DSTNAT
        ):
            continue
        if not _of_iptables(chain) and chain.table not in {layout.TABLE, *_FIREWALLS}:
            yield Symptom(
                f"another table translates destinations {'at our priority' if hook.priority == _DSTNAT else 'before us'}",
                f"table {FAMILY_NAMES[chain.family]} {chain.table}, chain {chain.name}, priority {hook.priority}",
                "give that chain a priority above -100, or make sure that its rules match no address of a Service",
                severity=NOTE if hook.priority == _DSTNAT else None,
            )


_DSTNAT: Final = -100


@check(
    "KP027",
    "no other program connects sockets to endpoints",
    group=_GROUP,
    severity=ERROR,
    looks_at="eBPF programs at the cgroup's hooks for connect and sendmsg",
)
def connectors(facts: Facts) -> Iterator[Symptom]:
    """A socket that such a program connects to an endpoint is never seen by rules for its Service."""
    found = facts.connectors()
    manners = facts.snapshot().mode.manners
    ours = manners is not None and manners.at_connect
    named = {each.name for each in found}
    plugins = names.translators(named)
    if plugins:
        yield Symptom(
            "programs of a network plugin connect sockets to endpoints",
            f"programs {', '.join(plugins)}",
            "turn off the plugin's load balancing of sockets (Cilium: kubeProxyReplacement=false and socketLB.enabled=false; Calico: bpfEnabled of the"
            " FelixConfiguration), and remove the programs by a restart of the node; or remove kube-proxy",
            severity=None if ours else WARNING,
        )
    left = sorted(name for name in named if name.startswith(names.INFIX))
    if left and not ours:
        yield Symptom(
            "programs of ebpf mode are left behind",
            f"programs {', '.join(left)}",
            "their endpoints are those of the time when ebpf mode ended: restart kube-proxy, or run kube-proxy --cleanup while it is stopped",
        )
    others = sorted(each.name or f"ID {each.number}" for each in found if each.name not in {*plugins, *left})
    if others:
        yield Symptom(
            "other programs run when sockets are connected",
            f"programs {', '.join(others)}",
            "that is no fault unless they change addresses of Services: bpftool cgroup tree, bpftool prog",
            severity=NOTE,
        )


CHECKS: Final = of_module(globals())
