"""A fault for each check: how a node without faults must be changed so that the check finds something."""

from collections.abc import Callable
from typing import Any

from kubeproxy.backends.base import KernelComparison
from kubeproxy.insight.doctor.facts import ConnectProgram, LegacyTable, Part
from kubeproxy.linux.instance import Holder
from kubeproxy.linux.process import RunningProgram
from kubeproxy.netlink.nft.messages import FORWARD, INET, PREROUTING, Hook
from kubeproxy.netlink.route import Link
from tests.unit.insight.doctor.world import (
    API,
    FORWARD_HOOK,
    LISTENS,
    NOW,
    World,
    chain,
    endpoint,
    endpoint_slice,
    service,
)

Fault = Callable[[World], Any]
FAULTS: dict[str, Fault] = {}


def fault(number: str) -> Callable[[Fault], Fault]:
    def keep(function: Fault) -> Fault:
        FAULTS[number] = function
        return function

    return keep


def setting(number: str, name: str, value: str) -> None:
    FAULTS[number] = lambda world: world.machine.settings.update({name: value})


def metric(number: str, name: str, value: float, **labels: str) -> None:
    FAULTS[number] = lambda world: world.sample(name, value, **labels)


def link(number: str, name: str, kind: str = "dummy") -> None:
    FAULTS[number] = lambda world: world.machine.virtual.append(Link(9, name, kind, 1500, 0, up=True))


@fault("KP001")
def nobody(world: World) -> None:
    world.machine.lock_holder = None


@fault("KP002")
def stranger(world: World) -> None:
    world.machine.lock_holder = Holder(99, 1000)


@fault("KP003")
def not_ready(world: World) -> None:
    world.reasons = Part(("IPv4: 3 syncs in a row failed",))


@fault("KP004")
def silent_daemon(world: World) -> None:
    world.reasons = Part(reason="no answer from 127.0.0.1 port 10256: timed out")


metric("KP005", "kubeproxy_watch_age_seconds", 900.0, kind="Service")
metric("KP006", "kubeproxy_watch_connected", 0.0, kind="Service")


@fault("KP007")
def late(world: World) -> None:
    world.sample("kubeproxy_sync_proxy_rules_service_changes_pending", 3)
    world.sample("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", NOW - 200)


metric("KP008", "kubeproxy_sync_failures_total", 50.0)
metric("KP009", "kubeproxy_drift_repairs_total", 2.0)
metric("KP010", "kubeproxy_quarantined_services", 1.0)


@fault("KP011")
def typing_error(world: World) -> None:
    world.config["clusterCIDRs"] = "10.244.0.0/16"


@fault("KP012")
def no_node(world: World) -> None:
    world.node["metadata"]["name"] = "n9"


metric("KP013", "kubeproxy_services", 7.0)


@fault("KP014")
def second(world: World) -> None:
    world.machine.programs.append(RunningProgram(55, "kube-proxy", "kube-proxy"))


@fault("KP015")
def other_mode(world: World) -> None:
    world.chains.append(chain("nat", "KUBE-SERVICES"))


@fault("KP016")
def of_reference(world: World) -> None:
    world.comments["IPv4"] = "rules for kube-proxy"


@fault("KP017")
def both_kinds(world: World) -> None:
    world.config["mode"] = "iptables"
    world.chains.append(chain("nat", "KUBE-SERVICES"))
    world.legacy.append(LegacyTable("IPv4", "nat", 40, frozenset({"KUBE-SERVICES"}), False))


link("KP019", "bpfin.cali")
link("KP020", "kube-dummy-if")


@fault("KP018")
def cilium(world: World) -> None:
    world.machine.programs.append(RunningProgram(56, "cilium-agent", "cilium-agent"))


@fault("KP027")
def socket_load_balancer(world: World) -> None:
    world.changes["connectors"] = (ConnectProgram(7, "cil_sock4_connect"),)


@fault("KP021")
def firewalld(world: World) -> None:
    world.chains.append(chain("firewalld", "filter_FORWARD", INET, FORWARD_HOOK))


@fault("KP022")
def ufw(world: World) -> None:
    world.chains.append(chain("filter", "ufw-before-forward"))


@fault("KP023")
def docker(world: World) -> None:
    world.chains += [chain("nat", "DOCKER"), chain("filter", "FORWARD", hook=FORWARD_HOOK, drops=True)]


@fault("KP024")
def policy(world: World) -> None:
    world.chains.append(chain("mine", "forward", INET, Hook("filter", FORWARD, 10), drops=True))


@fault("KP025")
def side_by_side(world: World) -> None:
    world.legacy.append(LegacyTable("IPv4", "filter", 9, frozenset(), False))


@fault("KP026")
def first(world: World) -> None:
    world.chains.append(chain("lb", "dnat", INET, Hook("nat", PREROUTING, -150)))


setting("KP030", "net/ipv4/conf/all/forwarding", "0")


@fault("KP031")
def strict(world: World) -> None:
    world.machine.interfaces["eth1"] = 3
    world.machine.set_addresses(["198.51.100.1"], interface="eth1")
    world.machine.settings["net/ipv4/conf/eth1/rp_filter"] = "1"


@fault("KP032")
def bridge(world: World) -> None:
    world.machine.interfaces["cni0"] = 4
    world.machine.virtual.append(Link(4, "cni0", "bridge", 1500, 0, up=True))
    world.machine.own.append(world.machine.own[-1]._replace(interface=4, prefix=24))
    world.machine.settings["net/bridge/bridge-nf-call-iptables"] = "0"
    world.flow(1, "SYN_SENT", ("10.244.1.11", 8080), ("10.96.0.10", 80))


setting("KP033", "net/ipv4/ip_local_port_range", "1024\t60999")


@fault("KP034")
def localhost(world: World) -> None:
    world.config["mode"] = "iptables"


@fault("KP035")
def arp(world: World) -> None:
    world.config |= {"mode": "ipvs", "ipvs": {"strictARP": True}}


@fault("KP036")
def old_tunnel(world: World) -> None:
    world.machine.release = "5.4.0-42-generic"
    world.machine.virtual.append(Link(5, "flannel.1", "vxlan", 1450, 2, up=True))


@fault("KP037")
def large(world: World) -> None:
    world.machine.virtual.append(Link(5, "flannel.1", "vxlan", 1500, 2, up=True))


@fault("KP038")
def old(world: World) -> None:
    world.machine.release = "5.10.0-28-amd64"


@fault("KP039")
def neighbours(world: World) -> None:
    world.machine.files["stat/arp_cache"] = b"entries\n000003f0 0\n"


@fault("KP040")
def no_route(world: World) -> None:
    world.routes["10.96.0.10"] = False


@fault("KP041")
def other_family(world: World) -> None:
    world.api["spec"] |= {"clusterIPs": ["10.96.0.10", "fd00::10"], "ipFamilies": ["IPv4", "IPv6"]}


@fault("KP042")
def no_interface(world: World) -> None:
    world.config |= {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cbr7"}}


@fault("KP050")
def full(world: World) -> None:
    world.entries = 260_000


@fault("KP051")
def dropped(world: World) -> None:
    world.counters["early_drop"] = 12


@fault("KP052")
def races(world: World) -> None:
    world.counters["insert_failed"] = 5_000


@fault("KP053")
def flood(world: World) -> None:
    world.entries = 500
    world.flow(400, "UNREPLIED", ("10.244.1.53", 5353), ("10.96.0.53", 53), "UDP")


setting("KP054", "net/netfilter/nf_conntrack_buckets", "1024")


@fault("KP055")
def half_open(world: World) -> None:
    world.flow(300, "SYN_SENT", ("203.0.113.9", 80), ("203.0.113.9", 80))


@fault("KP056")
def invalid(world: World) -> None:
    world.counters["invalid"] = 90_000


setting("KP057", "net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60")
setting("KP058", "net/netfilter/nf_conntrack_tcp_timeout_established", "600")
setting("KP059", "net/netfilter/nf_conntrack_tcp_loose", "0")


@fault("KP060")
def nothing(world: World) -> None:
    world.api_slice["endpoints"] = []


@fault("KP061")
def unready(world: World) -> None:
    for each in world.api_slice["endpoints"]:
        each["conditions"] = {"ready": False}


@fault("KP062")
def other_name(world: World) -> None:
    world.api_slice["ports"][0]["name"] = "http"


@fault("KP063")
def unknown_port(world: World) -> None:
    world.api_slice["ports"].append({"name": "metrics", "port": 9090})


@fault("KP064")
def internal(world: World) -> None:
    world.api["spec"]["internalTrafficPolicy"] = "Local"
    world.api_slice["endpoints"] = [endpoint("10.244.2.12", "n2")]


@fault("KP065")
def external(world: World) -> None:
    world.api["spec"]["externalTrafficPolicy"] = "Local"
    world.api_slice["endpoints"] = [endpoint("10.244.2.12", "n2")]


@fault("KP066")
def orphan(world: World) -> None:
    world.more.append(endpoint_slice("gone", 80, endpoint("10.244.1.99")))


@fault("KP067")
def contested(world: World) -> None:
    world.more += [service("zweb", "10.96.0.10", 80), endpoint_slice("zweb", 80, endpoint("10.244.1.13"))]


@fault("KP068")
def some_hints(world: World) -> None:
    del world.api_slice["endpoints"][0]["hints"]


@fault("KP069")
def no_zone(world: World) -> None:
    del world.node["metadata"]["labels"]


@fault("KP070")
def leaving(world: World) -> None:
    for each in world.api_slice["endpoints"]:
        each["conditions"] = {"ready": False, "serving": True, "terminating": True}


@fault("KP071")
def nameless(world: World) -> None:
    world.api["spec"]["externalTrafficPolicy"] = "Local"
    del world.api_slice["endpoints"][1]["nodeName"]


@fault("KP072")
def overlap(world: World) -> None:
    world.api["spec"]["clusterIP"] = "10.244.7.7"


@fault("KP073")
def hijack(world: World) -> None:
    world.api["spec"]["externalIPs"] = ["192.0.2.1"]
    world.api["spec"]["ports"][0]["port"] = 22
    world.machine.files["tcp"] = LISTENS.format("00000000:0016").encode()


@fault("KP074")
def taken(world: World) -> None:
    world.machine.files["tcp"] = LISTENS.format("010200C0:7580").encode()


@fault("KP075")
def annotation(world: World) -> None:
    world.api["metadata"]["annotations"] = {"kube-proxy/weights": "heavy"}


def seen(number: str, error: str) -> None:
    FAULTS[number] = lambda world: world.seen.update({("10.244.1.11", 8080): error})


seen("KP080", "Connection refused")
seen("KP081", "no answer")
seen("KP082", "No route to host")


@fault("KP083")
def unanswered(world: World) -> None:
    world.flow(118, "SYN_SENT", ("10.244.2.12", 8080), ("10.96.0.10", 80))


@fault("KP084")
def stale(world: World) -> None:
    world.flow(2, "UNREPLIED", ("10.244.1.77", 5353), ("10.96.0.53", 53), "UDP")


@fault("KP085")
def abandoned(world: World) -> None:
    world.flow(2, "ESTABLISHED", ("10.244.1.77", 8080), ("10.96.0.10", 80))


@fault("KP086")
def untranslated(world: World) -> None:
    world.flow(2, "UNREPLIED", ("10.96.0.53", 53), ("10.96.0.53", 53), "UDP")


@fault("KP087")
def front(world: World) -> None:
    world.fronts[API, ("10.96.0.10", "TCP", 80)] = "no answer"


@fault("KP090")
def lacking(world: World) -> None:
    world.rules = KernelComparison(lacking=("add element ip kube-proxy endpoints-2 { ... }",))


@fault("KP091")
def foreign(world: World) -> None:
    world.rules = KernelComparison(foreign=("delete element ip kube-proxy endpoints-2 { ... }",))
