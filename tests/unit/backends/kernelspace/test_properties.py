"""Whatever happened before, HNS ends as after a fresh start, and nothing of another program is touched."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.backends.base import SyncError
from kubeproxy.backends.kernelspace.mode import MODE
from kubeproxy.model.plan import FORWARD, fronts_of
from kubeproxy.model.verdict import Book, Packet
from kubeproxy.protocols import NUMBERS
from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import WS2019, WS2022, WS2025, Profile
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, PortMapping
from tests import strategies
from tests.fakes.hns import HnsProxy, WindowsNode

some = settings(max_examples=40)
LOCAL = strategies.ENDPOINTS["IPv4"][:3]
NODE_ADDRESS = "192.0.2.1"
_histories = st.one_of(strategies.histories(5), strategies.contests(5))
_profiles = st.sampled_from([WS2019, WS2022, WS2025])
_kinds = st.sampled_from(["L2Bridge", "Overlay"])
_codes = st.sampled_from([errors.PORT_ALREADY_EXISTS, errors.RPC_UNAVAILABLE, errors.E_NOTIMPL])


class World:
    """A node on which another program has objects, too."""

    def __init__(self, profile: Profile, kind: str, **settings: Any) -> None:
        # What the profiles delay or leave until later has tests of its own; here states are compared.
        quiet = replace(profile, failing_delete=0, leaked_ports=0)
        self.node = WindowsNode(quiet, kind, local=LOCAL, dsr=False, **settings)
        other = self.node.hns.add_network("other")
        self.foreign = self.node.hns.add_endpoint(HcnEndpoint(other, ("172.16.0.1",)))
        self.node.hns.add_load_balancer(
            HcnLoadBalancer((self.foreign,), ("172.16.9.9",), (PortMapping(6, 80, 80),))
        )
        self.node.hns.add_load_balancer({"HostComputeEndpoints": [self.foreign], "PortMappings": []})
        self.others = self._foreign()
        self.proxy = self._proxy()

    def _proxy(self) -> HnsProxy:
        config = replace(self.node.config(), name=strategies.NODE)
        return HnsProxy(self.node, config)

    def _foreign(self) -> dict[str, HcnLoadBalancer]:
        return {
            ident: each
            for ident, each in self.node.hns.load_balancers().items()
            if self.foreign in each.endpoints
        }

    def check(self) -> None:
        """What holds at any moment."""
        assert self._foreign() == self.others
        assert self.foreign in self.node.hns.endpoints()
        seen = set()
        for ident, each in self.node.hns.load_balancers().items():
            if ident in self.others:
                continue
            (mapping,) = each.mappings
            key = (each.vips, mapping.protocol, mapping.external_port, each.flags & 2)
            assert key not in seen, "two load balancers with one key"
            seen.add(key)
            assert set(each.endpoints) <= self.node.hns.endpoints().keys()
        assert self.node.hns.open_handles <= 1  # the registration of notifications

    def settled(self) -> tuple[list[str], list[str]]:
        """The state once nothing fails any more."""
        self.node.hns.heal()
        for _ in range(3):
            self.proxy.full()
        return self.node.state()

    def fresh(self) -> tuple[list[str], list[str]]:
        """The state of another node after a start with the same objects."""
        other = World(self.node.hns.profile, self.node.kind)
        other.proxy.state = self.proxy.state
        other.proxy.full()
        return other.node.state()


@some
@given(_histories, _profiles, _kinds, st.booleans())
def test_the_end_is_that_of_a_fresh_start(
    history: list[list[strategies.Event]], profile: Profile, kind: str, restarting: bool
) -> None:
    world = World(profile, kind)
    assert not world.proxy.full()
    for batch in history:
        for event in batch:
            world.proxy.hear(event)
        if restarting:
            world.proxy = world.proxy.restarted()
            assert not world.proxy.full()
        else:
            assert not world.proxy.sync()
        world.check()
        assert world.node.state() == world.fresh()
    world.node.calls()
    assert not world.proxy.full()
    assert world.node.calls() == [], "a second full sync changes nothing"
    world.proxy = world.proxy.restarted()
    assert not world.proxy.full()
    assert world.node.calls() == [], "neither does that of the next process"


@some
@given(
    _histories,
    _profiles,
    _kinds,
    st.lists(st.tuples(st.sampled_from(["HcnCreate*", "HcnModify*", "HcnDelete*", "HcnQuery*", "HcnEnum*"]),
                       _codes, st.integers(1, 3), st.booleans()), max_size=6),
)  # fmt: skip
def test_after_failures_of_any_call_it_converges(
    history: list[list[strategies.Event]],
    profile: Profile,
    kind: str,
    failures: list[tuple[str, int, int, bool]],
) -> None:
    world = World(profile, kind)
    loaded = False
    for batch in history:
        for event in batch:
            world.proxy.hear(event)
        if failures:
            pattern, code, times, done = failures.pop()
            world.node.hns.fail(pattern, code, times=times, done=done)
        try:
            (world.proxy.sync if loaded else world.proxy.full)()
            loaded = True
        except SyncError:  # HNS is away: a full sync follows
            loaded = False
        assert world._foreign() == world.others
    assert world.settled() == world.fresh()
    world.check()


@some
@given(_histories, _profiles, st.data())
def test_foreign_changes_are_restored(
    history: list[list[strategies.Event]], profile: Profile, data: st.DataObject
) -> None:
    world = World(profile, "L2Bridge")
    for event in (event for batch in history for event in batch):
        world.proxy.hear(event)
    world.proxy.full()
    hns = world.node.hns
    ours = sorted(hns.load_balancers().keys() - world.others.keys())
    remote = sorted(ident for ident, each in hns.endpoints().items() if each.remote)
    gone = data.draw(st.lists(st.sampled_from(ours), unique=True)) if ours else []
    for ident in gone:
        hns.remove(Entity.LOAD_BALANCER, ident)
    lost = data.draw(st.lists(st.sampled_from(remote), unique=True)) if remote else []
    for ident in lost:
        hns.remove(Entity.ENDPOINT, ident)
    world.node.clock.time += 60
    if gone or lost:
        assert not world.proxy.intact()
    assert world.settled() == world.fresh()
    world.check()


@some
@given(_histories, _profiles, _kinds)
def test_nothing_stays_when_all_services_go(
    history: list[list[strategies.Event]], profile: Profile, kind: str
) -> None:
    world = World(profile, kind)
    for event in (event for batch in history for event in batch):
        world.proxy.hear(event)
    world.proxy.full()
    world.proxy.forget()
    assert not world.proxy.sync()
    balancers, endpoints = world.node.state()
    assert len(balancers) == len(world.others)
    assert not [each for each in endpoints if each.endswith(" remote")]
    world.check()


@some
@given(_histories, _profiles, _kinds)
def test_load_balancers_are_what_the_verdict_says(
    history: list[list[strategies.Event]], profile: Profile, kind: str
) -> None:
    """Of every front: the endpoints of its load balancer, or none where packets pass."""
    world = World(profile, kind)
    for event in (event for batch in history for event in batch):
        world.proxy.hear(event)
    world.proxy.full()
    plans = world.proxy.plans().values()
    assert MODE.manners is not None
    book = Book(plans, world.proxy.node, (NODE_ADDRESS,), manners=MODE.manners)
    endpoints = world.node.hns.endpoints()
    held = {
        (each.vips[0] if each.vips else "", mapping.protocol, mapping.external_port): {
            endpoints[ident].addresses[0] for ident in each.endpoints
        }
        for ident, each in world.node.hns.load_balancers().items()
        if ident not in world.others
        for mapping in each.mappings
    }
    on_node = {address for each in endpoints.values() if not each.remote for address in each.addresses}
    # The API server gives no port to both; a server for health checks that listens on it keeps it from HNS.
    checked = {("", "TCP", plan.health_check_port) for plan in plans}
    fronts = {front for plan in plans for front in fronts_of(plan)}
    for address, protocol, port in fronts - checked:
        if not address and (NODE_ADDRESS, protocol, port) in fronts:
            continue  # there, that front is the one
        packet = Packet("198.51.100.9", address or NODE_ADDRESS, port, protocol, "eth0")
        verdict = book.verdict(packet)
        # An endpoint on this node that the network plug-in has not made is left out until it is there.
        wanted = {e.address for e in verdict.endpoints if not e.local or e.address in on_node}
        assert held.get((address, NUMBERS[protocol], port), set()) == wanted, (address, protocol, port)
        assert (verdict.action == FORWARD) == bool(verdict.endpoints)
