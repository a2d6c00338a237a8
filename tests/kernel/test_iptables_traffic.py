"""Nobody notices: connections, new and old, while the proxy takes over, is handed back, starts again, and Services change."""

import random
import re
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import Folder, Proxy, endpoints, service
from tests.kernel.daemons import NODE, PATIENCE, Station, answers, until
from tests.kernel.spaces import VARIANTS, Real, use_variant
from tests.kernel.traffic import TALK_PORT, Front, Talk, Traffic, answered, asking, talkers, talking
from tests.lab import cases, netns, rules
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import EP11, EP12, EP13, LOCAL, NODE_NAME, REMOTE, REMOTE2, Lab

both = pytest.mark.parametrize("variant", VARIANTS)
WEB, OLD = "10.96.0.10", "10.96.0.11"


def given_back(recorded: str, family: str) -> str:
    """The recorded rules as the reference sends them: whole chains of its own, and not those of the kernel."""
    text = ""
    for section in re.split(r"^# ", recorded, flags=re.MULTILINE):
        title, _, body = section.partition("\n")
        if title in {f"{family}-save nat", f"{family}-save filter"}:
            lines = [line for line in body.splitlines() if re.match(r"(:|-A )KUBE-", line)]
            lines = [f"{line} [0:0]" if line.startswith(":") else line for line in lines]
            text += "\n".join([f"*{title.split(' ')[1]}", *lines, "COMMIT", ""])
    return text


@both
@pytest.mark.parametrize("name", ["everything", "dual-stack", "loadbalancer-source-ranges"])
def test_taking_over_from_the_reference_and_handing_back(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variant: Variant
) -> None:
    recorded = cases.rules("iptables", name)
    suffix = "nft" if variant == "nf_tables" else "legacy"
    rules.load_iptables(lab, recorded, suffix)
    talk_service = service("talk", OLD, ports=[types.ServicePort(81)])
    talk_slice = endpoints("talk", EP11, port=TALK_PORT, local=LOCAL, node=NODE_NAME)
    with lab.inside("node"):
        reference = Proxy(IPTablesDriver(Real(IPV4, variant), counters=True, drop_invalid=True), NODE)
        reference.tell(talk_service, talk_slice)
        reference.partial()
    recorded = rules.read_iptables(lab, suffix)
    if cases.localhost_node_ports(name):
        netns.write_sysctls(lab.name("node"), {"net/ipv4/conf/all/route_localnet": "1"})
    config, manifests = cases.write(name, "iptables", tmp_path)
    Folder(manifests).put(talk_service, talk_slice)

    def held() -> str:
        """The kernel's own numbers of the rules; legacy tables are replaced as a whole."""
        text = lab.run("node", "nft", "-a", "list", "ruleset") if variant == "nf_tables" else ""
        return re.sub(r"packets \d+ bytes \d+", "", text)

    before = held()
    with talkers(lab, "ep11"), Traffic(lab, answered("iptables", name)) as traffic:
        talk = Talk(lab, [("client", OLD, 81), ("node", OLD, 81), ("rpod", OLD, 81)])
        talk.say()
        with monkeypatch.context() as path:
            use_variant(path, tmp_path, variant)
            daemon = Daemon(lab, kube_proxy(config, manifests), timeout=PATIENCE)
            daemon.__enter__()
        try:
            traffic.wait()
            talk.say()
            assert rules.read_iptables(lab, suffix) == recorded
            assert held() == before, "what was right has not been touched"
            daemon.stop()
            for family, program in rules.programs(suffix).items():
                arguments = [f"{program}-restore", "-w", "5", "--noflush", "--counters"]
                lab.run("node", *arguments, given=given_back(recorded, family))
            traffic.wait()
            talk.say()
            assert rules.read_iptables(lab, suffix) == recorded
        finally:
            talk.close()
            daemon.__exit__(None, None, None)


@both
def test_taking_over_what_is_out_of_date(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    """Since the reference stopped a Service lost its load balancer, its node ports and most endpoints; another one came."""
    suffix = "nft" if variant == "nf_tables" else "legacy"
    rules.load_iptables(lab, cases.rules("iptables", "everything"), suffix)
    station = Station(lab, tmp_path, variant)
    station.folder.put(
        service("all", "10.96.14.1", ports=[types.ServicePort(80, "http")]),
        endpoints("all", EP12, port_name="http"),
        service("web", WEB),
        endpoints("web", EP11),
    )
    clients: list[Front] = [("client", "10.96.14.1", 80), ("node", "10.96.14.1", 80)]
    with Traffic(lab, clients) as traffic, station.running():
        traffic.wait()
        owned = sorted(c.rpartition("-")[0] for c in station.rules()["nat"] if names.is_owned(c))
        assert owned == ["KUBE-SEP", "KUBE-SEP", "KUBE-SVC", "KUBE-SVC"]
        assert station.rules()["filter"]["KUBE-PROXY-FIREWALL"] == []
        assert station.rules()["nat"]["KUBE-NODEPORTS"] == []
        until(lambda: answers(lab, "client", WEB, EP11))


@both
def test_while_a_service_and_its_neighbours_change(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    """EP11 always serves; what else serves changes all the time, but is alive as long as it may be asked."""
    station = Station(lab, tmp_path, variant)
    ports = [types.ServicePort(80, "ask", node_port=30080), types.ServicePort(81, "talk")]
    station.folder.put(service("web", WEB, type="NodePort", ports=ports), asking(EP11), talking(EP11))
    clients: list[Front] = [
        ("client", WEB, 80),
        ("node", WEB, 80),
        ("out", "192.0.2.1", 30080),
        ("ep11", WEB, 80),
    ]
    chance = random.Random(7)
    with talkers(lab, "ep11"), station.running() as daemon:
        talk = Talk(lab, [("client", WEB, 81), ("node", WEB, 81)])
        with Traffic(lab, clients) as traffic:
            for i in range(20):
                others = chance.sample([EP12, EP13, REMOTE, REMOTE2], chance.randint(0, 4))
                station.folder.put(asking(EP11, *others))
                if i % 2:
                    station.folder.put(service("near", OLD), endpoints("near", chance.choice(LOCAL)))
                elif i:
                    station.folder.remove("Service", "near")
                wanted = {EP11, *others}
                until(lambda wanted=wanted: destinations(station) == wanted)  # type: ignore[misc]
                talk.say()
            traffic.wait()
        talk.close()
        assert "full sync" not in daemon.log()
    assert traffic.answers["client", WEB, 80].keys() >= {EP11, EP12, EP13, REMOTE}


def destinations(station: Station) -> set[str]:
    """Where connections to WEB, port "ask", go."""
    nat = station.rules()["nat"]
    (chain,) = [r.rpartition("-j ")[2] for r in nat[names.SERVICES] if "default/web:ask cluster IP" in r]
    reached = [r.rpartition("-j ")[2] for r in nat.get(chain, ()) if " -j KUBE-SEP-" in r]
    return {r.rpartition(" ")[2].rpartition(":")[0] for c in reached for r in nat[c] if "DNAT" in r}


@both
def test_while_it_starts_again_and_again(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    station = Station(lab, tmp_path, variant)
    ports = [types.ServicePort(80, "ask"), types.ServicePort(81, "talk")]
    station.folder.put(service("web", WEB, ports=ports), asking(EP11, EP12), talking(EP11))
    with talkers(lab, "ep11"):
        with station.running():
            talk = Talk(lab, [("client", WEB, 81)])
            talk.say()
        with Traffic(lab, [("client", WEB, 80), ("node", WEB, 80)]) as traffic:
            for i in range(3):
                station.folder.put(asking(EP11, EP12 if i % 2 else EP13))
                with station.running() as daemon:
                    if i == 1:
                        daemon.kill()
                    talk.say()
                    traffic.wait()
                talk.say()
        talk.close()


@both
def test_while_rules_are_mended(lab: Lab, tmp_path: Path, variant: Variant) -> None:
    """Of what is right nothing is touched, whatever else is wrong."""
    station = Station(lab, tmp_path, variant, iptables={"syncPeriod": "1s"})
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, "ask")]),
        asking(EP11),
        service("old", OLD),
        endpoints("old", EP12),
    )
    with station.running(), Traffic(lab, [("client", WEB, 80)]) as traffic:
        nat = station.rules()["nat"]
        (chain,) = (c for c, held in nat.items() if c.startswith("KUBE-SEP-") and EP12 in str(held))
        for _ in range(3):
            lab.run("node", station.tables.base, "-w", "-t", "nat", "-F", chain)
            until(lambda: station.rules()["nat"][chain])
            traffic.wait()
