"""How userspace mode divides connections, with packets: by weights, by hash, by connections, near endpoints first."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.insight import daemon
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, asked, until
from tests.kernel.test_explain import explain
from tests.kernel.traffic import TALK_PORT, talkers
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, EP12, EP12_6, NODE_NAME, Lab

WEB, WEB6, NODE_PORT = "10.96.0.10", "fd00:10:96::a", 30080
POD, POD6 = "10.244.1.100", "fd00:10:244:1::64"


@contextlib.contextmanager
def serving(
    lab: Lab, path: Path, *, local: Sequence[str] = (), flags: Sequence[str] = (), **annotations: str
) -> Iterator[Station]:
    """A Service with two endpoints of each family that talk."""
    made = Station(lab, path, mode="userspace")
    web = service("web", WEB, WEB6, type="NodePort", ports=[types.ServicePort(80, node_port=NODE_PORT)])
    made.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=types.Annotations(**annotations))),
        endpoints("web", EP11, EP12, port=TALK_PORT, local=local, node=NODE_NAME),
        endpoints("web", EP11_6, EP12_6, port=TALK_PORT, local=local, node=NODE_NAME, name="web-6"),
    )
    with talkers(lab, "ep11", "ep12"), made.running(*flags):
        yield made


class Clients:
    """Connections of a client to the Service that stay open."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.open: list[socket.socket] = []

    def connect(self, count: int, address: str = WEB) -> None:
        with netns.inside(self._lab.name("client")):
            self.open += [socket.create_connection((address, 80), 60) for _ in range(count)]
        for each in self.open[-count:]:
            each.sendall(b"word")
            assert each.recv(4, socket.MSG_WAITALL) == b"word"

    def of(self, family: Family = IPV4) -> dict[str, int]:
        """How many each endpoint has, as the relay counts them."""
        with self._lab.inside("node"):
            found = daemon.traffic(LinuxMachine(), family, "").totals
        return {each.tally.target[0]: each.tally.open for each in found if each.tally.open}

    def end(self, endpoint: str) -> None:
        """One connection to an endpoint ends."""
        with self._lab.inside("node"):
            listed = daemon.flows(LinuxMachine(), IPV4, "default/web/TCP", (WEB, 80), (), 1000)
        ports = {each.client[1] for each in listed if each.target[0] == endpoint}
        client = next(each for each in self.open if each.getsockname()[1] in ports)
        self.open.remove(client)
        client.close()
        until(lambda: self.of().get(endpoint, 0) == len(ports) - 1)

    def close(self) -> None:
        for each in self.open:
            each.close()


@contextlib.contextmanager
def clients(lab: Lab) -> Iterator[Clients]:
    made = Clients(lab)
    with contextlib.closing(made):
        yield made


def test_weights_are_shares(lab: Lab, tmp_path: Path) -> None:
    with (
        serving(lab, tmp_path, weights=f"address:{EP11}=3, address:{EP12_6}=5") as station,
        clients(lab) as some,
    ):
        some.connect(40)
        assert some.of() == {EP11: 30, EP12: 10}
        some.connect(30, WEB6)
        assert some.of(IPV6) == {EP11_6: 5, EP12_6: 25}
        _, found, _ = explain(station, "--from", POD, "--to", f"{WEB}:80")
        assert {each["address"]: each["share"] for each in found["endpoints"]} == {EP11: 0.75, EP12: 0.25}
        assert found["kernel"] == "agrees", found["differences"]


def test_with_maglev_a_client_stays_with_the_endpoint_that_explain_names(lab: Lab, tmp_path: Path) -> None:
    made = Station(lab, tmp_path, mode="userspace")
    web = service("web", WEB, WEB6)
    made.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=types.Annotations(balancing="maglev"))),
        endpoints("web", EP12, EP11),
        endpoints("web", EP11_6, EP12_6, name="web-6"),
    )
    found: set[str] = set()
    with made.running():
        for front, source in ((WEB, POD), (WEB6, POD6)):
            answered = asked(lab, "client", front, times=6)
            assert len(answered) == 1
            to = f"[{front}]:80" if ":" in front else f"{front}:80"
            _, told, _ = explain(made, "--from", source, "--to", to)
            assert {each["address"] for each in told["endpoints"]} == set(answered)
            found |= set(answered)
        # The same table, when the endpoints come in another order.
        made.folder.put(endpoints("web", EP11, EP12))
        before = asked(lab, "client", WEB, times=3)
        assert set(before) <= found
        (gone,) = set(before)
        (left,) = {EP11, EP12} - {gone}
        made.folder.put(endpoints("web", left))
        until(lambda: asked(lab, "client", WEB, times=1) == {left: 1})


def test_with_the_port_the_connections_of_one_client_are_divided(lab: Lab, tmp_path: Path) -> None:
    with (
        serving(lab, tmp_path, balancing="maglev", maglev_hash="source-and-port"),
        clients(lab) as some,
    ):
        some.connect(60)
        assert set(some.of()) == {EP11, EP12}
        assert min(some.of().values()) > 10


def test_the_endpoint_with_the_fewest_connections_is_used(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path, balancing="least-connections"), clients(lab) as some:
        some.connect(10)
        assert some.of() == {EP11: 5, EP12: 5}
        for _ in range(4):
            some.end(EP12)
        assert some.of() == {EP11: 5, EP12: 1}
        some.connect(4)
        assert some.of() == {EP11: 5, EP12: 5}, "those that have fewer get the next ones"


@pytest.mark.parametrize("flags", [(), ("--userspace-listen",)], ids=["rules", "listens"])
def test_local_endpoints_are_preferred_until_they_have_enough(
    lab: Lab, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    settings: dict[str, Any] = {"prefer": "node", "spill_over": "4", "local": (EP11,), "flags": flags}
    if flags:
        lab.run("node", "ip", "address", "add", f"{WEB}/32", "dev", "lo")
    try:
        with serving(lab, tmp_path, **settings), clients(lab) as some:
            some.connect(4)
            assert some.of() == {EP11: 4}
            some.connect(5)
            assert some.of() == {EP11: 4, EP12: 5}
            some.end(EP11)
            some.connect(1)
            assert some.of() == {EP11: 4, EP12: 5}
    finally:
        if flags:
            lab.run("node", "ip", "address", "delete", f"{WEB}/32", "dev", "lo")


def test_what_it_can_do_is_no_finding(lab: Lab, tmp_path: Path) -> None:
    web = service("web", WEB)
    annotations = types.Annotations(
        balancing="least-connections", weights="*=2", prefer="zone", spill_over="9"
    )
    made = Station(lab, tmp_path, mode="userspace")
    made.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=annotations)), endpoints("web", EP11)
    )
    with made.running() as running:
        assert asked(lab, "client", WEB, times=1) == {EP11: 1}
        assert "an annotation is ignored" not in running.log()
