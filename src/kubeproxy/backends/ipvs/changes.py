"""What a partial sync sends: the difference between what virtual servers were and what they are to be."""

from collections.abc import Iterator

from kubeproxy.backends.ipvs.compile import Target
from kubeproxy.backends.ipvs.desired import Delta
from kubeproxy.backends.ipvs.drain import Draining
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange, Verb
from kubeproxy.backends.ipvs.load import whole
from kubeproxy.backends.ipvs.order import arranged, is_ordered
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Virtual


def coming(delta: Delta, kernel: IPVSKernel, draining: Draining) -> Iterator[ServerChange]:
    """What is to be added to the virtual servers."""
    for virtual, (before, after) in delta.virtuals.items():
        if after is None:
            continue
        if before is None:
            yield from whole(virtual, after)
            continue
        if is_ordered(after.settings):
            yield from _reordered(virtual, before, after, kernel, draining)
            continue
        yield from edits(virtual, before, after)
        old = set(before.reals)
        limits = after.limits()
        for real, weight in after.weighted().items():
            if real not in old:
                verb: Verb = "edit" if draining.forget(virtual, real) else "add"
                yield ServerChange(verb, virtual, real=real, weight=weight, limit=limits.get(real, 0))


def _reordered(
    virtual: Virtual, before: Target, after: Target, kernel: IPVSKernel, draining: Draining
) -> Iterator[ServerChange]:
    """What is to be changed of a virtual server whose real servers must be in order."""
    there = kernel.reals(virtual)
    if after.settings != before.settings:
        yield ServerChange("edit", virtual, after.settings)
    for real in after.reals:
        draining.forget(virtual, real)
    yield from arranged(virtual, there, after)
    if not is_ordered(before.settings):
        for real in draining.of(virtual):
            load = there.get(real, Load(0))
            yield from draining.retire(virtual, real, load, ordered=True, afresh=True)


def going(delta: Delta, kernel: IPVSKernel, draining: Draining) -> Iterator[ServerChange]:
    """What is to be deleted of the virtual servers."""
    for virtual, (before, after) in delta.virtuals.items():
        if after is None:
            draining.forget(virtual)
            yield ServerChange("delete", virtual)
        elif before is not None:
            new = set(after.reals)
            gone = [real for real in before.reals if real not in new]
            # Only connections of TCP are waited for.
            loads = kernel.reals(virtual) if gone and virtual.protocol == ipvs.TCP else {}
            ordered = is_ordered(after.settings)
            for real in gone:
                load = loads.get(real, Load(1))
                yield from draining.retire(virtual, real, load, ordered=ordered)


def edits(virtual: Virtual, before: Target, after: Target) -> Iterator[ServerChange]:
    """What is to be changed of a virtual server besides adding and deleting real servers."""
    if after.settings != before.settings:
        yield ServerChange("edit", virtual, after.settings)
    old, had, limits = before.weighted(), before.limits(), after.limits()
    for real, weight in after.weighted().items():
        limit = limits.get(real, 0)
        if real in old and (weight, limit) != (old[real], had.get(real, 0)):
            yield ServerChange("edit", virtual, real=real, weight=weight, limit=limit)
