"""The lab of the oracle: a node, its pods and the world around it, made of network namespaces.

The drawing is in `tests/oracle/README.md`; every address and route of it is in the tables below. Pods reach each other
through the node (host routes, no bridge netfilter), so a translated answer passes the node again on every kernel and
whatever modules are loaded. The router's refusal to send the node's packets back to the node is a routing table of its own
for what comes from the node: no firewall program is involved outside the node. Everything is inside the
namespaces; neither the machine's own network nor a sysctl that is not per namespace is touched. Labs live side by side.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tests.lab import kernel, netns

ROOT = Path(__file__).resolve().parents[2]
NODE_NAME = "bench-node"
PODS = {
    "ep11": ("10.244.1.11", "fd00:10:244:1::b"),
    "ep12": ("10.244.1.12", "fd00:10:244:1::c"),
    "ep13": ("10.244.1.13", "fd00:10:244:1::d"),
    "ep14": ("10.244.1.14", "fd00:10:244:1::e"),
    "client": ("10.244.1.100", "fd00:10:244:1::64"),
}
BEHIND_WAN = {  # addresses of the namespace, and what the router sends there
    "rpod": (("10.244.2.200", "fd00:10:244:2::c8"), ("10.244.2.200/32", "fd00:10:244:2::c8/128")),
    "out": (("198.51.100.7", "2001:db8:198::7"), ("198.51.100.7/32", "2001:db8:198::7/128")),
    "other": ((), ("10.244.2.0/24", "fd00:10:244:2::/64")),
}
EP11, EP12, EP13, EP14 = LOCAL = tuple(PODS[f"ep1{i}"][0] for i in range(1, 5))
EP11_6, EP12_6 = (PODS[f"ep1{i}"][1] for i in (1, 2))
REMOTE, REMOTE2 = "10.244.2.21", "10.244.2.22"  # two of the backends that "other" plays
ROLES = ("node", *PODS, "wan", *BEHIND_WAN)
VIA_NODE = ("10.244.1.0/24", "10.96.0.0/15", "203.0.113.0/24")
VIA_NODE6 = ("fd00:10:244:1::/64", "fd00:10:96::/112", "2001:db8:203::/64")
NODE_ADDRESSES = ("192.0.2.1", "10.244.1.1", "2001:db8:2::1", "fd00:10:244:1::1")

_COMMON_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/icmp_ratelimit": "0",  # every rejected attempt receives the error
    "net/ipv4/icmp_msgs_per_sec": "1000000",
    "net/ipv4/icmp_msgs_burst": "1000000",
    # No TIME-WAIT: when a client's connections are translated, and were not before, a server may know the same ports
    # from an earlier one. It does not accept the SYN then, which comes again and is counted twice.
    "net/ipv4/tcp_max_tw_buckets": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_redirects": "0",  # pods reach each other through the node
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",  # link-local addresses are given below
}
_ROUTER_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}
_SYSCTLS = {
    "node": _ROUTER_SYSCTLS,
    "wan": _ROUTER_SYSCTLS,
    "other": {"net/ipv6/ip_nonlocal_bind": "1"},  # UDP answers from any address of the /64
}
# What a proxy sets on a node; put back by `reset`.
_PROXY_SYSCTLS = (
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/arp_announce",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
)


def _links() -> Iterator[tuple[str, str, str, str]]:
    """The virtual cables: role and interface at one end, role and interface at the other."""
    for pod in PODS:
        yield "node", f"v{pod}", pod, "eth0"
    yield "node", "eth0", "wan", "node"
    for role in BEHIND_WAN:
        yield "wan", role, role, "eth0"


def _configuration() -> Iterator[tuple[str, str | None, list[str]]]:
    """The `ip` lines of each namespace: role, address family for lines that do not show it, lines."""
    node = [
        "link set cni0 up",
        "address add fe80::1/64 dev cni0 nodad",
        "address add 10.244.1.1/24 dev cni0",
        "address add fd00:10:244:1::1/64 dev cni0 nodad",
        "link set eth0 up",
        "address add fe80::1/64 dev eth0 nodad",
        "address add 192.0.2.1/24 dev eth0",
        "address add 2001:db8:2::1/64 dev eth0 nodad",
        "route add default via 192.0.2.2",
        "route add ::/0 via 2001:db8:2::2",
    ]
    for pod, (v4, v6) in PODS.items():
        node += [f"link set v{pod} master cni0 up", f"link set v{pod} type bridge_slave hairpin on"]
        yield (
            pod,
            None,
            [
                "link set eth0 up",
                f"address add {v4}/32 dev eth0",
                f"address add {v6}/128 dev eth0 nodad",
                "route add default via 10.244.1.1 dev eth0 onlink",
                "route add ::/0 via fd00:10:244:1::1 dev eth0 onlink",
            ],
        )
    yield "node", None, node
    wan = [
        "link set node up",
        "address add fe80::2/64 dev node nodad",
        "address add 192.0.2.2/24 dev node",
        "address add 2001:db8:2::2/64 dev node nodad",
        *(f"route add {prefix} via 192.0.2.1" for prefix in VIA_NODE),
        *(f"route add {prefix} via 2001:db8:2::1" for prefix in VIA_NODE6),
        "route add blackhole 0.0.0.0/0 table 100",
        "route add blackhole ::/0 table 100",
    ]
    for role, (addresses, prefixes) in BEHIND_WAN.items():
        wan += [
            f"link set {role} up",
            f"address add 169.254.0.1/32 dev {role}",
            f"address add fe80::1/64 dev {role} nodad",
        ]
        for table in "main", "100":
            wan += [
                f"route add {prefixes[0]} via 169.254.0.2 dev {role} onlink table {table}",
                f"route add {prefixes[1]} via fe80::2 dev {role} table {table}",
            ]
        lines = ["link set eth0 up", "address add fe80::2/64 dev eth0 nodad"]
        if addresses:
            lines += [
                f"address add {addresses[0]}/32 dev eth0",
                f"address add {addresses[1]}/128 dev eth0 nodad",
            ]
        lines += [
            "address add 169.254.0.2/32 dev eth0 scope link",
            "route add default via 169.254.0.1 dev eth0 onlink",
            "route add ::/0 via fe80::1 dev eth0",
        ]
        if role == "other":
            lines += [
                "route add local 10.244.2.0/24 dev lo table local",
                "route add local fd00:10:244:2::/64 dev lo table local",
                # all of the remote node's pods but the one that has a namespace of its own
                "route add 10.244.2.200/32 via 169.254.0.1 dev eth0 onlink table local",
                "route add fd00:10:244:2::c8/128 via fe80::1 dev eth0 table local",
            ]
        yield role, None, lines
    yield "wan", None, [*wan, "rule add iif node lookup 100"]
    yield "wan", "-6", ["rule add iif node lookup 100"]


class Lab:
    """The drawn lab with its answering servers, for a `with` block.

    On entry leftovers of crashed runs are removed; on exit, also by an exception, Ctrl-C or SIGTERM, all namespaces and
    the processes in them are gone.

        with Lab() as lab:
            lab.run("node", "nft", "-f", "rules.nft")
            print(lab.run("client", "nc", "-w1", "10.96.0.1", "80"))

    Raises:
        RuntimeError: with what `ip` said, if the lab could not be built.
        PermissionError: without the rights to create namespaces.
    """

    def __init__(self) -> None:
        self.prefix = netns.unique_prefix()
        self._servers: subprocess.Popen[bytes] | None = None
        self._sysctls: dict[str, str] = {}
        self._signals = False

    def name(self, role: str) -> str:
        """The namespace of a role ("node", "ep11", "client", ...), as `ip netns` knows it."""
        return self.prefix + role

    def inside(self, role: str) -> contextlib.AbstractContextManager[None]:
        """The calling thread, and the sockets and processes it starts, are in that namespace for a `with` block."""
        return netns.inside(self.name(role))

    def run(self, role: str, *command: str, given: str = "", check: bool = True) -> str:
        """Runs a program in a namespace and returns its standard output.

        The iptables programs wait for their lock, which is one for all namespaces of the machine and so for all tests.

        Raises:
            RuntimeError: if it exits with an error and `check` is true; with the command and its complaint.
        """
        if re.fullmatch(r"ip6?tables(-legacy|-nft)?", command[0]):
            command = (command[0], "-w", "60", *command[1:])
        with self.inside(role):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        out, errors = process.communicate(given)
        if check and process.returncode:
            raise RuntimeError(
                f"{' '.join(command)} in {role}: exit code {process.returncode}: {errors.strip()}"
            )
        return out

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("the lab is made of network namespaces: it needs root")
        netns.sweep()
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        ):
            signal.signal(signal.SIGTERM, _interrupt)
            self._signals = True
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        netns.create(self.name(role) for role in ROLES)
        for role in ROLES:
            netns.write_sysctls(self.name(role), _COMMON_SYSCTLS | _SYSCTLS.get(role, {}))
        # cni0 is the node's first interface: its address is what masquerading picks on the way to the node itself.
        bridge = (
            f"link add cni0 netns {self.name('node')} address 02:00:0a:f4:01:01 type bridge mcast_snooping 0"
        )
        cables = (
            f"link add {near} netns {self.name(a)} type veth peer name {far} netns {self.name(b)}"
            for a, near, b, far in _links()
        )
        netns.finish(netns.ip_batch(bridge, *cables))
        for role in ROLES:
            netns.ask_neighbours_longer(self.name(role))
        netns.finish(
            *(
                netns.ip_batch("link set lo up", *lines, namespace=self.name(role), family=family)
                for role, family, lines in _configuration()
            )
        )
        self._sysctls = netns.read_sysctls(self.name("node"), _PROXY_SYSCTLS)
        self._start_servers()

    def _start_servers(self) -> None:
        answering = [
            f"{role}={self.name(role)}"
            for role in ("node", "other", *(pod for pod in PODS if pod != "client"))
        ]
        self._servers = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.servers", *answering],
            stdin=subprocess.PIPE,  # its end of file ends the servers, however this process ends
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the owner
        )
        assert self._servers.stdout is not None
        if self._servers.stdout.readline() != b"ready\n":
            raise RuntimeError("the lab's servers did not start; their complaint is on standard error")

    def reset(self) -> None:
        """The node as it was built: no rules, sets, tracked connections or interfaces but its own, sysctls put back."""
        node = self.name("node")
        kernel.flush_rules(node)
        kernel.flush_conntrack(node)
        kernel.flush_nfacct(node)
        netns.write_sysctls(node, self._sysctls)

    def close(self) -> None:
        """Ends everything and removes the namespaces. May be called twice."""
        if self._servers is not None:
            self._servers.kill()
            self._servers.communicate()
            self._servers = None
        netns.delete(self.name(role) for role in ROLES)
        if self._signals:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._signals = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM leaves `with` blocks the way Ctrl-C does."""
    raise KeyboardInterrupt(signal.Signals(number).name)
