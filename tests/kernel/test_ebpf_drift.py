"""Another program detaches programs of ebpf mode, removes pins or changes maps: it is noticed, logged and repaired."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.ebpf import held, layout
from kubeproxy.backends.ebpf.held import HeldFronts
from kubeproxy.backends.ebpf.install import Installation
from kubeproxy.backends.ebpf.programs.context import Options
from kubeproxy.linux.bpf import syscall
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from kubeproxy.linux.bpf.maps import HashMap, WordArray
from kubeproxy.linux.bpf.pins import PinFolder
from kubeproxy.machine.linux import LinuxMachine
from tests.kernel import bpffs
from tests.kernel.daemons import asked, until
from tests.kernel.test_ebpf import FRONTS, WEB, pinned, station
from tests.kernel.traffic import Traffic
from tests.lab.topology import EP11, EP12, Lab
from tests.machines import MACHINE

LINK_DETACH = 34  # enum bpf_cmd
DRIFT = "IPv4: another program changed the rules in the kernel; all rules are compared and restored"

Damage = Callable[[PinFolder], None]


@pytest.fixture
def places() -> Iterator[BpfPlaces]:
    with bpffs.places() as found:
        yield found


def table(folder: PinFolder, name: str) -> HashMap:
    pin = folder.get(name)
    assert pin is not None
    return HashMap(pin.release())


def words(folder: PinFolder, name: str) -> WordArray:
    pin = folder.get(name)
    assert pin is not None
    return WordArray(pin.release())


def detach(folder: PinFolder) -> None:
    link = folder.get("link_connect4")
    assert link is not None
    syscall.bpf(LINK_DETACH, struct.pack("=I", link.fd))


def unpin(*starts: str) -> Damage:
    def remove(folder: PinFolder) -> None:
        for name in folder.names():
            if name.startswith(starts):
                folder.remove(name)

    return remove


def delete_front(folder: PinFolder) -> None:
    table(folder, "fronts4").delete([layout.front(WEB, "TCP", 80, IPV4)])


def delete_hosts(folder: PinFolder) -> None:
    hosts = table(folder, "hosts4")
    hosts.delete([key for key, _ in hosts.items()])


def spoil_front(folder: PinFolder) -> None:
    table(folder, "fronts4").put([(layout.front(WEB, "TCP", 80, IPV4), bytes(8))])


def add_front(folder: PinFolder) -> None:
    fronts = table(folder, "fronts4")
    key, index = layout.front("10.96.7.7", "TCP", 80, IPV4), layout.index_of(next(fronts.items())[1])
    fronts.put([(key, layout.entry(key, index))])


def pass_all(folder: PinFolder) -> None:
    """The words say that rules are to decide."""
    found = words(folder, "words4").words
    for at, word in enumerate(found):
        base, count, _ = layout.parts(word)
        found[at] = layout.word(base, count, layout.PASS)


def spoil_slots(folder: PinFolder) -> None:
    """Endpoints that are nowhere: clients are misled until it is repaired."""
    found = words(folder, "slots4").words
    for at in range(len(found)):
        found[at] = 0


HARMLESS: dict[str, Damage] = {
    "a program is detached": detach,
    "the pins of links": unpin("link_"),
    "the pins of programs": unpin("prog_"),
    "the pins of maps": unpin("fronts", "words", "slots", "reverse", "peers"),
    "all pins": unpin(""),
    "a front is deleted": delete_front,
    "a front is changed": spoil_front,
    "a front is added": add_front,
    "addresses of the node": delete_hosts,
    "words": pass_all,
}


def state(lab: Lab, places: BpfPlaces) -> HeldFronts | None:
    """What the maps hold, and what is not attached; None if something is not pinned."""
    host = LinuxMachine(Path("/run/netns", lab.name("node"))).bpf(places)
    installation = Installation(host, IPV4, Options(host.cookie()))
    try:
        if not installation.adopt(writable=False):
            return None
        assert installation.maps is not None
        return held.read(installation.maps, installation.missing())
    finally:
        installation.close()


def test_what_another_program_does_is_repaired_and_loses_no_connection(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    """What the programs do not do meanwhile, the rules do."""
    node = station(lab, tmp_path / "a", places, config={"nftables": {"syncPeriod": "1s"}})
    folder = BpfHost(MACHINE, places).folder("v1")
    with node.running() as daemon, bpffs.inside(places), Traffic(lab, FRONTS) as traffic:
        right, names = state(lab, places), pinned(places)
        assert right is not None
        for what, damage in HARMLESS.items():
            before = daemon.log().count(DRIFT)
            damage(folder)
            until(lambda: (state(lab, places), pinned(places)) == (right, names), what)
            until(lambda before=before: daemon.log().count(DRIFT) > before, what)  # type: ignore[misc]
            traffic.wait()


def test_endpoints_that_another_program_overwrote(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    node = station(lab, tmp_path / "a", places, config={"nftables": {"syncPeriod": "1s"}})
    with node.running() as daemon, bpffs.inside(places):
        right = state(lab, places)
        spoil_slots(BpfHost(MACHINE, places).folder("v1"))
        until(lambda: state(lab, places) == right)
        assert set(asked(lab, "client", WEB)) == {EP11, EP12}
        until(lambda: DRIFT in daemon.log())


def test_pins_that_were_removed_while_no_daemon_ran(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """Without its pin a link ends with the daemon that had it; the rules serve, and the next daemon attaches."""
    node = station(lab, tmp_path / "a", places)
    with node.running():
        right, names = state(lab, places), pinned(places)
    with bpffs.inside(places), Traffic(lab, FRONTS) as traffic:
        unpin("link_connect4", "words4")(BpfHost(MACHINE, places).folder("v1"))
        traffic.wait()
        with node.running():
            assert (state(lab, places), pinned(places)) == (right, names)
            traffic.wait()
