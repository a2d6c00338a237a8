"""nftables mode as an operator meets it: what others do to the table, takeovers, restarts, changes, all under traffic."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.fakes.cluster import NODE, Folder, Proxy, endpoints, service
from tests.kernel.daemons import PATIENCE, Station, answers, ask, until
from tests.kernel.traffic import Front, Talk, Traffic, answered, asking, talkers, talking
from tests.lab import cases, rules
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import EP11, EP12, EP13, LOCAL, REMOTE, REMOTE2, Lab
from tests.machines import MACHINE

WEB, STICKY, OLD, NONE = "10.96.0.10", "10.96.0.12", "10.96.0.11", "10.96.0.13"
MANY = [f"10.244.3.{i}" for i in range(1, 21)]


def snapshot(lab: Lab, family: str = "ip") -> dict[str, Any]:
    """What the node's table holds, in an order of its own and without the kernel's numbers."""
    listed = json.loads(lab.run("node", "nft", "-j", "list", "table", family, "kube-proxy"))["nftables"]
    found: dict[str, Any] = {}
    for item in listed:
        for kind, obj in item.items():
            obj.pop("handle", None)
            if "elem" in obj:
                obj["elem"] = sorted(json.dumps(each) for each in obj["elem"] if "expires" not in str(each))
            found.setdefault(f"{kind} {obj.get('chain', obj.get('name', ''))}", []).append(obj)
    return found


def tables(lab: Lab) -> str:
    return lab.run("node", "nft", "list", "tables")


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    """Services that need all kinds of objects."""
    station = Station(lab, tmp_path, mode="nftables")
    affinity = types.SessionAffinityConfig(types.ClientIPConfig(600))
    station.folder.put(
        service("web", WEB, type="NodePort", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11),
        service("sticky", STICKY, session_affinity="ClientIP", session_affinity_config=affinity),
        endpoints("sticky", EP12, EP13),
        service("two", "10.96.0.16"),
        endpoints("two", EP11, EP12),
        service("none", NONE),
        service("many", "10.96.0.14"),
        endpoints("many", *MANY),
        service(
            "lb",
            "10.96.0.15",
            type="LoadBalancer",
            balancer=["203.0.113.5"],
            load_balancer_source_ranges=("198.51.100.0/24",),
        ),
        endpoints("lb", EP12),
    )
    return station


@pytest.fixture
def running(station: Station) -> Iterator[Daemon]:
    with station.running() as daemon:
        yield daemon


def first(lab: Lab, set_name: str) -> str:
    """One element of a set, as nft takes it."""
    listed = lab.run("node", "nft", "list", "set", "ip", "kube-proxy", set_name)
    found = re.search(r"elements = \{ ([^,}]+)", listed)
    assert found, listed
    return found[1].strip()


def element(lab: Lab, map_name: str) -> str:
    """The key of one element of a map."""
    listed = lab.run("node", "nft", "list", "map", "ip", "kube-proxy", map_name)
    found = re.search(r"elements = \{ ([^,}:]+) :", listed)
    assert found, listed
    return found[1].strip()


DISTURBANCES = {
    "everything flushed": ["flush ruleset"],
    "table deleted": ["delete table ip kube-proxy"],
    "table flushed": ["flush table ip kube-proxy"],
    "chain flushed": ["flush chain ip kube-proxy services"],
    "base chain flushed": ["flush chain ip kube-proxy nat-prerouting"],
    "base chain deleted": [
        "flush chain ip kube-proxy filter-forward",
        "delete chain ip kube-proxy filter-forward",
    ],
    "map flushed": ["flush map ip kube-proxy endpoints-1"],
    "set flushed": ["flush set ip kube-proxy cluster-ips"],
    "rule put first": ["insert rule ip kube-proxy services drop"],
    "rule put last": ["add rule ip kube-proxy masquerading counter"],
    "strange chain": [
        "add chain ip kube-proxy mine",
        "add rule ip kube-proxy mine counter",
        "insert rule ip kube-proxy services jump mine",
    ],
    "strange set": ["add set ip kube-proxy mine { type ipv4_addr; }"],
    "strange element": [f"add element ip kube-proxy cluster-ips {{ {OLD} }}"],
    "element of another": [f"add element ip kube-proxy no-endpoints-drop {{ {WEB} . tcp . 80 }}"],
}


def repairs(daemon: Daemon) -> list[str]:
    """What it wrote of IPv4."""
    return [line for line in daemon.log().splitlines() if "restored" in line and "IPv4" in line]


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_what_others_change_is_put_right(lab: Lab, running: Daemon, disturbance: str) -> None:
    before = snapshot(lab)
    lab.run("node", "nft", "-f", "-", given="\n".join(DISTURBANCES[disturbance]))
    until(lambda: repairs(running))
    until(lambda: "ip kube-proxy" in tables(lab) and snapshot(lab) == before)
    assert ask(lab, "client", WEB) == EP11
    (told,) = repairs(running)
    assert "nft (process " in told


@pytest.mark.parametrize(
    "name", ["endpoints-1", "endpoints-2", "endpoints-20", "service-ips", "service-nodeports"]
)
def test_one_element_that_is_deleted_comes_back(lab: Lab, running: Daemon, name: str) -> None:
    before = snapshot(lab)
    if not before[f"map {name}"][0].get("elem"):
        pytest.fail(f"{name} is empty, nothing can be deleted")
    lab.run("node", "nft", "delete", "element", "ip", "kube-proxy", name, "{", element(lab, name), "}")
    running.says("restored")
    until(lambda: snapshot(lab) == before)
    running.says(f"element deleted in {name}")


def test_an_element_that_was_changed_is_changed_back(lab: Lab, running: Daemon) -> None:
    before = snapshot(lab)
    key = element(lab, "endpoints-1")
    lab.run(
        "node", "nft", "-f", "-",
        given=f"delete element ip kube-proxy endpoints-1 {{ {key} }}\n"
        f"add element ip kube-proxy endpoints-1 {{ {key} : {EP13} . 8080 }}",
    )  # fmt: skip
    running.says("restored")
    until(lambda: snapshot(lab) == before)


def test_both_families_are_put_right(lab: Lab, station: Station) -> None:
    station.folder.put(service("six", "fd00:10:96::10"), endpoints("six", "fd00:10:244:1::b"))
    with station.running() as daemon:
        before = snapshot(lab), snapshot(lab, "ip6")
        assert ask(lab, "client", "fd00:10:96::10") != "TimeoutError"
        lab.run("node", "nft", "flush", "ruleset")
        until(lambda: daemon.log().count("restored") == 2)
        until(
            lambda: tables(lab).count("kube-proxy") == 2 and (snapshot(lab), snapshot(lab, "ip6")) == before
        )


def test_what_we_and_others_do_elsewhere_is_no_disturbance(
    lab: Lab, station: Station, running: Daemon
) -> None:
    lab.run(
        "node", "nft", "-f", "-",
        given="add table ip theirs\nadd chain ip theirs kube-proxy\nadd table inet kube-proxy\n"
        "add chain inet kube-proxy services\nadd rule inet kube-proxy services counter",
    )  # fmt: skip
    for i in range(10):
        station.folder.put(endpoints("web", LOCAL[i % 4]), service(f"new-{i}", f"10.96.1.{i + 1}"))
        until(lambda i=i: answers(lab, "client", WEB, LOCAL[i % 4]))  # type: ignore[misc]
    lab.run("node", "nft", "delete", "table", "inet", "kube-proxy")
    station.folder.put(endpoints("web", EP11))
    until(lambda: answers(lab, "client", WEB, EP11))
    assert "restored" not in running.log()
    assert "full sync: " not in running.log()


def test_service_cidrs_take_effect_at_once(lab: Lab, station: Station, running: Daemon) -> None:
    cidr = types.ServiceCIDR(
        types.ObjectMeta("one"), types.ServiceCIDRSpec(("10.96.0.0/16", "fd00:10:96::/112"))
    )
    twin = types.ServiceCIDR(types.ObjectMeta("two"), types.ServiceCIDRSpec(("10.96.0.0/16",)))

    def known() -> list[str]:
        return [json.dumps(e) for e in snapshot(lab)["set service-cidrs"][0].get("elem", [])]

    assert known() == []
    station.folder.put(cidr, twin)
    until(lambda: len(known()) == 1)
    assert ask(lab, "client", "10.96.200.1", patience=0.5) == "TimeoutError"
    station.folder.remove("ServiceCIDR", "one", namespace="")
    station.folder.put(service("later", "10.96.0.77"), endpoints("later", EP11))
    until(lambda: answers(lab, "client", "10.96.0.77", EP11))
    assert len(known()) == 1
    station.folder.remove("ServiceCIDR", "two", namespace="")
    until(lambda: known() == [])
    assert "full sync: " not in running.log()


def given_back(recorded: str) -> str:
    """The recorded table as the reference starts with it: its chains and maps emptied and filled, others left."""
    emptied = []
    for table in re.findall(r"^table (\w+ \S+) \{.*?^\}", recorded, flags=re.MULTILINE | re.DOTALL):
        body = re.search(rf"^table {table} \{{(.*?)^\}}", recorded, flags=re.MULTILINE | re.DOTALL)
        assert body
        emptied += [
            f"add chain {table} {name}\nflush chain {table} {name}"
            for name in re.findall(r"^\tchain (\S+) \{", body[1], flags=re.MULTILINE)
        ]
        for kind, name in re.findall(
            r"^\t(map|set) (service-\S+|cluster-ips|hairpin\S*|nodeport-ips) \{", body[1], re.MULTILINE
        ):
            emptied.append(f"flush {kind} {table} {name}")
    return "\n".join([*emptied, recorded])


@pytest.mark.parametrize(
    "name", ["everything", "loadbalancer-source-ranges", "affinity-clientip", "dual-stack", "nodeport-local"]
)
def test_taking_over_from_the_reference_and_handing_back(lab: Lab, tmp_path: Path, name: str) -> None:
    recorded = cases.rules("nftables", name)
    rules.load_nftables(lab, recorded)
    config, manifests = cases.write(name, "nftables", tmp_path)
    with Traffic(lab, answered("nftables", name)) as traffic:
        for _ in range(2):
            with Daemon(lab, kube_proxy(config, manifests), timeout=PATIENCE):
                traffic.wait()
                assert "map ip kube-proxy endpoints-1 " in lab.run("node", "nft", "list", "maps").replace(
                    "map endpoints-1", "map ip kube-proxy endpoints-1"
                )
            traffic.wait()
            lab.run("node", "nft", "-f", "-", given=given_back(recorded))
            traffic.wait()


def test_clients_keep_their_backends_when_it_takes_over(lab: Lab, tmp_path: Path) -> None:
    rules.load_nftables(lab, cases.rules("nftables", "affinity-clientip"))
    config, manifests = cases.write("affinity-clientip", "nftables", tmp_path)
    address, _, port = next(
        front.split(" ")[1].removesuffix("/tcp").rpartition(":")
        for front in cases.expected("nftables", "affinity-clientip")["pod"]
        if front.startswith("clusterIP ")
    )
    backend = {role: ask(lab, role, address, int(port)) for role in ("client", "ep11", "node")}
    assert all("." in who for who in backend.values())
    with Daemon(lab, kube_proxy(config, manifests), timeout=PATIENCE):
        for role, mine in backend.items():
            assert {ask(lab, role, address, int(port)) for _ in range(8)} == {mine}


def test_connections_stay_while_it_takes_over_starts_again_and_is_killed(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    ports = [types.ServicePort(80, "ask"), types.ServicePort(81, "talk")]
    station.folder.put(service("web", WEB, ports=ports), asking(EP11, EP12), talking(EP11))
    with talkers(lab, "ep11"):
        with station.running():
            talk = Talk(lab, [("client", WEB, 81)])
            talk.say()
        before = lab.run("node", "nft", "-a", "list", "table", "ip", "kube-proxy")
        with Traffic(lab, [("client", WEB, 80), ("node", WEB, 80)]) as traffic:
            with station.running():
                traffic.wait()
            assert lab.run("node", "nft", "-a", "list", "table", "ip", "kube-proxy") == before
            for i in range(4):
                station.folder.put(asking(EP11, EP12 if i % 2 else EP13))
                with station.running() as daemon:
                    if i % 2:
                        daemon.kill()
                    talk.say()
                    traffic.wait()
                talk.say()
        talk.close()


def test_no_connection_is_lost_while_services_change(lab: Lab, tmp_path: Path) -> None:
    """EP11 always serves; what else serves is alive. Slots move, chains come and go, a Service changes its kind."""
    station = Station(lab, tmp_path, mode="nftables")
    ports = [types.ServicePort(80, "ask", node_port=30080), types.ServicePort(81, "talk")]
    station.folder.put(service("web", WEB, type="NodePort", ports=ports), asking(EP11), talking(EP11))
    clients: list[Front] = [
        ("client", WEB, 80),
        ("node", WEB, 80),
        ("out", "192.0.2.1", 30080),
        ("ep11", WEB, 80),
    ]
    chance = random.Random(11)
    affinity = types.SessionAffinityConfig(types.ClientIPConfig(600))
    with talkers(lab, "ep11"), station.running() as daemon:
        talk = Talk(lab, [("client", WEB, 81), ("node", WEB, 81)])
        with Traffic(lab, clients) as traffic:
            for i in range(60):
                others = chance.sample([EP12, EP13, REMOTE, REMOTE2], chance.randint(0, 4))
                kind: dict[str, Any] = chance.choice(
                    [
                        {"type": "NodePort"},
                        {"type": "LoadBalancer", "balancer": ["203.0.113.9"]},
                        {
                            "type": "NodePort",
                            "session_affinity": "ClientIP",
                            "session_affinity_config": affinity,
                        },
                    ]
                )
                station.folder.put(asking(EP11, *others), service("web", WEB, ports=ports, **kind))
                if i % 2:
                    near = endpoints("near", *chance.sample(MANY + list(LOCAL), chance.randint(1, 20)))
                    station.folder.put(service("near", OLD), near)
                elif i:
                    station.folder.remove("Service", "near")
                if i % 10 == 9:
                    traffic.wait(2)
                talk.say()
            traffic.wait()
            station.folder.put(asking(EP11, EP12), service("web", WEB, ports=ports, type="NodePort"))
            until(lambda: EP12 in {who for seen in traffic.answers.values() for who in seen})
        talk.close()
        assert "full sync: " not in daemon.log()


def test_no_packet_finds_nothing_while_slots_move(lab: Lab) -> None:
    """Thousands of changes, each of which moves a Service's endpoints to other maps, some to chains that are new."""
    fronts: list[Front] = [("client", WEB, 80), ("node", WEB, 80), ("out", "192.0.2.1", 30080)]
    chance = random.Random(3)
    with lab.inside("node"), NftKernel(MACHINE) as kernel:
        proxy = Proxy(NFTablesDriver(kernel, NODE), NODE)
        web = service("web", WEB, type="NodePort", ports=[types.ServicePort(80, node_port=30080)])
        proxy.tell(web, endpoints("web", EP11))
        assert not proxy.full()
        with Traffic(lab, fronts) as traffic:
            for _ in range(2000):
                proxy.tell(endpoints("web", *LOCAL[: chance.randint(1, 4)]))
                proxy.partial()
            traffic.wait()


def test_cleanup_removes_both_tables_and_nothing_else(lab: Lab, station: Station) -> None:
    lab.run("node", "nft", "-f", "-", given="add table ip theirs\nadd table inet kube-proxy")
    with station.running():
        assert tables(lab).count("kube-proxy") == 3
    for _ in range(2):
        lab.run("node", *station.command("--cleanup"))
        assert tables(lab).split("\n")[:-1] == ["table ip theirs", "table inet kube-proxy"]


def test_folder_is_all_it_needs(lab: Lab, tmp_path: Path) -> None:
    """No nft program is run: it works with nothing in PATH."""
    station = Station(lab, tmp_path, mode="nftables")
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    with station.running(path=tmp_path):
        assert ask(lab, "client", WEB) == EP11
        Folder(station.folder.path).put(endpoints("web", EP12))
        until(lambda: answers(lab, "client", WEB, EP12))
