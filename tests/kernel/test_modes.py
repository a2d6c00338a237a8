"""From one mode to another and back, under traffic: the old rules go when the new ones work, not before."""

from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.iptables import names
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.kernel.spaces import VARIANTS
from tests.kernel.test_daemon import complaints, run
from tests.kernel.traffic import Talk, Traffic, talkers
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB = "10.96.0.10"
FRONTS = [("client", WEB, 80), ("node", WEB, 80), ("out", "192.0.2.1", 30080)]


def fill(station: Station) -> None:
    station.folder.put(
        service("web", WEB, "fd00:10:96::10", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", "fd00:10:244:1::b", name="web-6"),
    )


def tables(lab: Lab) -> set[str]:
    """Whose rules are there."""
    listed = lab.run("node", "nft", "list", "tables").splitlines()
    found = {"nftables"} if {"table ip kube-proxy", "table ip6 kube-proxy"} & set(listed) else set()
    for variant in ("nft", "legacy"):
        for program in ("iptables", "ip6tables"):
            saved = lab.run("node", f"{program}-{variant}-save")
            if any(line.startswith(f":{names.SERVICES} ") for line in saved.splitlines()):
                found.add("iptables")
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_to_nftables_and_back_under_traffic(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    modes = ("iptables", "nftables", "iptables")
    stations = {}
    for mode in set(modes):
        (tmp_path / mode).mkdir()
        stations[mode] = Station(lab, tmp_path / mode, variant, mode=mode)
        fill(stations[mode])
    with stations["iptables"].running():
        assert tables(lab) == {"iptables"}
    with Traffic(lab, FRONTS) as traffic:
        for mode in modes[1:]:
            with stations[mode].running() as daemon:
                until(lambda wanted={mode}: tables(lab) == wanted)  # type: ignore[misc]
                traffic.wait()
                log = daemon.log()
                removed = "Removed " if mode == "nftables" else "Deleted table"
                assert log.index("Synced: ") < log.index(removed), "first the new, then the old"
                assert "mode stay" not in log
            traffic.wait()
    assert ask(lab, "client", "fd00:10:96::10", 80) == "fd00:10:244:1::b"


def test_open_connections_stay_open(lab: Lab, tmp_path: Path) -> None:
    port = types.ServicePort(7777)
    with talkers(lab, "ep11", "ep12"):
        talk = None
        for number, mode in enumerate(("iptables", "nftables", "iptables")):
            (tmp_path / str(number)).mkdir()
            station = Station(lab, tmp_path / str(number), mode=mode)
            station.folder.put(
                service("web", WEB, ports=[port]),
                endpoints("web", EP11, EP12, port=7777, local=(EP11, EP12), node=NODE_NAME),
            )
            with station.running():
                until(lambda wanted={mode}: tables(lab) == wanted)  # type: ignore[misc]
                talk = talk or Talk(lab, [("client", WEB, 7777), ("node", WEB, 7777)] * 4)
                talk.say()
            talk.say()
        assert talk is not None
        talk.close()


def test_a_mode_that_cannot_start_leaves_the_old_rules(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path)
    fill(station)
    with station.running():
        before = station.rules()
    (tmp_path / "new").mkdir()
    new = Station(lab, tmp_path / "new", mode="nftables")
    fill(new)
    done = run(new, "setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert done.returncode == 1
    assert any("CAP_NET_ADMIN" in line for line in complaints(done)), done.stderr
    assert station.rules() == before
    assert ask(lab, "client", WEB, 80) in {EP11, EP12}
