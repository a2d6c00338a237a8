"""Virtual servers, sets and addresses as `ipvsadm -Sn`, `ipset save` and `ip` print them."""

from collections.abc import Iterator

from kubeproxy import protocols
from kubeproxy.api.addresses import Family, join, unpack
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.compile import ServerContext, compile_service
from kubeproxy.backends.ipvs.frame import OUT
from kubeproxy.backends.programs import FILTER
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Real, Settings, Virtual

_FLAGS = {ipvs.TCP: "-t", ipvs.UDP: "-u", ipvs.SCTP: "--sctp-service"}


def virtual(at: Virtual) -> str:
    """A virtual server as the programs name it."""
    return f"{_FLAGS[at.protocol]} {join(unpack(at.address), at.port)}"


def settings(given: Settings) -> str:
    """How a virtual server chooses a real server."""
    persistent = f" -p {given.timeout}" if given.flags & ipvs.PERSISTENT else ""
    flags = [
        f"{given.scheduler}-{name}"
        for name, flag in (("fallback", ipvs.SCHEDULER_1), ("port", ipvs.SCHEDULER_2))
        if given.flags & flag
    ]
    by = f" -b {','.join(flags)}" if flags else ""
    return f"-s {given.scheduler}{persistent}{by}"


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


def address(verb: str, packed: bytes) -> str:
    """An address of kube-ipvs0 that is added or deleted, as `ip` has it."""
    return f"ip address {verb} {unpack(packed)}/{8 * len(packed)} dev {names.INTERFACE}"


def service(plan: ServicePlan, dialect: ServerContext, family: Family) -> list[str]:
    """What a Service needs, as `ipvsadm -Sn`, `ipset save`, `ip` and `iptables-save` print it."""
    compiled = compile_service(plan, dialect)
    found: list[str] = []
    for at, target in compiled.virtuals.items():
        found += server(at, target.settings, target.weighted())
    for name, entry in compiled.entries:
        found.append(f"add {names.set_name(name, family)} {element(entry)}")
    found += [address("add", entry.address) for name, entry in compiled.entries if name == names.ADDRESSES]
    drops = [f"-A {OUT[1]} {rule}" for rule in compiled.drops]
    return found + ([f"*{FILTER}", *drops] if drops else [])


def _parts(given: Element) -> Iterator[str]:
    if given.address:
        yield unpack(given.address)
    if given.protocol:
        yield f"{protocols.NAMES[given.protocol].lower()}:{given.port}"
    elif not given.address:
        yield str(given.port)
    if given.other:
        yield unpack(given.other) + (f"/{given.prefix}" if given.prefix else "")
