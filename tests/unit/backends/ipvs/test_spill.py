"""Near endpoints get all connections until each has its limit open: by a scheduler that does what the kernel's does."""

from collections import Counter

from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import pack
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Real, Virtual
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.ipvs.rig import HERE, Rig

WEB = Virtual(ipvs.TCP, pack("10.96.0.1"), 80)
PODS = [f"10.244.1.{i}" for i in range(11, 15)]
NEAR, FAR = [[Real(pack(pod), 8080) for pod in pods] for pods in (PODS[:2], PODS[2:])]


def running(bound: int, weights: str | None = None) -> Rig:
    """Two near endpoints and two others."""
    rig = Rig(HERE)
    tell(rig, bound, weights)
    assert not rig.full()
    return rig


def tell(rig: Rig, bound: int, weights: str | None = None) -> None:
    given = types.Annotations(prefer="node", spill_over=str(bound), weights=weights)
    web = service("web", "10.96.0.1")
    rig.tell(
        replace(web, metadata=replace(web.metadata, annotations=given)),
        endpoints("web", *PODS, local=PODS[:2]),
    )


def connect(rig: Rig, number: int) -> Counter[Real]:
    """New connections: what ip_vs_sed chooses, and which real servers ip_vs_bind_dest passes over."""
    settings, reals = rig.kernel.virtuals[WEB]
    assert settings.scheduler == "sed"
    found: Counter[Real] = Counter()
    for _ in range(number):
        free = [
            real
            for real, load in reals.items()
            if not (limit := rig.kernel.limits[WEB, real]) or load.active + load.inactive < limit
        ]
        real = min(free, key=lambda real: (reals[real].active + 1) / reals[real].weight)
        reals[real] = reals[real]._replace(active=reals[real].active + 1)
        found[real] += 1
    return found


def close(rig: Rig, real: Real, number: int) -> None:
    """Connections end; the kernel remembers them for a while."""
    reals = rig.kernel.virtuals[WEB][1]
    load = reals[real]
    reals[real] = Load(load.weight, load.active - number, load.inactive + number)


def test_near_ones_first_then_the_others() -> None:
    rig = running(10)
    assert connect(rig, 20) == dict.fromkeys(NEAR, 10)
    assert connect(rig, 6) == dict.fromkeys(FAR, 3)


def test_connections_that_have_ended_make_room() -> None:
    rig = running(10)
    connect(rig, 24)
    close(rig, NEAR[0], 4)
    rig.driver.steer()
    assert connect(rig, 6) == {NEAR[0]: 4, FAR[0]: 1, FAR[1]: 1}
    rig.kernel.virtuals[WEB][1][NEAR[0]] = Load(rig.kernel.virtuals[WEB][1][NEAR[0]].weight, 10, 0)
    rig.driver.steer()  # those that have ended are forgotten now
    assert connect(rig, 2) == {FAR[0]: 1, FAR[1]: 1}
    rig.done()
    rig.driver.steer()
    assert rig.done() == []


def test_another_limit_is_set_in_place() -> None:
    rig = running(10)
    connect(rig, 20)
    tell(rig, 12)
    rig.partial()
    assert connect(rig, 6) == {NEAR[0]: 2, NEAR[1]: 2, FAR[0]: 1, FAR[1]: 1}
    assert rig.intact()


def test_weights_hold_among_the_near_ones_and_among_the_others() -> None:
    rig = running(1000, f"address:{PODS[0]}=3 address:{PODS[2]}=3")
    assert connect(rig, 400) == {NEAR[0]: 300, NEAR[1]: 100}


def test_after_a_start_limits_are_known_with_the_first_look() -> None:
    rig = running(10)
    connect(rig, 20)
    close(rig, NEAR[0], 3)
    other = rig.restarted()
    assert not other.full()
    assert other.done() == []
    other.driver.steer()
    assert connect(other, 4) == {NEAR[0]: 3, FAR[0]: 1}
