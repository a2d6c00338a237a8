"""The daemon with the rights it needs and no others, on a file system it cannot write to.

The file system is that of a container with a read-only root: everything, /proc/sys and /sys included, but the lock of
the legacy iptables programs, which a DaemonSet mounts. What needs more than that was done before by `--init-only`.
"""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, answers, ask, until
from tests.kernel.test_daemon import complaints, run
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, DNS = "10.96.0.10", "10.96.0.53"
SETTINGS = {"maxPerCore": 0, "tcpEstablishedTimeout": "4h", "tcpCloseWaitTimeout": "30m"}
"""The number of connections is the whole machine's: not to be set from a namespace."""

LOCK = "/run/xtables.lock"
READ_ONLY = f"""
set -e
unset XTABLES_LOCKFILE
given=$PATH
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount --make-rprivate /
mkdir -p "$0"; mount -t tmpfs none "$0"; touch "$0/lock"
test -e {LOCK} || touch {LOCK}
mount --bind "$0/lock" {LOCK}
cut -d' ' -f5 /proc/self/mountinfo | while read -r point; do
  test "$point" = {LOCK} || mount -o remount,bind,ro "$point" 2>/dev/null || true
done
mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
! touch /etc/kube-proxy-test "$0/x" 2>/dev/null
! sh -c 'echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet' 2>/dev/null
PATH=$given
exec "$@"
"""
MODES: list[tuple[str, Variant, str]] = [
    ("iptables", "legacy", "+net_admin,+net_raw"),
    ("iptables", "nf_tables", "+net_admin"),
    ("nftables", "nf_tables", "+net_admin"),
]


def confined(path: Path, rights: str) -> list[str]:
    """What runs a program so."""
    unshare, shell, setpriv = (shutil.which(program) or "" for program in ("unshare", "sh", "setpriv"))
    return [
        *(unshare, "--mount", shell, "-c", READ_ONLY, str(path / "writable")),
        *(setpriv, f"--bounding-set=-all,{rights}", "--inh-caps=-all", "--no-new-privs"),
    ]


@pytest.fixture
def untouched(lab: Lab) -> Iterator[Lab]:
    """A node whose settings nobody has set; they are put back after."""
    keys = [
        "net/ipv4/conf/all/route_localnet",
        *(f"net/netfilter/nf_conntrack_tcp_timeout_{state}" for state in ("established", "close_wait")),
    ]
    before = netns.read_sysctls(lab.name("node"), keys)
    netns.write_sysctls(lab.name("node"), {keys[0]: "0"})
    yield lab
    netns.write_sysctls(lab.name("node"), before)


def station_of(lab: Lab, path: Path, mode: str, variant: Variant) -> Station:
    station = Station(lab, path, variant, mode=mode, conntrack=SETTINGS, oomScoreAdj=0)
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, local=(EP11, EP12), node=NODE_NAME),
        service("dns", DNS, ports=[types.ServicePort(53, protocol="UDP")]),
        endpoints("dns", EP11, port=5353, protocol="UDP"),
    )
    return station


def whom(lab: Lab) -> str:
    """Which backend answers over UDP; each time from the same port, so that a stale flow shows."""
    with netns.inside(lab.name("client")), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("0.0.0.0", 4053))
        client.settimeout(0.5)
        try:
            client.sendto(b"?", (DNS, 53))
            return client.recv(256).decode().split(" ")[0]
        except OSError as e:
            return type(e).__name__


@pytest.mark.parametrize(("mode", "variant", "rights"), MODES)
def test_it_serves_with_these_rights(
    untouched: Lab, tmp_path: Path, mode: str, variant: Variant, rights: str
) -> None:
    lab = untouched
    station = station_of(lab, tmp_path, mode, variant)
    before = run(station, flags=("--init-only",))
    assert before.returncode == 0, before.stderr
    assert "What needs full privileges is set up" in before.stderr
    with station.running(prefix=confined(tmp_path, rights)) as daemon:
        assert ask(lab, "client", WEB) == EP11
        assert ask(lab, "out", "192.0.2.1", 30080) == EP11
        if mode == "iptables":
            assert ask(lab, "node", "127.0.0.1", 30080) == EP11
        until(lambda: whom(lab) == EP11)
        station.folder.put(
            endpoints("web", EP12, local=(EP12,), node=NODE_NAME),
            endpoints("dns", EP12, port=5353, protocol="UDP"),
        )
        until(lambda: answers(lab, "client", WEB, EP12))
        until(lambda: whom(lab) == EP12, "a stale flow stays")
        daemon.stop()
        warnings = [line for line in daemon.log().splitlines() if line[0] in "WE"]
        assert [line for line in warnings if "nodePortAddresses" not in line] == []
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize(("mode", "variant", "rights"), MODES)
def test_without_the_set_up_it_says_what_is_missing_and_serves(
    untouched: Lab, tmp_path: Path, mode: str, variant: Variant, rights: str
) -> None:
    lab = untouched
    netns.write_sysctls(lab.name("node"), {"net/netfilter/nf_conntrack_tcp_timeout_established": "77"})
    station = station_of(lab, tmp_path, mode, variant)
    with station.running(prefix=confined(tmp_path, rights)) as daemon:
        assert ask(lab, "client", WEB) == EP11
        log = daemon.log()
    assert "nf_conntrack_tcp_timeout_established" in log
    if mode == "iptables":
        assert "Node ports will not work on localhost: cannot set net/ipv4/conf/all/route_localnet" in log
    assert "Traceback" not in log


def test_legacy_iptables_needs_raw_sockets(lab: Lab, tmp_path: Path) -> None:
    """Which is why there is one right more in the list above."""
    station = station_of(lab, tmp_path, "iptables", "legacy")
    programs = tmp_path / "legacy"
    programs.mkdir()
    for family in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            (programs / f"{family}{verb}").symlink_to(f"/usr/sbin/{family}-legacy{verb}")
    done = run(
        station,
        "setpriv",
        "--bounding-set=-all,+net_admin",
        "--inh-caps=-all",
        path=f"{programs}:/usr/bin:/bin",
    )
    assert done.returncode == 1
    (error,) = (line for line in complaints(done) if line.startswith("E"))
    assert error.endswith("; this process has no CAP_NET_RAW")


def test_init_only_needs_neither_cluster_nor_manifests(untouched: Lab, tmp_path: Path) -> None:
    station = station_of(untouched, tmp_path, "iptables", "nf_tables")
    for file in station.folder.path.iterdir():
        file.unlink()
    done = run(station, flags=("--init-only",))
    assert done.returncode == 0, done.stderr
    settings = netns.read_sysctls(
        untouched.name("node"),
        ["net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_tcp_timeout_established"],
    )
    assert list(settings.values()) == ["1", "14400"]
    assert "KUBE-SVC" not in untouched.run("node", "iptables-nft-save")


def test_init_only_without_the_rights_fails(untouched: Lab, tmp_path: Path) -> None:
    station = station_of(untouched, tmp_path, "nftables", "nf_tables")
    done = run(station, *confined(tmp_path, "+net_raw"), flags=("--init-only",))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
