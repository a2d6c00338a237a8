"""5,000 Services of 3 endpoints through the daemon: all are right, at first and after every kind of change."""

from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import names
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import NODE, Bare, Station, until
from tests.kernel.spaces import VARIANTS
from tests.unit.backends.iptables.rig import Rig, Rules, rules

SERVICES, FEWER = 5000, 4000


def objects(i: int, shift: int = 0) -> tuple[types.Service, types.EndpointSlice]:
    """The Service of a number, and its three endpoints, which may be others."""
    port = types.ServicePort(80, node_port=30000 + i // 50 if i % 50 == 0 else 0)
    return (
        service(f"s{i}", f"10.{100 + i // 62500}.{i // 250 % 250}.{i % 250 + 1}", ports=[port]),
        endpoints(
            f"s{i}", *(f"10.{1 + j}.{(i + shift) // 250 % 250}.{(i + shift) % 250 + 1}" for j in range(3))
        ),
    )


def held(station: Station) -> Rules:
    """What the node holds."""
    tables = FakeTables()
    tables.tables = station.rules()
    return rules(tables)


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_thousand_services(space: str, tmp_path: Path, variant: Variant) -> None:
    station = Station(Bare(space), tmp_path, variant)
    expected = Rig(node=NODE)

    def put(name: str, *told: types.Service | types.EndpointSlice) -> None:
        station.folder.write(name, told)
        expected.tell(*told)

    def is_right() -> bool:
        return held(station) == expected.fresh().rules()

    whole = [obj for i in range(SERVICES) for obj in objects(i)]
    put("most.json", *whole[2:])
    put("one.json", *whole[:2])
    with station.running():
        assert is_right()
        chains = [chain for chain in station.rules()["nat"] if names.is_owned(chain)]
        assert len(chains) == SERVICES * 4 + SERVICES // 50, "SVC and three SEP each; EXT for node ports"
        put("one.json", *objects(0, shift=7))
        until(is_right)
        put("most.json", *(obj for i in range(1, SERVICES) for obj in objects(i, shift=i % 2)))
        until(is_right)
    with station.running() as daemon:
        assert is_right()
        station.folder.write("most.json", whole[2 : 2 * FEWER])
        for i in range(FEWER, SERVICES):
            expected.gone("Service", f"s{i}")
            expected.gone("EndpointSlice", f"s{i}-1")
        expected.tell(*whole[2 : 2 * FEWER])
        until(is_right)
        assert "sync failed" not in daemon.log()
