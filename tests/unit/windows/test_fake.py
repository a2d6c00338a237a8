"""The HNS in memory has the rules of the real one, as far as they are known: each rule, and each difference of versions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from kubeproxy.windows import errors, values
from kubeproxy.windows.calls import Entity, HnsNotice, NoticeKind
from kubeproxy.windows.documents import endpoint_settings, load_balancer_settings, query
from kubeproxy.windows.errors import HcnError, HcnTrouble
from kubeproxy.windows.fake import FakeHns
from kubeproxy.windows.fake_forms import ReturnedForm
from kubeproxy.windows.fake_profiles import PROFILES, WS2019, WS2022, WS2025, WS2025_FIRST, Profile
from kubeproxy.windows.hcn import HostNetworking
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, HnsVersion, PortMapping

ABSENT = "00000000-0000-0000-0000-0000000000aa"
R1 = "10.244.2.21"
LOCAL = "10.244.1.11"
NODE2 = "192.0.2.2"


class World:
    """A network with a remote and a local endpoint."""

    def __init__(self, profile: Profile = WS2025, kind: str = "L2Bridge") -> None:
        self.hns = FakeHns(profile)
        self.network = self.hns.add_network("cbr0", kind, prefixes=["10.244.1.0/24", "fd00:1::/64"])
        self.hcn: HostNetworking = self.hns.hcn()
        self.provider = NODE2 if kind == "Overlay" else ""
        self.remote = self.hcn.create_endpoint(self.endpoint())
        self.local = self.hns.add_endpoint(HcnEndpoint(self.network, (LOCAL, "fd00:1::b")))

    def endpoint(self, address: str = R1, flags: int = 1, **fields: Any) -> HcnEndpoint:
        return msgspec.structs.replace(
            HcnEndpoint(self.network, (address,), flags=flags, provider=self.provider if flags else ""),
            **fields,
        )

    def balancer(self, **fields: Any) -> HcnLoadBalancer:
        balancer = HcnLoadBalancer((self.remote,), ("10.96.0.10",), (PortMapping(6, 8080, 80),))
        return msgspec.structs.replace(balancer, **fields)


def refused(call: Callable[[], object], code: int) -> HcnError:
    with pytest.raises(HcnError) as caught:
        call()
    assert hex(caught.value.code) == hex(code)
    return caught.value


# Documents


def settings(world: World, **fields: Any) -> str:
    document = msgspec.json.decode(load_balancer_settings(world.balancer()))
    return msgspec.json.encode(document | fields).decode()


@pytest.mark.parametrize(
    "fields",
    [
        {"FrontendVips": ["10.96.0.10"]},
        {"SchemaVersion": {"Major": 3, "Minor": 0}},
        {"PortMappings": [{"Protocol": 6, "InternalPort": 8080, "ExternalPort": 65536}]},
        {"PortMappings": [{"Protocol": "6", "InternalPort": 8080, "ExternalPort": 80}]},
        {"PortMappings": [{"Protocol": 6, "InternalPort": 8080, "ExternalPort": 80, "DistributionType": 3}]},
        {"Flags": -1},
    ],
)
def test_a_document_that_the_schema_does_not_allow(fields: dict[str, Any]) -> None:
    world = World()
    refused(lambda: world.hns.create_load_balancer("", settings(world, **fields)), errors.INVALID_JSON)


def test_a_document_without_schema_version_or_that_is_no_json() -> None:
    world = World()
    for text in ('{"HostComputeEndpoints":[]}', "{", ""):
        refused(partial(world.hns.create_load_balancer, "", text), errors.INVALID_JSON)


def test_bits_that_flags_do_not_have() -> None:
    world = World()
    refused(lambda: world.hcn.create_load_balancer(world.balancer(flags=4)), errors.INVALID_POLICY)
    mapping = (PortMapping(6, 8080, 80, flags=32),)
    refused(lambda: world.hcn.create_load_balancer(world.balancer(mappings=mapping)), errors.INVALID_POLICY)


def test_an_id_that_is_no_guid() -> None:
    world = World()
    refused(lambda: world.hns.open(Entity.ENDPOINT, "EP-1"), errors.GUID_CONVERSION_FAILURE)
    balancer = world.balancer(endpoints=("EP-1",))
    refused(lambda: world.hcn.create_load_balancer(balancer), errors.GUID_CONVERSION_FAILURE)


def test_queries_have_known_filters() -> None:
    hns = FakeHns()
    refused(lambda: hns.enumerate(Entity.LOAD_BALANCER, query({"Name": "x"})), errors.INVALID_JSON)
    refused(lambda: hns.enumerate(Entity.NETWORK, "{}"), errors.INVALID_JSON)
    assert hns.enumerate(Entity.ENDPOINT, query({"VirtualNetwork": ABSENT})) == "[]"


# Networks and endpoints


def test_a_network_made_again_has_another_id() -> None:
    hns = FakeHns()
    first = hns.add_network("cbr0")
    hns.remove_network(first)
    assert hns.hcn().network("cbr0") is None
    assert hns.add_network("cbr0") != first


@pytest.mark.parametrize("dangling", [True, False])
def test_load_balancers_of_a_removed_network_stay_or_not(dangling: bool) -> None:
    world = World(msgspec.structs.replace(WS2025, keeps_dangling=dangling))
    ident = world.hcn.create_load_balancer(world.balancer()).id
    world.hns.remove_network(world.network)
    assert not world.hns.endpoints()
    assert set(world.hns.load_balancers()) == ({ident} if dangling else set())
    refused(lambda: world.hcn.create_load_balancer(world.balancer()), errors.ENDPOINT_NOT_FOUND)


def test_an_endpoint_needs_its_network() -> None:
    world = World()
    endpoint = msgspec.structs.replace(world.endpoint(), network=ABSENT)
    assert (
        refused(lambda: world.hcn.create_endpoint(endpoint), errors.NETWORK_NOT_FOUND).trouble
        is HcnTrouble.NOT_FOUND
    )
    handle = world.hns.open(Entity.NETWORK, world.network)
    text = endpoint_settings(endpoint)
    refused(lambda: world.hns.create_endpoint(handle, "", text), errors.NETWORK_NOT_FOUND)


@pytest.mark.parametrize("addresses", [(), ("10.244.2.300",), ("10.244.2.22", "fd00:2::22")])
def test_an_endpoint_needs_one_address(addresses: tuple[str, ...]) -> None:
    world = World()
    endpoint = msgspec.structs.replace(world.endpoint(), addresses=addresses)
    refused(lambda: world.hcn.create_endpoint(endpoint), errors.INVALID_IP)


def test_a_local_endpoint_is_in_a_subnet_of_its_network() -> None:
    world = World()
    refused(lambda: world.hcn.create_endpoint(world.endpoint("192.0.2.9", flags=0)), errors.SUBNET_NOT_FOUND)
    assert world.hcn.create_endpoint(world.endpoint("10.244.1.250", flags=0))
    assert world.hcn.create_endpoint(world.endpoint("192.0.2.9"))


def test_provider_addresses_are_for_overlay_networks() -> None:
    bridge, overlay = World(), World(kind="Overlay")
    endpoint = bridge.endpoint(provider=NODE2)
    refused(lambda: bridge.hcn.create_endpoint(endpoint), errors.INVALID_POLICY_TYPE)
    endpoint = overlay.endpoint("10.244.2.22", provider="")
    refused(lambda: overlay.hcn.create_endpoint(endpoint), errors.INVALID_REMOTE_ENDPOINT_OPERATION)
    endpoint = overlay.endpoint("10.244.2.22", provider="node")
    refused(lambda: overlay.hcn.create_endpoint(endpoint), errors.INVALID_IP)
    assert overlay.hcn.endpoint(overlay.remote) == overlay.endpoint(id=overlay.remote)


@pytest.mark.parametrize("twins", [True, False])
def test_a_local_endpoint_beside_a_remote_one_with_its_address(twins: bool) -> None:
    world = World(msgspec.structs.replace(WS2025, twins=twins))
    stale = world.hcn.create_endpoint(world.endpoint("10.244.1.12"))
    local = world.endpoint("10.244.1.12", flags=0)
    if twins:
        assert world.hcn.create_endpoint(local) != stale
    else:
        refused(lambda: world.hcn.create_endpoint(local), errors.ALREADY_EXISTS)


def test_mac_addresses_that_were_made_up_are_used_once() -> None:
    world = World(msgspec.structs.replace(WS2025, unique_macs=True))
    mac, host = "02-11-0a-f4-02-16", "00-15-5d-00-00-01"
    for number, text in enumerate((mac, host, host.upper())):
        assert world.hcn.create_endpoint(world.endpoint(f"10.244.2.3{number}", mac=text))
    endpoint = world.endpoint("10.244.2.40", mac=mac.upper().replace("-", ":"))
    refused(lambda: world.hcn.create_endpoint(endpoint), errors.ALREADY_EXISTS)


def test_what_is_not_there_is_not_found() -> None:
    hns = World().hns
    for entity in (Entity.ENDPOINT, Entity.LOAD_BALANCER):
        refused(partial(hns.delete, entity, ABSENT), errors.NOT_FOUND)
        refused(partial(hns.open, entity, ABSENT), errors.NOT_FOUND)


@pytest.mark.parametrize("refuses", [True, False])
def test_deleting_an_endpoint_that_is_in_use(refuses: bool) -> None:
    world = World(msgspec.structs.replace(WS2025, refuses_used=refuses))
    ident = world.hcn.create_load_balancer(world.balancer()).id
    if refuses:
        refused(lambda: world.hcn.delete_endpoint(world.remote), errors.ENTITY_HAS_REFERENCES)
        world.hcn.delete_load_balancer(ident)
    world.hcn.delete_endpoint(world.remote)
    assert world.remote not in world.hns.endpoints()


# Load balancers


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"endpoints": ()}, errors.INVALID_POLICY),
        ({"endpoints": (ABSENT,)}, errors.ENDPOINT_NOT_FOUND),
        ({"mappings": ()}, errors.INVALID_POLICY),
        ({"mappings": (PortMapping(6, 0, 80),)}, errors.INVALID_INTERNAL_PORT),
        ({"mappings": (PortMapping(6, 80, 0),)}, errors.INVALID_POLICY),
        ({"mappings": (PortMapping(1, 80, 80),)}, errors.INVALID_POLICY),
        ({"vips": ("web",)}, errors.INVALID_IP),
        ({"vips": ("fd00::1",)}, errors.INVALID_POLICY),
        ({"flags": values.IPV6}, errors.INVALID_POLICY),
        ({"source_vip": "fd00::1"}, errors.INVALID_POLICY),
        ({"flags": values.IPV6, "vips": ("fd00::1",)}, errors.INVALID_IP),
    ],
)
def test_a_load_balancer_that_is_not_accepted(fields: dict[str, Any], code: int) -> None:
    world = World()
    refused(lambda: world.hcn.create_load_balancer(world.balancer(**fields)), code)
    assert not world.hns.load_balancers()
    assert world.hns.open_handles == 0


def test_an_endpoint_is_named_once() -> None:
    world = World()
    balancer = world.balancer(endpoints=(world.remote, world.remote))
    refused(lambda: world.hcn.create_load_balancer(balancer), errors.INVALID_POLICY)


def test_address_port_protocol_and_family_are_used_once() -> None:
    world = World()
    world.hcn.create_load_balancer(world.balancer())
    other = world.balancer(endpoints=(world.local,))
    refused(lambda: world.hcn.create_load_balancer(other), errors.PORT_ALREADY_EXISTS)
    different: list[dict[str, Any]] = [
        {"vips": ("10.96.0.11",)},
        {"vips": ()},
        {"mappings": (PortMapping(17, 8080, 80),)},
        {"mappings": (PortMapping(6, 8080, 81),)},
        {"vips": (), "flags": values.IPV6, "endpoints": (world.local,)},
    ]
    for fields in different:
        world.hcn.create_load_balancer(world.balancer(**fields))
    assert len(world.hns.load_balancers()) == 6


def test_a_deleted_load_balancer_frees_its_address() -> None:
    world = World()
    first = world.hcn.create_load_balancer(world.balancer()).id
    world.hcn.delete_load_balancer(first)
    assert world.hcn.create_load_balancer(world.balancer()).id != first


@pytest.mark.parametrize(
    ("profile", "code"), [(WS2025, errors.ALREADY_EXISTS), (WS2022, errors.PORT_ALREADY_EXISTS)]
)
def test_an_identical_load_balancer(profile: Profile, code: int) -> None:
    world = World(profile)
    world.hcn.create_load_balancer(world.balancer())
    assert (
        refused(lambda: world.hcn.create_load_balancer(world.balancer()), code).trouble is HcnTrouble.EXISTS
    )


@pytest.mark.parametrize("ignored", [True, False])
def test_session_affinity_of_a_version_without_it(ignored: bool) -> None:
    world = World(Profile(version=HnsVersion(11, 10), ignores_affinity=ignored))
    balancer = world.balancer(mappings=(PortMapping(6, 8080, 80, values.SOURCE_IP),))
    if not ignored:
        refused(lambda: world.hcn.create_load_balancer(balancer), errors.INVALID_POLICY)
        return
    held = world.hcn.load_balancer(world.hcn.create_load_balancer(balancer).id)
    assert held is not None
    assert held.mappings[0].distribution == 0


def test_dsr_needs_a_version_that_has_it() -> None:
    world = World(Profile(version=HnsVersion(10, 1)))
    refused(
        lambda: world.hcn.create_load_balancer(world.balancer(flags=values.DSR)), errors.REQUEST_UNSUPPORTED
    )


def test_modify() -> None:
    world = World()
    ident = world.hcn.create_load_balancer(world.balancer()).id
    changed = world.balancer(id=ident, endpoints=tuple(sorted((world.local, world.remote))))
    world.hcn.modify_load_balancer(changed)
    assert world.hcn.load_balancer(ident) == changed
    for fields in ({"vips": ("10.96.0.11",)}, {"flags": values.DSR}, {"mappings": (PortMapping(6, 81, 80),)}):
        other = world.balancer(id=ident, **fields)
        refused(partial(world.hcn.modify_load_balancer, other), errors.INVALID_POLICY)
    refused(lambda: world.hcn.modify_load_balancer(world.balancer(id=ABSENT)), errors.NOT_FOUND)
    gone = world.balancer(id=ident, endpoints=(ABSENT,))
    refused(lambda: world.hcn.modify_load_balancer(gone), errors.ENDPOINT_NOT_FOUND)
    assert world.hcn.load_balancer(ident) == changed
    assert world.hns.open_handles == 0


def test_a_modify_that_can_change_all_but_the_key() -> None:
    world = World(msgspec.structs.replace(WS2025, modifies_all=True))
    ident = world.hcn.create_load_balancer(world.balancer()).id
    changed = world.balancer(id=ident, flags=values.DSR, mappings=(PortMapping(6, 81, 80),))
    world.hcn.modify_load_balancer(changed)
    assert world.hcn.load_balancer(ident) == changed


def test_a_modify_of_an_old_version_is_not_implemented() -> None:
    world = World(WS2022)
    balancer = world.balancer(id=world.hcn.create_load_balancer(world.balancer()).id)
    error = refused(lambda: world.hcn.modify_load_balancer(balancer), errors.E_NOTIMPL)
    assert error.trouble is HcnTrouble.UNSUPPORTED


@pytest.mark.parametrize("profile", [WS2025_FIRST, msgspec.structs.replace(WS2025, modify_ignored=True)])
def test_a_modify_that_reports_success_and_changes_nothing(profile: Profile) -> None:
    world = World(profile)
    ident = world.hcn.create_load_balancer(world.balancer()).id
    world.hcn.modify_load_balancer(world.balancer(id=ident, endpoints=(world.local,)))
    assert world.hcn.load_balancer(ident) == world.balancer(id=ident)


def test_deletions_that_fail_at_times() -> None:
    world = World(msgspec.structs.replace(WS2019, failing_delete=2, leaked_ports=0))
    first, second = (
        world.hcn.create_load_balancer(world.balancer(vips=(f"10.96.0.{n}",))).id for n in (1, 2)
    )
    world.hcn.delete_load_balancer(first)
    refused(lambda: world.hcn.delete_load_balancer(second), errors.E_FAIL)
    assert set(world.hns.load_balancers()) == {second}
    world.hcn.delete_load_balancer(second)


def test_a_port_that_is_reserved_for_a_time_after_a_deletion() -> None:
    world = World(msgspec.structs.replace(WS2019, failing_delete=0, leaked_ports=2))
    world.hcn.delete_load_balancer(world.hcn.create_load_balancer(world.balancer()).id)
    for _ in range(2):
        refused(lambda: world.hcn.create_load_balancer(world.balancer()), errors.PORT_ALREADY_EXISTS)
    assert world.hcn.create_load_balancer(world.balancer())


@pytest.mark.parametrize(("profile", "refuses"), [(WS2019, True), (WS2022, False)])
def test_a_port_of_a_program_that_listens(profile: Profile, refuses: bool) -> None:
    world = World(profile)
    world.hns.listen(6, 10256)
    balancer = world.balancer(mappings=(PortMapping(6, 10256, 10256),))
    if refuses:
        refused(lambda: world.hcn.create_load_balancer(balancer), errors.PORT_ALREADY_EXISTS)
    else:
        assert world.hcn.create_load_balancer(balancer)


@pytest.mark.parametrize("keeps", [True, False])
def test_ids_and_names_that_a_request_has_are_kept_or_not(keeps: bool) -> None:
    world = World(msgspec.structs.replace(WS2025, keeps_ids=keeps, keeps_names=keeps))
    document = settings(world, Name="ns/svc", Owner="kube-proxy")
    handle = world.hns.create_load_balancer(ABSENT.upper(), document)
    held = msgspec.json.decode(world.hns.query(Entity.LOAD_BALANCER, handle, query()))
    world.hns.close(Entity.LOAD_BALANCER, handle)
    assert (held["ID"] == ABSENT) is keeps
    assert (held.get("Name"), held.get("Owner")) == (("ns/svc", "kube-proxy") if keeps else (None, None))


# HNS as a service


def test_other_forms_have_the_same_values() -> None:
    world = World(msgspec.structs.replace(WS2025, forms=frozenset({"case"})), kind="Overlay")
    flags = values.IPV6 | values.DSR
    wanted = world.balancer(
        vips=("fd00:10:96::a",), flags=flags, endpoints=(world.local,), source_vip="fd00:1::fa"
    )
    ident = world.hcn.create_load_balancer(wanted).id
    assert ident in world.hcn.load_balancer_ids()
    assert world.hcn.load_balancer(ident) == msgspec.structs.replace(wanted, id=ident)
    assert world.hcn.endpoint_ids(world.network) == {world.remote, world.local}
    assert world.hcn.endpoint(world.remote) == world.endpoint(id=world.remote)
    assert "FD00:0010" in world.hns.query(
        Entity.LOAD_BALANCER, world.hns.open(Entity.LOAD_BALANCER, ident), query()
    )


@pytest.mark.parametrize("form", ["case", "names", "defaults", "order"])
@pytest.mark.parametrize("vips", [("10.96.0.10",), ()])
def test_a_load_balancer_in_another_form_is_the_same(form: ReturnedForm, vips: tuple[str, ...]) -> None:
    world = World(msgspec.structs.replace(WS2025, forms=frozenset({form})))
    mapping = PortMapping(132, 8080, 80, values.SOURCE_IP, 18)
    wanted = world.balancer(vips=vips, mappings=(mapping,), flags=values.DSR)
    made = world.hcn.create_load_balancer(wanted)
    assert made == world.hcn.load_balancer(made.id) == msgspec.structs.replace(wanted, id=made.id)


@pytest.mark.parametrize("form", ["bits", "lossy", "host address"])
def test_some_forms_are_not_what_was_sent(form: ReturnedForm) -> None:
    world = World(msgspec.structs.replace(WS2025, forms=frozenset({form})))
    mapping = PortMapping(6, 8080, 80, values.SOURCE_IP, 18)
    wanted = world.balancer(vips=(), mappings=(mapping,))
    made = world.hcn.create_load_balancer(wanted)
    assert made == world.hcn.load_balancer(made.id)
    assert made != msgspec.structs.replace(wanted, id=made.id)


def test_a_stopped_hns_knows_nothing() -> None:
    world = World()
    ident = world.hcn.create_load_balancer(world.balancer()).id
    world.hns.stop()
    calls: list[Callable[[], object]] = [
        world.hns.hcn,
        lambda: world.hcn.network("cbr0"),
        world.hcn.load_balancer_ids,
        lambda: world.hcn.load_balancer(ident),
        lambda: world.hcn.create_load_balancer(world.balancer(vips=())),
        lambda: world.hcn.modify_load_balancer(world.balancer(id=ident)),
        lambda: world.hcn.delete_load_balancer(ident),
        lambda: world.hcn.watch(print),
    ]
    for call in calls:
        assert refused(call, errors.RPC_UNAVAILABLE).trouble is HcnTrouble.AWAY
    world.hns.start()
    assert world.hcn.load_balancer_ids() == {ident}
    world.hns.stop()
    world.hns.start(empty=True)
    assert world.hcn.load_balancer_ids() == frozenset()
    assert world.hcn.endpoint_ids(world.network) == {world.local}


def test_handles_are_void_after_a_restart_and_must_be_closed() -> None:
    world = World()
    handle = world.hns.open(Entity.ENDPOINT, world.remote)
    world.hns.stop()
    world.hns.start()
    error = refused(lambda: world.hns.query(Entity.ENDPOINT, handle, query()), errors.E_HANDLE)
    assert error.trouble is HcnTrouble.AWAY
    assert world.hns.open_handles == 1
    world.hns.close(Entity.ENDPOINT, handle)
    assert world.hns.open_handles == 0


def test_a_handle_is_of_one_kind_and_closed_once() -> None:
    world = World()
    handle = world.hns.open(Entity.ENDPOINT, world.remote)
    refused(lambda: world.hns.query(Entity.LOAD_BALANCER, handle, query()), errors.E_HANDLE)
    with pytest.raises(AssertionError):
        world.hns.close(Entity.NETWORK, handle)
    with pytest.raises(KeyError):
        world.hns.close(Entity.ENDPOINT, handle)


def test_notifications() -> None:
    hns = FakeHns()
    hcn = hns.hcn()
    notices: list[HnsNotice] = []
    hcn.watch(notices.append)
    hcn.watch(notices.append)
    hns.remove_network(hns.add_network("cbr0"))
    assert [n.kind for n in notices] == [NoticeKind.NETWORK_CREATE, NoticeKind.NETWORK_DELETE]
    hns.stop()
    hns.start()
    assert notices.pop().kind == NoticeKind.SERVICE_DISCONNECT
    hns.add_network("cbr0")
    assert len(notices) == 2
    hcn.watch(notices.append)
    hcn.close()
    hcn.close()
    hns.add_network("other")
    assert len(notices) == 2
    assert hns.open_handles == 0


def test_any_call_can_fail() -> None:
    world = World()
    world.hns.fail("HcnCreate*", errors.PORT_ALREADY_EXISTS, naming="10.96.0.11")
    world.hcn.create_load_balancer(world.balancer())
    other = world.balancer(vips=("10.96.0.11",))
    refused(lambda: world.hcn.create_load_balancer(other), errors.PORT_ALREADY_EXISTS)
    assert [c.code for c in world.hns.changes()] == [0, 0, errors.PORT_ALREADY_EXISTS]
    world.hns.fail("HcnEnumerate*", errors.E_FAIL, times=-1)
    for _ in range(3):
        refused(world.hcn.load_balancer_ids, errors.E_FAIL)
    world.hns.heal()
    world.hns.interfere = lambda function: errors.RPC_FAILED if function == "HcnCreateLoadBalancer" else 0
    refused(lambda: world.hcn.create_load_balancer(other), errors.RPC_FAILED)
    assert len(world.hcn.load_balancer_ids()) == 1


def test_a_call_that_fails_may_have_done_its_work() -> None:
    world = World()
    world.hns.fail("HcnCreateLoadBalancer", errors.RPC_FAILED, done=True)
    refused(lambda: world.hcn.create_load_balancer(world.balancer()), errors.RPC_FAILED)
    assert len(world.hcn.load_balancer_ids()) == 1
    assert world.hns.open_handles == 0


@pytest.mark.parametrize("document", [{}, {"PortMappings": None}, {"HostComputeEndpoints": "x"}])
def test_load_balancers_of_other_programs_may_have_any_form(document: dict[str, Any]) -> None:
    world = World()
    world.hns.add_load_balancer({"PortMappings": []})
    ident = world.hns.add_load_balancer(document)
    world.hns.change(Entity.LOAD_BALANCER, ident, {"Policies": [], "Flags": None})
    held = world.hcn.load_balancer(ident)
    assert held is not None
    assert (held.endpoints, held.mappings) == ((), ())
    assert len(world.hcn.load_balancer_ids()) == 2


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
def test_every_profile_creates_and_deletes(profile: Profile) -> None:
    world = World(profile, "Overlay")
    balancer = world.balancer(endpoints=(world.local,), source_vip="10.244.1.250", flags=values.DSR)
    ident = world.hcn.create_load_balancer(balancer).id
    assert world.hns.load_balancers() == {ident: msgspec.structs.replace(balancer, id=ident)}
    world.hcn.delete_load_balancer(ident)
    world.hcn.delete_load_balancer(ident)
    world.hcn.delete_endpoint(world.remote)
    assert not world.hns.load_balancers()
    assert world.hns.open_handles == 0
