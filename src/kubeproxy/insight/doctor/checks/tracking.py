"""Connection tracking: its limits, what it loses, and its settings."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from kubeproxy import sysctls
from kubeproxy.api.addresses import join
from kubeproxy.insight.doctor.check import ERROR, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts

_GROUP: Final = "connection tracking"
_FOLDER: Final = "net/netfilter/"
FEW: Final = 100
"""Less than so many flows or packets are no finding."""


def _number(facts: Facts, name: str) -> int | None:
    return facts.settings().number(f"{_FOLDER}{name}")


@check(
    "KP050",
    "the connection table has room",
    group=_GROUP,
    severity=WARNING,
    looks_at="tracked flows and nf_conntrack_max",
)
def usage(facts: Facts) -> Iterator[Symptom]:
    """When the table is full, packets of new connections are dropped."""
    found = facts.tracking()
    if found.most and found.entries > 0.75 * found.most:
        share = 100 * found.entries / found.most
        states: Counter[str] = Counter()
        for flow in found.flows:
            states[f"{flow.protocol} {flow.state}"] += flow.count
        most = ", ".join(f"{count:,} {state}" for state, count in states.most_common(3))
        yield Symptom(
            f"the connection table is {share:.0f} % full",
            f"{found.entries:,} of {found.most:,} flows; {most}",
            "raise conntrack.maxPerCore and conntrack.min in the configuration, or find the client that opens them (KP053, KP055)",
            severity=ERROR if share > 90 else None,
        )


@check(
    "KP051",
    "connection tracking drops nothing",
    group=_GROUP,
    severity=WARNING,
    looks_at="counters drop and early_drop",
)
def drops(facts: Facts) -> Iterator[Symptom]:
    """The table was full at some time."""
    counters = facts.tracking().counters
    lost = counters.get("drop", 0) + counters.get("early_drop", 0)
    if lost:
        yield Symptom(
            f"the connection table was full: {lost:,} packets or flows were dropped",
            f"drop {counters.get('drop', 0):,}, early_drop {counters.get('early_drop', 0):,} since boot (conntrack -S)",
            "raise conntrack.maxPerCore and conntrack.min in the configuration (conntrack.md)",
        )


@check(
    "KP052",
    "packets do not race",
    group=_GROUP,
    severity=WARNING,
    looks_at="counters insert_failed and clash_resolve",
)
def races(facts: Facts) -> Iterator[Symptom]:
    """Of two simultaneous packets of one new flow, typically A and AAAA queries of DNS, one is dropped."""
    counters = facts.tracking().counters
    failed, new = counters.get("insert_failed", 0), counters.get("insert", 0)
    if failed >= FEW and failed * 1000 > new:
        yield Symptom(
            f"{failed:,} packets were dropped because another packet of the same flow came first",
            f"insert_failed {failed:,}, resolved {counters.get('clash_resolve', 0):,} (conntrack -S)",
            "for DNS: options single-request-reopen in resolv.conf, or a DNS cache on each node (NodeLocal DNSCache)",
        )


@check(
    "KP053",
    "no Service fills the connection table",
    group=_GROUP,
    severity=WARNING,
    looks_at="unanswered flows by front",
)
def one_front(facts: Facts) -> Iterator[Symptom]:
    """Many UDP flows without an answer to one Service."""
    found = facts.tracking()
    waiting: Counter[tuple[str, str, int]] = Counter()
    for flow in found.flows:
        if not flow.replied and flow.protocol != "TCP":
            waiting[flow.protocol, *flow.front] += flow.count
    for (protocol, address, port), count in waiting.most_common(1):
        if count >= FEW and 2 * count > found.entries:
            owner = _owner(facts, protocol, address, port)
            yield Symptom(
                f"most tracked flows are unanswered {protocol} flows to one destination",
                f"{count:,} of {found.entries:,} flows go to {join(address, port)}{f' of Service {owner}' if owner else ''} and have no answer",
                "find out why it does not answer (KP081, KP086), or lower conntrack.udpTimeout",
                service=owner,
            )


def _owner(facts: Facts, protocol: str, address: str, port: int) -> str:
    """The Service that owns a front; "" if there is none, or Services are not known."""
    for plans in facts.plans.values():
        for key, plan in plans.items():
            for each in plan.ports:
                addresses = {each.cluster_ip, *each.external_ips, *each.load_balancer_ips}
                if (each.protocol, each.port) == (protocol, port) and address in addresses:
                    return "/".join(key)
    return ""


@check(
    "KP054",
    "the hash table is large enough",
    group=_GROUP,
    severity=WARNING,
    looks_at="nf_conntrack_buckets and nf_conntrack_max",
)
def buckets(facts: Facts) -> Iterator[Symptom]:
    """With many flows in each bucket every packet takes longer."""
    most, size = _number(facts, "nf_conntrack_max"), _number(facts, "nf_conntrack_buckets")
    if most and size and most > 16 * size:
        yield Symptom(
            "the hash table of connection tracking is small for its limit",
            f"nf_conntrack_max is {most:,}, nf_conntrack_buckets {size:,}: up to {most // size} flows in each bucket",
            f"echo {most // 4} > /sys/module/nf_conntrack/parameters/hashsize in the host's network namespace",
        )


@check(
    "KP055",
    "connections are answered",
    group=_GROUP,
    severity=WARNING,
    looks_at="TCP connections in state SYN_SENT",
)
def half_open(facts: Facts) -> Iterator[Symptom]:
    """Many connections that wait for their first answer: something drops packets, or a scan."""
    direct = {
        (each.address, each.port)
        for plans in facts.plans.values()
        for plan in plans.values()
        for port in plan.ports
        for each in port.endpoints
    }
    tcp = [
        flow
        for flow in facts.tracking().flows
        if flow.protocol == "TCP" and not (flow.endpoint == flow.front and flow.front in direct)
    ]  # without those that an earlier run of this command tried (KP081)
    total = sum(flow.count for flow in tcp)
    waiting: Counter[tuple[str, int]] = Counter()
    for flow in tcp:
        if flow.state == "SYN_SENT" and not flow.replied:
            waiting[flow.endpoint] += flow.count
    count = sum(waiting.values())
    if count >= FEW and 2 * count > total:
        (place, most), *_ = waiting.most_common(1)
        yield Symptom(
            "most TCP connections are not answered",
            f"{count:,} of {total:,} are in state SYN_SENT; {most:,} of them to {join(*place)}",
            "find out what drops the packets (KP023, KP024, KP083), or who sends them: conntrack -L -p tcp --state SYN_SENT",
        )


@check(
    "KP056",
    "packets belong to connections",
    group=_GROUP,
    severity=WARNING,
    looks_at="counter invalid and nf_conntrack_tcp_be_liberal",
)
def invalid(facts: Facts) -> Iterator[Symptom]:
    """Rules of kube-proxy drop packets that tracking finds invalid, unless tcpBeLiberal is set."""
    counters = facts.tracking().counters
    count = counters.get("invalid", 0)
    if (
        count >= 10 * FEW
        and count * 100 > counters.get("insert", 0)
        and _number(facts, "nf_conntrack_tcp_be_liberal") == 0
    ):
        yield Symptom(
            f"{count:,} packets did not fit their connection",
            f"counter invalid is {count:,} (conntrack -S), nf_conntrack_tcp_be_liberal is 0",
            "look for asymmetric routes; if there are any, set conntrack.tcpBeLiberal in the configuration",
        )


@check(
    "KP057",
    "settings are as configured",
    group=_GROUP,
    severity=WARNING,
    looks_at="net.netfilter and section conntrack of the configuration",
)
def configured(facts: Facts) -> Iterator[Symptom]:
    """Another program changed the settings, or kube-proxy was not permitted to write them."""
    config = facts.options().config.conntrack
    for name, value in sysctls.wanted(config, facts.processors).items():
        found = _number(facts, name)
        if (
            found is None
            or found == value
            or (name in {"nf_conntrack_max", "nf_conntrack_buckets"} and found > value)
        ):
            continue
        if name == "nf_conntrack_buckets":
            continue  # KP054 reports when this has an effect
        yield Symptom(
            f"{name} is not as configured",
            f"net.netfilter.{name} is {found:,}, the configuration asks for {value:,}",
            f"sysctl -w net.netfilter.{name}={value} in the host's network namespace, or 0 in section conntrack to leave it alone",
        )


@check(
    "KP058",
    "idle connections are remembered",
    group=_GROUP,
    severity=WARNING,
    looks_at="nf_conntrack_tcp_timeout_established and _close_wait",
)
def timeouts(facts: Facts) -> Iterator[Symptom]:
    """A connection that is forgotten is no longer translated: its next packet is reset or lost."""
    established = _number(facts, "nf_conntrack_tcp_timeout_established")
    if established is not None and established < 7200:
        yield Symptom(
            "idle connections are forgotten before they send a keep-alive",
            f"nf_conntrack_tcp_timeout_established is {established} s, TCP keep-alive begins after 7200 s",
            "set conntrack.tcpEstablishedTimeout to 2h or more (24h0m0s is the default)",
        )


@check(
    "KP059",
    "connections survive a new start of tracking",
    group=_GROUP,
    severity=WARNING,
    looks_at="nf_conntrack_tcp_loose",
)
def loose(facts: Facts) -> Iterator[Symptom]:
    """With tcp_loose=0 every connection that tracking did not see from its first packet is invalid."""
    if _number(facts, "nf_conntrack_tcp_loose") == 0:
        yield Symptom(
            "connections that were not tracked from the beginning are invalid",
            "net.netfilter.nf_conntrack_tcp_loose is 0",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1, unless a firewall needs it",
        )


CHECKS: Final = of_module(globals())
