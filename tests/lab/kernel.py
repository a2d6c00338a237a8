"""What the lab changes in a node's kernel by itself: forget connections, rules and counters.

The few nfnetlink messages are written out here so that the lab needs no code under test and no program that may be
missing (`conntrack`, `nfacct`). Numbers: <linux/netfilter/nfnetlink.h>, nfnetlink_conntrack.h, nfnetlink_acct.h.
"""

import errno
import os
import socket
import struct
import subprocess
from pathlib import Path

from tests.lab import netns

NETLINK_NETFILTER = 12
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400
CONNTRACK_DELETE = 1 << 8 | 2
NFACCT_NEW = 7 << 8 | 0
NFACCT_DELETE = 7 << 8 | 3
NFACCT_NAME = 1


def _nfnetlink(name: str, kind: int, flags: int = 0, payload: bytes = b"") -> int:
    """Sends one message in a namespace and returns the kernel's error number, 0 if it was done."""
    with netns.inside(name):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with sock:
        body = struct.pack("BBH", socket.AF_UNSPEC, 0, 0) + payload
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | ACK | flags, 1, 0) + body)
        return -int(struct.unpack_from("=i", sock.recv(4096), 16)[0])


def _done(error: int, what: str) -> None:
    if error:
        raise OSError(error, f"{what}: {os.strerror(error)}")


def flush_conntrack(name: str) -> None:
    """Forgets every tracked connection of a namespace."""
    _done(_nfnetlink(name, CONNTRACK_DELETE), "flushing tracked connections")


def add_nfacct(name: str, *counters: str) -> None:
    """Creates named packet counters, which `-m nfacct` rules need; existing ones are kept."""
    for counter in counters:
        value = counter.encode() + b"\0"
        attribute = struct.pack("=HH", 4 + len(value), NFACCT_NAME) + value + bytes(-len(value) % 4)
        error = _nfnetlink(name, NFACCT_NEW, CREATE, attribute)
        _done(error if error != errno.EBUSY else 0, f"creating the counter {counter}")


def flush_nfacct(name: str) -> None:
    """Removes the packet counters no rule uses."""
    _nfnetlink(name, NFACCT_DELETE)


def flush_rules(name: str) -> None:
    """Removes all rules, chains and sets of a namespace, of nftables and both variants of iptables, and ipvs' things."""
    with netns.inside(name):
        commands = ["nft flush ruleset"]
        for program, file in ("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names"):
            tables = Path("/proc/thread-self/net", file)
            for table in tables.read_text().split() if tables.exists() else ():
                commands += [f"{program} -w -t {table} -F", f"{program} -w -t {table} -X"]
        if any(interface == "kube-ipvs0" for _, interface in socket.if_nameindex()):
            commands += ["ipvsadm -C", "ipset destroy", "ip link del kube-ipvs0"]
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
