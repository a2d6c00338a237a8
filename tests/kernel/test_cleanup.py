"""`--cleanup` over what the reference was seen to write, and everything else a node has.

The cases are those of the oracle; all modes' rules are there at once, as nobody would have them.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kubeproxy.api.addresses import FAMILIES
from tests.kernel.daemons import PATIENCE, Bare
from tests.kernel.spaces import VARIANTS, Real
from tests.lab.rules import load_iptables, load_nftables
from tests.lab.topology import ROOT, Lab

RECORDED = ROOT / "tests/oracle/expected"
CASES = (
    "everything",
    "dual-stack",
    "long-names",
    "sctp",
    "loadbalancer-source-ranges-node",
    "affinity-timeout-nodeport",
)

OTHERS = """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "-j KUBE-SERVICES" -j ACCEPT
COMMIT
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-OTHER - [0:0]
:MY-KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m comment --comment "KUBE-SERVICES \\" -j KUBE-SERVICES" -j KUBE-OTHER
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j MY-KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-OTHER -p udp -m comment --comment KUBE-POSTROUTING -j RETURN
COMMIT
*filter
:cali-FORWARD - [0:0]
-A FORWARD -m comment --comment "cali:KUBE-FORWARD" -j cali-FORWARD
COMMIT
"""
"""Rules of the kubelet and of network plugins, whose names are meant to mislead."""

OTHER_TABLES = """\
table ip kube-proxy-other {
	chain services {
	}
}
table inet kube-proxy {
	map service-ips {
		type ipv4_addr : verdict
	}
}
"""


def clean_up(
    lab: Lab, *prefix: str, flags: Sequence[str] = (), path: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs it: no configuration, no kubeconfig, no home."""
    with lab.inside("node"):
        return subprocess.run(
            [*prefix, sys.executable, "-m", "kubeproxy", "--cleanup", *flags],
            check=False, capture_output=True, text=True, timeout=PATIENCE,
            env={"PATH": path or os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip


def add_others(lab: Bare) -> None:
    for variant in VARIANTS:
        for family in FAMILIES:
            lab.run("node", f"{Real(family, variant).base}-restore", "--noflush", given=OTHERS)


def held(lab: Bare) -> dict[str, list[str]]:
    """All rules of the node, but those of the kubelet's firewall, which stay where there was a kubelet."""
    found = {"nftables": sorted(lab.run("node", "nft", "list", "tables").splitlines())}
    with lab.inside("node"):
        for variant in VARIANTS:
            for family in FAMILIES:
                tables = Real(family, variant)
                lines = [line for line in tables.save() if "KUBE-FIREWALL" not in line and line[0] != "#"]
                found[tables.base] = [line.partition(" [")[0] if line[0] == ":" else line for line in lines]
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_the_reference_wrote_goes_and_nothing_else(space: str, case: str) -> None:
    lab = Bare(space)
    add_others(lab)
    load_nftables(lab, OTHER_TABLES)
    before = held(lab)
    rules = Path(RECORDED, "iptables", f"{case}.rules").read_text()
    for variant in ("legacy", "nft"):
        load_iptables(lab, rules, variant)
    add_others(lab)
    load_nftables(lab, Path(RECORDED, "nftables", f"{case}.rules").read_text())
    assert held(lab) != before
    done = clean_up(lab)
    assert (done.returncode, "\nE" in done.stderr, "\nW" in done.stderr) == (0, False, False), done.stderr
    assert "Deleted table ip kube-proxy" in done.stderr
    assert held(lab) == before
    again = clean_up(lab)
    assert again.returncode == 0, again.stderr
    assert not again.stderr, "it has nothing to report"
    assert held(lab) == before


def test_what_others_lead_to_stays(space: str) -> None:
    """Network plugins jump to KUBE-MARK-MASQ."""
    lab = Bare(space)
    rules = Path(RECORDED, "iptables", "everything.rules").read_text()
    load_iptables(lab, rules, "nft")
    rule = ("-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/16", "-j", "KUBE-MARK-MASQ")
    lab.run("node", "iptables-nft", *rule)
    assert clean_up(lab).returncode == 0
    left = lab.run("node", "iptables-nft", "-t", "nat", "-S")
    assert [line for line in left.splitlines() if "KUBE" in line] == [
        "-N KUBE-MARK-MASQ",
        "-A POSTROUTING -s 10.9.0.0/16 -j KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    ]


def test_without_any_right_it_says_so_and_touches_nothing(space: str) -> None:
    lab = Bare(space)
    load_nftables(lab, "table ip kube-proxy {}\n")
    done = clean_up(lab, "setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert error.endswith(
        "--cleanup needs CAP_NET_ADMIN, and CAP_NET_RAW for legacy iptables: nothing was removed"
    )
    assert "kube-proxy" in lab.run("node", "nft", "list", "tables")


def test_without_one_right_it_does_what_it_can(space: str) -> None:
    lab = Bare(space)
    load_nftables(lab, "table ip kube-proxy {}\n")
    for program in ("iptables-legacy", "iptables-nft"):
        lab.run("node", program, "-t", "nat", "-N", "KUBE-SERVICES")
    done = clean_up(lab, "setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("E"))
    assert "rules of iptables mode stay: " in error
    assert error.endswith("; this process has no CAP_NET_RAW")
    assert "KUBE-SERVICES" in lab.run("node", "iptables-legacy", "-t", "nat", "-S")
    assert "KUBE-SERVICES" not in lab.run("node", "iptables-nft", "-t", "nat", "-S")
    assert "kube-proxy" not in lab.run("node", "nft", "list", "tables")
