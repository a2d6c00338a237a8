"""Whom the sets and rules of limited fronts let in, compared with the verdict."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, contains, pack, unpack
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.ipvs import names
from kubeproxy.model.plan import DROP, PortPlan, ServicePlan
from kubeproxy.model.verdict import Book, Packet
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Virtual
from tests import strategies
from tests.fakes.cluster import endpoints, service
from tests.fakes.manners import IPVS
from tests.unit.backends.ipvs.rig import HERE, Rig

LOCAL = ["127.0.0.1", "192.0.2.1", "10.244.1.1"]
PROTOCOLS: dict[int, Protocol] = {ipvs.TCP: "TCP", ipvs.UDP: "UDP", ipvs.SCTP: "SCTP"}
CLIENTS = st.sampled_from(["198.51.100.7", "10.1.2.3", "10.244.1.100", "192.0.2.9", "203.0.113.1"])


def lets_in(rig: Rig, front: Virtual, source: str) -> bool:
    """What the sets say of a packet that arrives."""
    at = Element(front.address, front.protocol, front.port)
    if at not in elements(rig, names.BALANCER_FIREWALL):
        return True
    own = at._replace(other=pack(source)) in elements(rig, names.BALANCER_SOURCE_IP)
    return own or any(
        e._replace(other=b"", prefix=0) == at and contains(f"{unpack(e.other)}/{e.prefix}", source)
        for e in elements(rig, names.BALANCER_SOURCE_CIDR)
    )


def elements(rig: Rig, name: str) -> set[Element]:
    return rig.kernel.elements(names.set_name(name, IPV4))


@given(st.lists(strategies.events(), min_size=1, max_size=12), CLIENTS, st.booleans())
def test_clients_are_let_in_as_the_verdict_says(
    history: list[strategies.Event], client: str, interface: bool
) -> None:
    rig = Rig(replace(HERE, node_port_addresses=("192.0.2.1", "10.244.1.1")))
    assert not rig.full()
    for event in history:
        rig.hear(event)
        assert not rig.sync()
    plans = [plan for key in rig.state.services if (plan := rig.state.plan(key, rig.node)) is not None]
    book = Book(plans, rig.node, LOCAL, manners=IPVS)
    drops = rig.tables.tables["filter"][names.FILTER_OUT]
    for front in rig.kernel.virtuals:
        address, protocol = unpack(front.address), PROTOCOLS[front.protocol]
        if interface:
            verdict = book.verdict(Packet(client, address, front.port, protocol, "eth0"))
            assert (verdict.action == DROP) != lets_in(rig, front, client)
            continue
        # A process of the node that uses the address it connects to.
        verdict = book.verdict(Packet(address, address, front.port, protocol))
        to = f"--vproto {front.protocol} --vaddr {address} --vport {front.port} "
        dropped = any(to in rule for rule in drops)
        assert (verdict.action == DROP) == (dropped and any(p.any for p in ports(plans, front, protocol)))


def ports(plans: list[ServicePlan], front: Virtual, protocol: Protocol) -> list[PortPlan]:
    """The ports a front is of."""
    at = unpack(front.address)
    found = []
    for port in (port for plan in plans for port in plan.ports if port.protocol == protocol):
        addresses = (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
        if (at in addresses and port.port == front.port) or (
            port.node_port == front.port and at in {"192.0.2.1", "10.244.1.1"}
        ):
            found.append(port)
    return found


def test_the_host_itself_is_dropped_by_a_rule_for_each_front() -> None:
    rig = Rig(replace(HERE, node_port_addresses=("192.0.2.1",)))
    web = service(
        "web", "10.96.0.1", type="NodePort", external_ips=("203.0.113.6",),
        ports=[types.ServicePort(80, node_port=30080)],
    )  # fmt: skip
    limits = types.Annotations(allowed_sources="198.51.100.0/24")
    rig.tell(
        replace(web, metadata=replace(web.metadata, annotations=limits)), endpoints("web", "10.244.1.11")
    )
    assert not rig.full()
    assert list(rig.tables.tables["filter"][names.FILTER_OUT]) == [
        f"-m addrtype --src-type LOCAL -m ipvs --vproto 6 --vaddr {address} --vport {port} -j DROP"
        for address, port in (("203.0.113.6", 80), ("192.0.2.1", 30080))
    ]
