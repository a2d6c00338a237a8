"""Virtual servers and sets as `ipvsadm -Sn` and `ipset save` print them."""

from collections.abc import Iterator

from kubeproxy import protocols
from kubeproxy.api.addresses import join, unpack
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Real, Settings, Virtual

_FLAGS = {ipvs.TCP: "-t", ipvs.UDP: "-u", ipvs.SCTP: "--sctp-service"}


def virtual(at: Virtual) -> str:
    """A virtual server as the programs name it."""
    return f"{_FLAGS[at.protocol]} {join(unpack(at.address), at.port)}"


def settings(given: Settings) -> str:
    """How a virtual server chooses."""
    persistent = f" -p {given.timeout}" if given.flags & ipvs.PERSISTENT else ""
    port = f" -b {given.scheduler}-port" if given.flags & ipvs.SCHEDULER_2 else ""
    return f"-s {given.scheduler}{persistent}{port}"


def real(at: Real) -> str:
    """A real server as the programs name it."""
    return f"-r {join(unpack(at.address), at.port)}"


def server(at: Virtual, given: Settings, reals: dict[Real, int]) -> Iterator[str]:
    """A virtual server and its real servers with their weights."""
    yield f"-A {virtual(at)} {settings(given)}"
    for each, weight in reals.items():
        yield f"-a {virtual(at)} {real(each)} -m -w {weight}"


def element(given: Element) -> str:
    """An element of a set."""
    return ",".join(_parts(given))


def _parts(given: Element) -> Iterator[str]:
    if given.address:
        yield unpack(given.address)
    if given.protocol:
        yield f"{protocols.NAMES[given.protocol].lower()}:{given.port}"
    elif not given.address:
        yield str(given.port)
    if given.other:
        yield unpack(given.other) + (f"/{given.prefix}" if given.prefix else "")
