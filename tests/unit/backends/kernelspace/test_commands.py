"""`explain`, `verify` and `plan` in kernelspace mode: what they say is what HNS in memory holds."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.answers.asking import ask
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api import types
from kubeproxy.config.load import load
from kubeproxy.insight import planned
from kubeproxy.insight.kernel_diff import FamilyDiff, diff
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.windows.calls import Entity
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, L2, NETWORK, R1, WindowsNode
from tests.fakes.nodes import served

OBJECTS: tuple[types.Service | types.EndpointSlice, ...] = (
    service("web", "10.96.0.10", type="NodePort"),
    endpoints("web", L1, R1, local=(L1,), node="node1"),
    service("none", "10.96.0.11"),
)


@pytest.fixture
def windows() -> WindowsNode:
    """A node that has been synced."""
    made = WindowsNode()
    proxy = made.proxy()
    proxy.node = replace(proxy.node, name="node1")
    proxy.tell(*OBJECTS)
    assert not proxy.full()
    return made


@pytest.fixture(autouse=True)
def manifests(tmp_path: Path) -> None:
    """The same objects as files."""
    for number, each in enumerate(OBJECTS):
        put(tmp_path, f"{number}.json", each)


def put(folder: Path, name: str, given: types.Service | types.EndpointSlice) -> None:
    Path(folder, name).write_text(json.dumps(served(given)))


async def snapshot(windows: WindowsNode, folder: Path) -> Snapshot:
    """The cluster, as commands read it."""
    flags = {
        "hostname-override": "node1",
        "manifests": (str(folder),),
        "network-name": NETWORK,
        "enable-dsr": True,
        "bind-address": "192.0.2.1",
    }
    return await take(Origin(load(flags, "win32")), windows.machine)


async def differences(windows: WindowsNode, folder: Path) -> FamilyDiff:
    taken = await snapshot(windows, folder)
    return next(each for each in await diff(taken, windows.machine) if each.family == "IPv4")


async def test_explain_says_what_is_there(windows: WindowsNode, tmp_path: Path) -> None:
    taken = await snapshot(windows, tmp_path)
    found = await ask(taken, windows.machine, "10.244.1.5", "10.96.0.10:80", "")
    assert (found.verdict, found.service, found.kernel) == ("forward", "default/web", "agrees")
    assert [each.address for each in found.endpoints] == [L1, R1]
    nothing = await ask(taken, windows.machine, "10.244.1.5", "10.96.0.11:80", "")
    assert nothing.verdict == "pass"
    (ident,) = [i for i, each in windows.hns.load_balancers().items() if each.vips == ("10.96.0.10",)]
    windows.hns.remove(Entity.LOAD_BALANCER, ident)
    lacking = await ask(await snapshot(windows, tmp_path), windows.machine, "10.244.1.5", "10.96.0.10:80", "")
    assert lacking.kernel == "differs"


async def test_verify_names_what_is_missing(windows: WindowsNode, tmp_path: Path) -> None:
    before = windows.state()
    found = await differences(windows, tmp_path)
    assert (found.unread, list(found.pieces)) == ("", [])
    (ident,) = [i for i, each in windows.hns.load_balancers().items() if each.vips == ("10.96.0.10",)]
    windows.hns.remove(Entity.LOAD_BALANCER, ident)
    found = await differences(windows, tmp_path)
    assert {(piece.kind, piece.service) for piece in found.pieces} == {("missing", "default/web")}
    assert {piece.holder for piece in found.pieces} == {"load balancer 10.96.0.10:80/TCP"}
    assert windows.state() != before
    assert L2 not in repr(found)


async def test_plan_says_what_a_start_does(windows: WindowsNode, tmp_path: Path) -> None:
    before = windows.state()
    found = await planned.of_kernel(await snapshot(windows, tmp_path), windows.machine)
    assert (found.cannot, found.nothing, found.writes) == ("", True, 0)
    (ident,) = [i for i, each in windows.hns.load_balancers().items() if each.vips == ("10.96.0.10",)]
    windows.hns.remove(Entity.LOAD_BALANCER, ident)
    put(tmp_path, "more.json", service("more", "10.96.0.12"))
    put(tmp_path, "more-1.json", endpoints("more", R1, node="node2"))
    windows.calls()
    found = await planned.of_kernel(await snapshot(windows, tmp_path), windows.machine)
    assert {(each.service, each.change, each.gained) for each in found.changes} == {
        ("default/more", "new", ("10.96.0.12:80/TCP",)),
        ("default/web", "new", ("10.96.0.10:80/TCP",)),
    }
    assert (found.writes, found.untouched, found.removed) == (2, 1, [])
    assert windows.calls() == [], "nothing is written"
    assert windows.state()[1] == before[1]


async def test_plan_says_what_other_manifests_change(windows: WindowsNode, tmp_path: Path) -> None:
    old = await snapshot(windows, tmp_path)
    put(tmp_path, "1.json", endpoints("web", L1, local=(L1,), node="node1"))
    found = planned.of_manifests(old, await snapshot(windows, tmp_path), "before")
    assert [(each.service, each.change) for each in found.changes] == [("default/web", "changed")]
    assert {(piece.kind, piece.wanted) for piece in found.changes[0].pieces} == {("foreign", "")}
    assert all(R1 in piece.held for piece in found.changes[0].pieces)
