"""Calls of the HCN API in kernelspace mode, over an HNS in memory.

The reference's calls are not measured but counted by its rule: each sync enumerates endpoints and load
balancers, and opens, queries and closes every one of them. A changed load balancer is looked for, deleted and
created again. An endpoint is created in five calls (its network is opened and closed), a load balancer in three.
"""

from collections import Counter

from bench import rig
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import HnsProxy, WindowsNode

SERVICES, ENDPOINTS = 1000, 5
_PERIOD_SECONDS = 30
_MINUTE = 60


def main(rounds: int) -> None:
    del rounds  # the counts are always the same
    node = WindowsNode(local=())
    proxy = node.proxy()
    for i in range(SERVICES):
        proxy.tell(service(f"web-{i}", f"10.96.{i >> 8}.{i & 255}"), endpoints(f"web-{i}", *_addresses(i)))
    remote = SERVICES * ENDPOINTS
    objects = remote + SERVICES
    rig.row(f"calls of HNS, {SERVICES} Services x {ENDPOINTS}", "ours", "the reference", "ratio")
    _show("start on an empty HNS", _calls(node, proxy.full), 2 + 5 * remote + 3 * SERVICES)
    proxy.tell(endpoints("web-0", *_addresses(0)[1:], "10.245.0.1"))
    _show("one endpoint replaced", _calls(node, proxy.partial), 2 + 3 * objects + 5 + 3 + 2 * (1 + 3 + 1))
    _show("nothing changed for a minute", _calls(node, lambda: _minute(node, proxy)), 2 * (2 + 3 * objects))
    again = proxy.restarted()
    # It deletes all load balancers and creates them again.
    _show("start on an HNS that has all", _calls(node, again.full), 2 + 3 * objects + (5 + 3) * SERVICES)


def _addresses(i: int) -> list[str]:
    return [f"10.{100 + j}.{i >> 8}.{i & 255}" for j in range(ENDPOINTS)]


def _minute(node: WindowsNode, proxy: HnsProxy) -> None:
    for _ in range(_MINUTE // _PERIOD_SECONDS):
        node.clock.time += _PERIOD_SECONDS
        assert proxy.intact()


def _calls(node: WindowsNode, work: object) -> Counter[str]:
    assert callable(work)
    node.hns.calls.clear()
    work()
    return Counter(call.function for call in node.hns.calls)


def _show(what: str, calls: Counter[str], reference: int) -> None:
    ours = calls.total()
    rig.row(f"  {what}", str(ours), str(reference), f"1/{reference / ours:.0f}" if ours else "-")
    rig.row("    " + ", ".join(f"{count} {name}" for name, count in calls.most_common(6)))
