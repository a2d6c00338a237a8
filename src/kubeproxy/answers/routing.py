"""Whether the routing of this host drops packets that it receives, after their destination was translated.

No rule drops such packets, so neither a trace nor a counter of a rule shows why they are gone: forwarding is
off, there is no route to the endpoint, or the reverse path filter requires another interface.

Source: Documentation/networking/ip-sysctl.rst (rp_filter, forwarding, force_forwarding).
"""

from collections.abc import Iterable, Iterator
from typing import Final

from kubeproxy.api.addresses import IPV4, Family, family_of
from kubeproxy.machine.base import Machine
from kubeproxy.model.explain import UNKNOWN_INTERFACE

MOST_ROUTES: Final = 16
"""The routes to so many endpoints are looked up."""

_FOLDERS: Final[dict[Family, str]] = {IPV4: "net/ipv4/conf", "IPv6": "net/ipv6/conf"}
_STRICT: Final = 1


def obstacle(machine: Machine, source: str, destinations: Iterable[str], interface: str) -> str:
    """Why routing drops packets; "" if it does not, or that cannot be read.

    Args:
        machine: this host.
        source: their source address.
        destinations: their destination addresses, as they are after the translation.
        interface: the name of the interface they are received on; "" if processes of this host send them.
    """
    try:
        return "; ".join(_obstacles(machine, source, list(destinations)[:MOST_ROUTES], interface))
    except OSError:
        return ""


def _obstacles(machine: Machine, source: str, destinations: list[str], interface: str) -> Iterator[str]:
    routes = {address: machine.route_to(address) for address in destinations}
    if missing := [address for address, route in routes.items() if route is None]:
        yield f"this host has no route to {', '.join(missing)}"
    if interface in {"", UNKNOWN_INTERFACE}:
        return
    if any(route is not None and not route.local for route in routes.values()):
        yield from _not_forwarded(machine, family_of(source), interface)
    if family_of(source) == IPV4:
        yield from _filtered(machine, source, interface)


def _not_forwarded(machine: Machine, family: Family, interface: str) -> Iterator[str]:
    """Whether forwarding is off where a packet arrives: of IPv4 its interface decides, of IPv6 `all`."""
    folder = _FOLDERS[family]
    if family == IPV4:
        names = [f"{folder}/{interface}/forwarding"]
    else:
        names = [f"{folder}/all/forwarding", f"{folder}/{interface}/force_forwarding"]
    if all(_number(machine, name) == 0 for name in names):
        yield f"forwarding is off: {names[0].replace('/', '.')} is 0"


def _filtered(machine: Machine, source: str, interface: str) -> Iterator[str]:
    """The reverse path filter: answers to the source must leave by the same interface, or by any."""
    folder = _FOLDERS[IPV4]
    level = max(_number(machine, f"{folder}/{name}/rp_filter") for name in ("all", interface))
    if not level:
        return
    route = machine.route_to(source)
    back = machine.interface_name(route.interface) if route is not None else ""
    if route is None:
        yield f"rp_filter of {interface} is {level}, and there is no route to {source}"
    elif level == _STRICT and back != interface:
        yield (
            f"rp_filter of {interface} is 1 (strict), and the route to {source} leaves by {back}: set it to 2 (loose), or"
            " correct the route"
        )


def _number(machine: Machine, name: str) -> int:
    """A setting that is a number; 0 if this kernel does not have it."""
    try:
        return int(machine.sysctl(name))
    except (FileNotFoundError, ValueError):
        return 0
