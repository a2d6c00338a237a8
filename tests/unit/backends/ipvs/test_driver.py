"""What a sync sends to the kernel, and in which order; draining; repair; refusals; sets that grow."""

import errno
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import pack
from kubeproxy.backends.base import StaleError, SyncError
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs import driver as drivers
from kubeproxy.backends.ipvs import sets
from kubeproxy.backends.ipvs.kernel import ServerChange
from kubeproxy.model.node import IPVSSettings
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.ipvs.rig import HERE, Rig, addresses, servers

WEB = Virtual(ipvs.TCP, pack("10.96.0.1"), 80)
port = types.ServicePort


def real(last: int, number: int = 8080) -> Real:
    return Real(pack(f"10.244.1.{last}"), number)


def running(*objects: types.Service | types.EndpointSlice, **settings) -> Rig:
    """A proxy after its first sync."""
    rig = Rig(replace(HERE, ipvs=IPVSSettings(**settings)))
    rig.tell(*objects)
    assert not rig.full()
    rig.done()
    return rig


def web(*backends: int, protocol: str = "TCP", **spec) -> Iterator[types.Service | types.EndpointSlice]:
    yield service("web", "10.96.0.1", ports=[port(80, protocol=protocol)], **spec)
    yield endpoints("web", *(f"10.244.1.{i}" for i in backends), protocol=protocol)


def test_another_endpoint_touches_its_real_server_alone() -> None:
    rig = running(*web(11, 12), service("other", "10.96.0.2"), endpoints("other", "10.244.1.13"))
    rig.tell(*web(11, 14))
    rig.partial()
    assert rig.done() == [("add", (WEB, real(14))), ("delete", (WEB, real(12)))]


def test_what_comes_comes_before_packets_do_and_what_goes_goes_after() -> None:
    rig = running()
    rig.tell(*web(11))
    rig.partial()
    address = pack("10.96.0.1")
    assert rig.done() == [
        ("add", ("KUBE-CLUSTER-IP", Element(address, ipvs.TCP, 80))),
        ("add", ("KUBE-IPVS-IPS", Element(address))),
        ("add", WEB),
        ("add", (WEB, real(11))),
        ("bind", address),
        ("rules", "nat"),
    ]
    rig.gone("Service", "web")
    rig.partial()
    assert rig.done() == [
        ("unbind", address),
        ("delete", WEB),
        ("delete", ("KUBE-CLUSTER-IP", Element(address, ipvs.TCP, 80))),
        ("delete", ("KUBE-IPVS-IPS", Element(address))),
        ("rules", "nat"),
    ]


def test_rules_change_only_with_the_first_and_the_last_of_a_kind() -> None:
    rig = running(*web(11))
    rig.tell(service("two", "10.96.0.2"))
    rig.partial()
    assert "rules" not in [verb for verb, _ in rig.done()]
    rig.tell(service("three", "10.96.0.3", ports=[port(80, node_port=30080)], type="NodePort"))
    rig.partial()
    ((table, text),) = rig.tables.inputs
    assert table == "nat"
    assert ":KUBE-NODE-PORT - [0:0]" in text
    assert "KUBE-SERVICES" not in text


def test_rules_of_services_come_and_go_one_by_one() -> None:
    def limited(name: str, last: int) -> types.Service:
        ranges = ("198.51.100.0/24",)
        ip = f"203.0.113.{last}"
        return service(
            name, f"10.96.0.{last}", balancer=[ip], load_balancer_source_ranges=ranges, type="LoadBalancer"
        )

    rig = running(limited("a", 1))
    rig.tell(limited("b", 2))
    rig.partial()
    ((table, text),) = rig.tables.inputs
    rule = "-s 203.0.113.2/32 -m ipvs --vproto 6 --vaddr 203.0.113.2 --vport 80 -j DROP"
    assert (table, text) == ("filter", f"-A KUBE-IPVS-OUT-FILTER {rule}\n")
    rig.done()
    rig.gone("Service", "b")
    rig.partial()
    assert rig.tables.inputs == [("filter", f"-D KUBE-IPVS-OUT-FILTER {rule}\n")]


def test_a_shared_endpoint_needs_one_element_until_the_last_of_its_services_goes() -> None:
    near = endpoints("web", "10.244.1.11", local=["10.244.1.11"])
    rig = running(
        service("web", "10.96.0.1"),
        near,
        service("b", "10.96.0.2"),
        endpoints("b", "10.244.1.11", local=["10.244.1.11"]),
    )
    loop = Element(pack("10.244.1.11"), ipvs.TCP, 8080, pack("10.244.1.11"))
    assert rig.kernel.elements("KUBE-LOOP-BACK") == {loop}
    rig.gone("Service", "web")
    rig.partial()
    assert rig.kernel.elements("KUBE-LOOP-BACK") == {loop}
    rig.gone("Service", "b")
    rig.partial()
    assert rig.kernel.elements("KUBE-LOOP-BACK") == set()


def test_one_port_of_two_goes_and_the_address_stays() -> None:
    both = [port(80, "http"), port(443, "https")]
    rig = running(service("web", "10.96.0.1", ports=both))
    rig.tell(service("web", "10.96.0.1", ports=both[:1]))
    rig.partial()
    assert addresses(rig.kernel) == ["10.96.0.1"]
    assert set(rig.kernel.virtuals) == {WEB}


def test_local_policy_without_local_endpoints_falls_back_to_all_as_in_the_reference() -> None:
    spec = {"type": "NodePort", "external_traffic_policy": "Local"}
    rig = running(
        service("web", "10.96.0.1", ports=[port(80, node_port=30080)], **spec),
        endpoints("web", "10.244.2.21"),
    )
    front = Virtual(ipvs.TCP, pack("192.0.2.1"), 30080)
    assert set(rig.kernel.reals(front)) == {Real(pack("10.244.2.21"), 8080)}
    rig.tell(endpoints("web", "10.244.1.11", "10.244.2.21", local=["10.244.1.11"]))
    rig.partial()
    assert set(rig.kernel.reals(front)) == {real(11)}
    assert len(rig.kernel.reals(WEB)) == 2


def test_affinity_is_persistence_and_mh_looks_at_ports_too() -> None:
    rig = running(*web(11, session_affinity="ClientIP"), scheduler="mh")
    assert rig.kernel.settings()[WEB] == Settings("mh", ipvs.PERSISTENT | ipvs.SCHEDULER_2, 10800)
    rig.tell(*web(11))
    rig.partial()
    assert rig.kernel.settings()[WEB] == Settings("mh", ipvs.SCHEDULER_2, 0)
    assert [verb for verb, _ in rig.done()] == ["edit"]


def test_node_ports_are_on_the_node_s_addresses_but_not_those_of_loopback_and_links() -> None:
    node = replace(HERE, node_port_addresses=("10.0.0.1", "127.0.0.1", "169.254.1.1", "192.0.2.1"))
    rig = Rig(node)
    rig.tell(service("web", "10.96.0.1", type="NodePort", ports=[port(80, node_port=30080)]))
    assert not rig.full()
    assert {line for line in servers(rig.kernel) if ":30080" in line} == {
        "-A -t 10.0.0.1:30080 -s rr",
        "-A -t 192.0.2.1:30080 -s rr",
    }


def test_an_address_the_host_has_is_not_given_to_the_interface() -> None:
    rig = running(service("web", "10.96.0.1", external_ips=("192.0.2.1", "203.0.113.1")))
    assert addresses(rig.kernel) == ["10.96.0.1", "203.0.113.1"]
    assert Virtual(ipvs.TCP, pack("192.0.2.1"), 80) in rig.kernel.virtuals


class TestDraining:
    """Real servers that go while they have connections."""

    def test_connections_of_tcp_are_waited_for(self) -> None:
        rig = running(*web(11, 12))
        rig.kernel.virtuals[WEB][1][real(12)] = Load(1, 1, 0)
        rig.tell(*web(11))
        rig.partial()
        assert rig.kernel.reals(WEB) == {real(11): Load(1), real(12): Load(0, 1, 0)}
        assert rig.intact()
        self._look(rig)
        assert real(12) in rig.kernel.reals(WEB)
        rig.kernel.virtuals[WEB][1][real(12)] = Load(0, 0, 0)
        self._look(rig)
        assert rig.kernel.reals(WEB) == {real(11): Load(1)}
        assert rig.intact()

    @pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
    def test_others_are_not(self, protocol: str) -> None:
        rig = running(*web(11, 12, protocol=protocol))
        virtual = WEB._replace(protocol=ipvs.UDP if protocol == "UDP" else ipvs.SCTP)
        rig.kernel.virtuals[virtual][1][real(12)] = Load(1, 1, 1)
        rig.tell(*web(11, protocol=protocol))
        rig.partial()
        assert set(rig.kernel.reals(virtual)) == {real(11)}

    def test_one_that_comes_back_is_used_again(self) -> None:
        rig = running(*web(11, 12))
        rig.kernel.virtuals[WEB][1][real(12)] = Load(1, 0, 3)
        rig.tell(*web(11))
        rig.partial()
        rig.tell(*web(11, 12))
        rig.partial()
        assert rig.kernel.reals(WEB) == {real(11): Load(1), real(12): Load(1, 0, 3)}
        rig.kernel.virtuals[WEB][1][real(12)] = Load(1, 0, 0)
        self._look(rig)
        assert real(12) in rig.kernel.reals(WEB)

    def test_a_service_that_goes_waits_for_nobody(self) -> None:
        rig = running(*web(11))
        rig.kernel.virtuals[WEB][1][real(11)] = Load(1, 5, 5)
        rig.gone("Service", "web")
        rig.partial()
        assert not rig.kernel.virtuals

    def test_a_restart_goes_on_with_it(self) -> None:
        rig = running(*web(11, 12))
        rig.kernel.virtuals[WEB][1][real(12)] = Load(1, 1, 0)
        rig.tell(*web(11))
        rig.partial()
        again = rig.restarted()
        assert not again.full()
        assert again.kernel.reals(WEB)[real(12)] == Load(0, 1, 0)
        rig.kernel.virtuals[WEB][1][real(12)] = Load(0, 0, 0)
        self._look(again)
        assert set(again.kernel.reals(WEB)) == {real(11)}

    def _look(self, rig: Rig) -> None:
        backend = rig.backend
        assert isinstance(backend, drivers.IPVSDriver)
        backend.delete_drained()


class TestRepair:
    """What others did."""

    def test_a_restart_changes_nothing(self) -> None:
        rig = running(
            *web(11, 12), service("b", "10.96.0.2", ports=[port(80, node_port=30081)], type="NodePort")
        )
        assert not rig.restarted().full()
        assert rig.done() == []

    def test_weights_of_an_earlier_run_are_set_right(self) -> None:
        rig = running(*web(11))
        rig.kernel.virtuals[WEB][1][real(11)] = Load(0)
        assert not rig.intact()
        assert not rig.full()
        assert rig.kernel.reals(WEB) == {real(11): Load(1)}

    @pytest.mark.parametrize(
        "what",
        [
            "server",
            "real",
            "foreign real",
            "element",
            "set",
            "address",
            "interface",
            "rule",
            "foreign server",
        ],
    )
    def test_what_is_missing_or_too_much_is_noticed_and_mended(self, what: str) -> None:
        rig = running(*web(11))
        whole = rig.everything()
        assert rig.intact()
        kernel = rig.kernel
        if what == "server":
            kernel.virtuals.clear()
        elif what == "foreign server":
            kernel.virtuals[WEB._replace(port=9)] = Settings("rr"), {}
        elif what == "real":
            kernel.virtuals[WEB][1].clear()
        elif what == "foreign real":
            kernel.virtuals[WEB][1][real(99)] = Load(1)
        elif what == "element":
            kernel.sets["KUBE-CLUSTER-IP"][1].clear()
        elif what == "set":
            del kernel.sets["KUBE-NODE-PORT-TCP"]
        elif what == "address":
            kernel.bound = {pack("10.96.9.9")}
        elif what == "interface":
            kernel.bound = None
        else:
            rig.tables.tables["nat"]["KUBE-SERVICES"].pop()
        assert not rig.intact()
        assert not rig.full()
        assert rig.everything() == whole
        assert rig.intact()

    def test_what_is_changed_while_the_rules_are_corrected_is_noticed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It happens after the rules were read, and before the sync is done."""
        rig = Rig(tables=FakeTables("nf_tables"))
        rig.tell(*web(11))
        assert not rig.full()
        whole, save = rig.everything(), rig.tables.save

        def saved() -> Iterator[str]:
            yield from save()
            rig.tables.tables["nat"]["KUBE-SERVICES"].pop()

        with monkeypatch.context() as patch:
            patch.setattr(rig.tables, "save", saved)
            assert not rig.full()
        assert not rig.intact()
        assert not rig.full()
        assert rig.everything() == whole
        assert rig.intact()

    def test_servers_and_addresses_in_excluded_ranges_are_others(self) -> None:
        rig = running(*web(11), exclude_cidrs=("203.0.113.0/24",))
        foreign = Virtual(ipvs.TCP, pack("203.0.113.9"), 80)
        rig.kernel.virtuals[foreign] = Settings("wlc"), {real(50): Load(3)}
        rig.kernel.bind([foreign.address])
        assert rig.intact()
        assert not rig.full()
        assert foreign in rig.kernel.virtuals
        assert foreign.address in rig.kernel.addresses()
        assert rig.intact()

    def test_a_change_that_meets_what_others_did_asks_for_a_full_sync(self) -> None:
        rig = running(*web(11))
        whole = rig.fresh()
        rig.kernel.virtuals.clear()
        rig.tell(*web(11, 12))
        whole.tell(*web(11, 12))
        with pytest.raises(StaleError, match=r"virtual server TCP 10\.96\.0\.1:80"):
            rig.partial()
        assert not rig.full()
        assert not whole.full()
        assert rig.everything() == whole.everything()


class TestRefusals:
    """What the kernel does not take."""

    def test_one_service_harms_no_other(self) -> None:
        rig = Rig()
        bad = Virtual(ipvs.TCP, pack("10.96.0.66"), 80)
        rig.kernel.refuse = lambda thing: (
            errno.EINVAL if isinstance(thing, ServerChange) and thing.virtual == bad else 0
        )
        rig.tell(*web(11), service("bad", "10.96.0.66"))
        failures = rig.full()
        assert list(failures) == [("default", "bad")]
        assert failures["default", "bad"] == "virtual server TCP 10.96.0.66:80: [Errno 22] Invalid argument"
        assert rig.kernel.reals(WEB) == {real(11): Load(1)}
        assert rig.intact()
        rig.kernel.refuse = lambda _: 0
        assert not rig.full()
        assert bad in rig.kernel.virtuals

    @pytest.mark.parametrize(
        ("refused", "message"),
        [
            (WEB, "virtual server TCP 10.96.0.1:80"),
            ((WEB, real(11)), "real server 10.244.1.11:8080 of virtual server TCP 10.96.0.1:80"),
            (pack("10.96.0.1"), "address 10.96.0.1 of kube-ipvs0"),
            ("CLUSTER", "element 10.96.0.1,80 of set CLUSTER-IP"),
        ],
    )
    def test_the_piece_is_named(self, refused: object, message: str) -> None:
        def refuse(thing: object) -> int:
            if isinstance(thing, ServerChange):
                there: object = thing.virtual if thing.real is None else (thing.virtual, thing.real)
            elif isinstance(thing, tuple):
                there = refused if "CLUSTER" in str(thing[0]) and refused == "CLUSTER" else ""
            else:
                there = thing
            return errno.EINVAL if there == refused else 0

        rig = Rig()
        rig.kernel.refuse = refuse
        rig.tell(*web(11))
        assert rig.full() == {("default", "web"): f"{message}: [Errno 22] Invalid argument"}

    def test_when_nothing_is_accepted_no_service_is_to_blame(self) -> None:
        rig = Rig(replace(HERE, ipvs=IPVSSettings(scheduler="nosuch")))
        rig.tell(*(service(f"s{i}", f"10.96.0.{i + 1}") for i in range(20)))
        with pytest.raises(SyncError, match="every Service is refused"):
            rig.full()


class TestSize:
    """Sets that must hold more than they were made for."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sets, "FIRST_LIMIT", 2)

    def test_they_grow_while_rules_look_into_them(self) -> None:
        rig = running(service("a", "10.96.0.11"), service("b", "10.96.0.12"))
        assert rig.kernel.headers()["KUBE-CLUSTER-IP"].limit == 2
        rig.tell(service("c", "10.96.0.13"))
        rig.partial()
        header = rig.kernel.headers()["KUBE-CLUSTER-IP"]
        assert (header.limit, header.size) == (4, 3)
        assert "KUBE-GROWING" not in rig.kernel.sets
        assert ("swap", ("KUBE-CLUSTER-IP", "KUBE-GROWING")) in rig.done()

    def test_at_the_first_sync_and_after_a_crash_in_between(self) -> None:
        rig = Rig()
        rig.kernel.create_set("KUBE-GROWING", "hash:ip", 9)
        rig.tell(*(service(f"s{i}", f"10.96.0.{i}") for i in range(1, 20)))
        assert not rig.full()
        assert rig.kernel.headers()["KUBE-CLUSTER-IP"].size == 19
        assert rig.kernel.headers()["KUBE-IPVS-IPS"].size == 19
        assert "KUBE-GROWING" not in rig.kernel.sets

    def test_what_is_left_of_an_earlier_run_counts(self) -> None:
        rig = running(service("a", "10.96.0.11"), service("b", "10.96.0.12"))
        again = Rig(rig.node, rig.kernel, rig.tables)
        again.tell(service("c", "10.96.0.13"), service("d", "10.96.0.14"))
        assert not again.full()
        assert again.everything() == again.fresh().everything()


def test_a_set_of_another_type_is_named() -> None:
    rig = Rig()
    rig.kernel.create_set("KUBE-CLUSTER-IP", "hash:ip", 65536)
    with pytest.raises(SyncError, match="set KUBE-CLUSTER-IP is of type hash:ip, not hash:ip,port"):
        rig.full()
