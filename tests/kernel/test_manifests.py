"""Manifests that cannot be used when the daemon starts, on a node with real packets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kubeproxy import backends
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, answers, ask, until
from tests.kernel.spaces import use_variant
from tests.kernel.test_serve import fetch, metrics
from tests.lab.topology import EP11, EP12, Lab
from tests.machines import MACHINE

WEB, OTHER, NEW = "10.96.0.10", "10.96.0.11", "10.96.0.12"
WAITING = "Waiting until every manifest can be used"
BROKEN = "apiVersion: v1\nkind: Service\nmetadata: {name: other\n"
UNDECODABLE = "apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: http}\n"
UNREADABLE = "kubeproxy_manifest_files_unreadable"


def broken(file: Path) -> str:
    file.write_text(BROKEN)
    return "line 4, column 1: metadata: while parsing a flow mapping"


def undecodable(file: Path) -> str:
    file.write_text(UNDECODABLE)
    return "spec.ports: Expected `array | null`, got `str`"


def dangling(file: Path) -> str:
    file.unlink()
    file.symlink_to("none")
    return "No such file or directory"


def empty(file: Path) -> str:
    file.write_text("")
    return "it is empty"


def reasons(lab: Lab) -> list[str]:
    code, _, body = fetch(lab, "node", "127.0.0.1", 10256, "/readyz")
    answer = json.loads(body)
    assert answer["ready"] == (code == 200)
    return list(answer["reasons"])


def two_services(lab: Lab, path: Path, variant: str, mode: str) -> tuple[Station, Path]:
    """Two Services, each in a file of its own with its endpoints; and the file of one."""
    station = Station(lab, path, variant, mode=mode)  # type: ignore[arg-type]
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    station.folder.put(endpoints("other", EP12))
    station.folder.put(service("other", OTHER))
    (file,) = [f for f in station.folder.path.iterdir() if f.name.startswith("Service") and "other" in f.name]
    return station, file


LEAST = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: "", clusterIP: 10.96.0.10, ports: [{port: 80, protocol: ""}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.11]}]
ports: [{port: 8080}]
"""
"""Objects with no field that an API server would set itself."""


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_fields_that_an_api_server_would_set(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, "legacy", mode=mode)
    (station.folder.path / "least.yaml").write_text(LEAST)
    with station.running() as daemon:
        assert ask(lab, "client", WEB) == EP11
        assert "WARNING" not in daemon.log()


@pytest.mark.parametrize(
    ("mode", "variant", "spoil"),
    [
        ("iptables", "nf_tables", broken),
        ("iptables", "legacy", dangling),
        ("nftables", "nf_tables", broken),
        ("nftables", "nf_tables", undecodable),
        ("nftables", "nf_tables", empty),
    ],
)
def test_after_a_restart_its_services_go_on(
    lab: Lab, tmp_path: Path, mode: str, variant: str, spoil: Callable[[Path], str]
) -> None:
    station, file = two_services(lab, tmp_path, variant, mode)
    good = file.read_text()
    with station.running():
        assert (ask(lab, "client", WEB), ask(lab, "client", OTHER)) == (EP11, EP12)
    reason = spoil(file)
    with station.running(words=WAITING) as daemon:
        found = reasons(lab)
        assert any(str(file) in text and reason in text for text in found), found
        assert metrics(lab)[UNREADABLE] == (spoil is not undecodable)
        assert metrics(lab)["kubeproxy_manifest_objects_undecodable"] == (spoil is undecodable)
        station.folder.put(service("new", NEW), endpoints("new", EP11))
        daemon.says("new")  # it was read, and
        assert (ask(lab, "client", WEB), ask(lab, "client", OTHER)) == (EP11, EP12)
        assert "READY=1" not in daemon.notifications()
        assert daemon.log().count(reason) == 1
        file.unlink()
        file.write_text(good)
        daemon.ready()
        until(lambda: not reasons(lab))
        assert [ask(lab, "client", ip) for ip in (WEB, OTHER, NEW)] == [EP11, EP12, EP11]
        assert not metrics(lab)[UNREADABLE]
        spoil(file)  # after the start its last good state stays
        until(lambda: metrics(lab)[UNREADABLE] or spoil is undecodable)
        assert ask(lab, "client", OTHER) == EP12
        assert not reasons(lab)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_after_a_boot_it_harms_no_other(lab: Lab, tmp_path: Path, mode: str) -> None:
    station, file = two_services(lab, tmp_path, "nf_tables", mode)
    good = file.read_text()
    file.write_text(BROKEN)
    with station.running() as daemon:
        assert ask(lab, "client", WEB) == EP11
        assert "serves no Services of an earlier run: starting without" in daemon.log()
        assert any(str(file) in text for text in reasons(lab))
        file.write_text(good)
        until(lambda: answers(lab, "client", OTHER, EP12))
        until(lambda: not reasons(lab))


def test_userspace_mode_has_nothing_to_keep(lab: Lab, tmp_path: Path) -> None:
    """What it left in the kernel leads to a relay that is gone."""
    station, file = two_services(lab, tmp_path, "nf_tables", "userspace")
    with station.running():
        assert ask(lab, "client", OTHER) == EP12
    file.write_text(BROKEN)
    with station.running():
        assert ask(lab, "client", WEB) == EP11
        assert any(str(file) in text for text in reasons(lab))


@pytest.mark.parametrize("variant", ["nf_tables", "legacy"])
def test_whether_the_kernel_serves_services(lab: Lab, tmp_path: Path, variant: str) -> None:
    station = Station(lab, tmp_path, variant)  # type: ignore[arg-type]

    def serves(mode: str) -> bool:
        with lab.inside("node"), pytest.MonkeyPatch.context() as patch:
            use_variant(patch, tmp_path, variant)  # type: ignore[arg-type]
            return backends.serves(MACHINE, backends.mode(mode))

    assert not any(map(serves, ("iptables", "nftables", "ipvs", "userspace")))
    with station.running():
        assert not serves("iptables")  # chains that belong to no Service
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    with station.running():
        pass
    assert all(map(serves, ("iptables", "nftables", "ipvs")))  # those that replace it, too
    assert not serves("userspace-listen")
