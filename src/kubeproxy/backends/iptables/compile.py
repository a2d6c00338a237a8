"""One Service port's rules: a pure function from its plan to text.

Text is spelled exactly as `iptables-save` prints it. So it can be compared with what the kernel holds, an
unchanged chain is recognised and not written, and a rule can be deleted by its text.

A Service port has *chains* of its own in table nat, and *fronts*: single rules in chains it shares with all
others.

    KUBE-SERVICES    ClusterIP -> SVC or SVL       external IP -> EXT       load balancer IP -> FW or EXT
    KUBE-NODEPORTS   node port -> EXT
    FW    sources in range -> EXT; the rest falls through and is dropped in filter KUBE-PROXY-FIREWALL
    EXT   Cluster policy: mark for masquerading, -> SVC
          Local policy: local Pods -> SVC; this host: mark, -> SVC; all others -> SVL
    SVC   ClusterIP from outside the cluster: mark; then one of the endpoints of the Cluster policy
    SVL   the same with those of the Local policy
    SEP   one endpoint: its own packets (hairpin): mark; DNAT

Packets that find no endpoint are dropped or rejected by fronts in table filter.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, cast

from kubeproxy.api.addresses import IPV4, Family, join
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.admission import Admission
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.probability import probability
from kubeproxy.backends.programs import FILTER, NAT
from kubeproxy.backends.shared import matches
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import FORWARD, REJECT, Action, Front, PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

Shared = tuple[str, str]
"""Table and chain shared by all Services."""

NAT_SERVICES: Shared = (NAT, names.SERVICES)
NAT_NODE_PORTS: Shared = (NAT, names.NODE_PORTS)
FILTER_SERVICES: Shared = (FILTER, names.SERVICES)
FILTER_EXTERNAL: Shared = (FILTER, names.EXTERNAL_SERVICES)
FILTER_NODE_PORTS: Shared = (FILTER, names.NODE_PORTS)
FILTER_FIREWALL: Shared = (FILTER, names.PROXY_FIREWALL)
SHARED: Sequence[Shared] = (
    NAT_SERVICES,
    NAT_NODE_PORTS,
    FILTER_SERVICES,
    FILTER_EXTERNAL,
    FILTER_NODE_PORTS,
    FILTER_FIREWALL,
)


class ServiceRules(NamedTuple):
    """A Service's rules.

    Attributes:
        chains: its own chains in table nat, each with its rules ("-A CHAIN ...", a line each); a chain stands
            before those that jump to it.
        fronts: its rules in shared chains, without the "-A CHAIN", each once, in the order they are to be
            met.
    """

    chains: dict[str, str]
    fronts: list[tuple[Shared, str]]

    def rules(self) -> Counter[str]:
        """How many rules there are in each table."""
        rules = Counter({NAT: sum(text.count("\n") for text in self.chains.values())})
        rules.update([table for (table, _), _ in self.fronts])
        return rules


NOTHING = ServiceRules({}, [])


class RuleContext:
    """What rules depend on besides the plan: the family, the node, what kernel and programs support."""

    def __init__(self, node: NodeConfig, *, counters: bool = False, comments: bool = True) -> None:
        """Fixes the dialect.

        Args:
            node: the node.
            counters: the nfacct counter of localhost node ports exists.
            comments: whether rules of endpoints are commented; the reference leaves that out above 1,000
                endpoints.
        """
        ipv4 = node.family == IPV4
        self.family: Family = node.family
        self.host = matches.host(node.family)
        self.mask = "255.255.255.255" if ipv4 else ":".join(["ffff"] * 8)
        self.unreachable = matches.unreachable(node.family)
        self.admits_node = Admission(node.address)
        self.masquerade_all = node.masquerade_all
        self.localhost_counter = ipv4 and counters and node.localhost_node_ports
        self.comments = comments
        self.local = matches.from_local_pod(node.local_traffic)
        self.not_local = matches.not_from_local_pod(node.local_traffic)


def compile_service(
    plan: ServicePlan | None, d: RuleContext, without: Collection[PortId] = frozenset()
) -> ServiceRules:
    """The rules of a Service; none for None.

    Args:
        plan: its plan.
        d: how rules are written.
        without: ports whose chain of source ranges is left out, because it is not to change.
    """
    if plan is None:
        return NOTHING
    compiled = ServiceRules({}, [])
    for port in plan.ports:
        _compile_port(port, d, compiled, without)
        if plan.health_check_port:
            compiled.fronts.append(
                (
                    FILTER_NODE_PORTS,
                    f'-p tcp -m comment --comment "{port.name} health check node port" -m tcp'
                    f" --dport {plan.health_check_port} -j ACCEPT",
                )
            )
    # One address may be external IP and load balancer IP: what is refused at both needs one rule.
    return compiled._replace(fronts=list(dict.fromkeys(compiled.fronts)))


def chains_of(plan: ServicePlan | None) -> Iterator[str]:
    """The names of the chains that `compile_service` fills, found in a quarter of its time."""
    for port in plan.ports if plan else ():
        if port.any:
            proto = port.protocol.lower()
            svc, svl, ext, fw = _port_chains(port, proto)
            yield from [endpoint_chain_name(b, port, proto) for b in port.endpoints]
            if port.cluster:
                yield svc
            if port.local:
                yield svl
            if port.external:
                yield ext
            if _is_firewalled(port):
                yield fw
            if _is_limited(port):
                yield _limited_chain(port, proto)


def _port_chains(p: PortPlan, proto: str) -> tuple[str, str, str, str]:
    hash_ = names.suffix(p.name + proto)
    return f"KUBE-SVC-{hash_}", f"KUBE-SVL-{hash_}", f"KUBE-EXT-{hash_}", f"KUBE-FW-{hash_}"


def endpoint_chain_name(b: Endpoint, p: PortPlan, proto: str) -> str:
    """The chain that sends to an endpoint; `proto` is the protocol in lower case."""
    return f"KUBE-SEP-{names.suffix(p.name + proto + join(b.address, b.port))}"


def _is_firewalled(p: PortPlan) -> bool:
    return p.any and bool(p.source_ranges and p.load_balancer_ips)


def _is_limited(p: PortPlan) -> bool:
    """Whether only some clients may use the node port and the external IPs."""
    return p.any and bool(p.external_ranges and (p.external_only or p.node_port))


def _limited_chain(p: PortPlan, proto: str) -> str:
    return f"KUBE-FW-{names.suffix(f'{p.name}{proto} external')}"


def _external_ips(p: PortPlan, to: "_PortRules", ext: str, limited: str) -> None:
    only: frozenset[str] = frozenset(p.external_only) if limited else frozenset()
    for ip in p.external_ips:
        here = limited if ip in only else ""
        if p.any:
            to.address(NAT_SERVICES, ip, p.port, "external IP", here or ext)
        if here:
            to.address(FILTER_FIREWALL, ip, p.port, f"traffic not accepted by {here}", "DROP")
        if p.external_action != FORWARD:
            to.address(FILTER_EXTERNAL, ip, p.port, *to.refusal(p.external_action))


def _compile_port(p: PortPlan, d: RuleContext, out: ServiceRules, without: Collection[PortId]) -> None:
    proto = p.protocol.lower()
    svc, svl, ext, fw = _port_chains(p, proto)
    firewalled = _is_firewalled(p)
    internal, external = p.internal_action, p.external_action
    to = _PortRules(p.name, proto, d, out.fronts)

    if not p.cluster_ip:
        pass
    elif internal == FORWARD:
        to.address(NAT_SERVICES, p.cluster_ip, p.port, "cluster IP", svl if p.internal_local else svc)
    else:
        to.address(FILTER_SERVICES, p.cluster_ip, p.port, *to.refusal(internal))
    limited = _limited_chain(p, proto) if _is_limited(p) else ""
    _external_ips(p, to, ext, limited)
    for ip in p.load_balancer_ips:
        if p.any:
            to.address(NAT_SERVICES, ip, p.port, "loadbalancer IP", fw if firewalled else ext)
        if firewalled:
            to.address(FILTER_FIREWALL, ip, p.port, f"traffic not accepted by {fw}", "DROP")
        if external != FORWARD:
            to.address(FILTER_EXTERNAL, ip, p.port, *to.refusal(external))
    if p.node_port:
        if p.any:
            to.node_port(p.node_port, limited or ext)
        if limited:
            to.refused_port(p.node_port, f"traffic not accepted by {limited}")
        if external != FORWARD:
            to.local_port(p.node_port, *to.refusal(external))

    if not p.any:
        return
    chains = out.chains
    seps = {b: _endpoint_chain(b, p, proto, d, chains) for b in p.endpoints}
    if p.cluster:
        marked = "" if p.internal_local else _mark_internal(svc, p, proto, d)
        chains[svc] = marked + _balance(svc, p.cluster, p.cluster_distribution, seps, p, d)
    if p.local:
        marked = _mark_internal(svl, p, proto, d) if p.internal_local else ""
        chains[svl] = marked + _balance(svl, p.local, p.local_distribution, seps, p, d)
    if p.external:
        chains[ext] = _external(ext, svc, svl, p, d)
    if firewalled and (p.name, p.protocol) not in without:
        chains[fw] = _firewall(fw, ext, p, d)
    if limited and (p.name, p.protocol) not in without:
        accept = f'-m comment --comment "{p.name} allowed sources" -j {ext}\n'
        chains[limited] = "".join([f"-A {limited} -s {cidr} {accept}" for cidr in p.external_ranges])


_FRONT = re.compile(r"(?:-d (\S+) )?-p (\w+) .*--dport (\d+) ")


def front_of(rule: str, d: RuleContext) -> Front | None:
    """The front that a rule of a shared chain is for; None if it is for none.

    Args:
        rule: the rule, without its "-A CHAIN".
        d: the dialect of the rule.
    """
    found = _FRONT.match(rule)
    if found is None:
        return None
    address, protocol, port = found.groups()
    if address is None or address == "127.0.0.0/8":
        address = ""
    return address.removesuffix(d.host), cast("Protocol", protocol.upper()), int(port)


class _PortRules:
    """Collects the fronts of one Service port."""

    def __init__(self, name: str, proto: str, d: RuleContext, out: list[tuple[Shared, str]]) -> None:
        self.name, self.proto, self.d, self.out = name, proto, d, out

    def refusal(self, action: Action) -> tuple[str, str]:
        """Comment and target for packets that find no endpoint."""
        if action == REJECT:
            return "has no endpoints", f"REJECT --reject-with {self.d.unreachable}"
        return "has no local endpoints", "DROP"

    def address(self, where: Shared, ip: str, port: int, comment: str, target: str) -> None:
        self.out.append(
            (
                where,
                f'-d {ip}{self.d.host} -p {self.proto} -m comment --comment "{self.name} {comment}"'
                f" -m {self.proto} --dport {port} -j {target}",
            )
        )

    def node_port(self, port: int, target: str) -> None:
        match = f'-p {self.proto} -m comment --comment "{self.name}" -m {self.proto} --dport {port}'
        if self.d.localhost_counter:
            counter = f"-m nfacct --nfacct-name  {names.LOCALHOST_COUNTER}"
            self.out.append((NAT_NODE_PORTS, f"-d 127.0.0.0/8 {match} {counter} -j {target}"))
        self.out.append((NAT_NODE_PORTS, f"{match} -j {target}"))

    def refused_port(self, port: int, comment: str) -> None:
        """Drops packets to a node port that were not accepted: those that were are translated."""
        self.out.append(
            (
                FILTER_FIREWALL,
                f'-p {self.proto} -m comment --comment "{self.name} {comment}" -m addrtype --dst-type LOCAL'
                f" -m conntrack ! --ctstate DNAT -m {self.proto} --dport {port} -j DROP",
            )
        )

    def local_port(self, port: int, comment: str, target: str) -> None:
        self.out.append(
            (
                FILTER_EXTERNAL,
                f'-p {self.proto} -m comment --comment "{self.name} {comment}" -m addrtype --dst-type LOCAL'
                f" -m {self.proto} --dport {port} -j {target}",
            )
        )


def _endpoint_chain(b: Endpoint, p: PortPlan, proto: str, d: RuleContext, chains: dict[str, str]) -> str:
    at = join(b.address, b.port)
    chain = endpoint_chain_name(b, p, proto)
    comment = f' -m comment --comment "{p.name}"' if d.comments else ""
    recent = f" -m recent --set --name {chain} --mask {d.mask} --rsource" if p.affinity else ""
    chains[chain] = (
        f"-A {chain} -s {b.address}{d.host}{comment} -j KUBE-MARK-MASQ\n"
        f"-A {chain} -p {proto}{comment}{recent} -m {proto} -j DNAT --to-destination {at}\n"
    )
    return chain


def _mark_internal(chain: str, p: PortPlan, proto: str, d: RuleContext) -> str:
    """Marks packets to the ClusterIP that must be masqueraded."""
    if not p.cluster_ip:
        return ""
    if d.masquerade_all:
        source, interface = "", ""
    elif d.not_local is None:
        return ""
    else:
        source, interface = d.not_local
    return (
        f"-A {chain} {source}-d {p.cluster_ip}{d.host} {interface}-p {proto}"
        f' -m comment --comment "{p.name} cluster IP" -m {proto} --dport {p.port} -j KUBE-MARK-MASQ\n'
    )


def _balance(
    chain: str,
    backends: tuple[Endpoint, ...],
    distribution: Distribution | None,
    seps: dict[Endpoint, str],
    p: PortPlan,
    d: RuleContext,
) -> str:
    """Selects one of the endpoints: the one the client had, or any, each with its probability."""
    lines = []
    weights = (distribution.weights if distribution is not None else ()) or (1,) * len(backends)
    left = sum(weights)
    comments = [
        f'-m comment --comment "{p.name} -> {join(b.address, b.port)}" ' if d.comments else ""
        for b in backends
    ]
    if p.affinity:
        for b, comment in zip(backends, comments, strict=True):
            sep = seps[b]
            lines.append(
                f"-A {chain} {comment}-m recent --rcheck --seconds {p.affinity} --reap --name {sep}"
                f" --mask {d.mask} --rsource -j {sep}\n"
            )
    for b, weight, comment in zip(backends, weights, comments, strict=True):
        chance = (
            "" if left == weight else f"-m statistic --mode random --probability {probability(left, weight)} "
        )
        left -= weight
        lines.append(f"-A {chain} {comment}{chance}-j {seps[b]}\n")
    return "".join(lines)


def _external(ext: str, svc: str, svl: str, p: PortPlan, d: RuleContext) -> str:
    if not p.external_local:
        return (
            f'-A {ext} -m comment --comment "masquerade traffic for {p.name} external destinations" -j KUBE-MARK-MASQ\n'
            f"-A {ext} -j {svc}\n"
        )
    lines = ""
    if d.local is not None:
        lines = f'-A {ext} {d.local}-m comment --comment "pod traffic for {p.name} external destinations" -j {svc}\n'
    lines += (
        f'-A {ext} -m comment --comment "masquerade LOCAL traffic for {p.name} external destinations"'
        f" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ\n"
        f'-A {ext} -m comment --comment "route LOCAL traffic for {p.name} external destinations"'
        f" -m addrtype --src-type LOCAL -j {svc}\n"
    )
    return f"{lines}-A {ext} -j {svl}\n" if p.local else lines


def _firewall(fw: str, ext: str, p: PortPlan, d: RuleContext) -> str:
    """Admits the clients. A node among them may also send from the load balancer's address, if it has it."""
    sources = list(p.source_ranges)
    if d.admits_node(p.source_ranges):
        sources += [ip + d.host for ip in p.load_balancer_ips]
    accept = f'-m comment --comment "{p.name} loadbalancer IP" -j {ext}\n'
    return (
        "".join([f"-A {fw} -s {cidr} {accept}" for cidr in sources])
        + f'-A {fw} -m comment --comment "other traffic to {p.name} will be dropped by {names.PROXY_FIREWALL}"\n'
    )
