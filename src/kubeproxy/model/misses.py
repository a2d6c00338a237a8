"""What is near a destination that is no front: Services with its address or its port, and endpoints."""

from collections.abc import Collection, Iterator

from kubeproxy.model.state import State
from kubeproxy.model.verdict import Packet


def misses(state: State, local_addresses: Collection[str], packet: Packet) -> Iterator[str]:
    """Fronts that differ from a destination only in port or protocol, and endpoints that have its address."""
    own = packet.destination in local_addresses
    for key, row in state.services.items():
        fronts = {
            **dict.fromkeys(row.load_balancer_ips, "load balancer IP"),
            **dict.fromkeys(row.external_ips, "external IP"),
            **dict.fromkeys(row.cluster_ips, "ClusterIP"),
        }
        kind = fronts.get(packet.destination)
        name = "/".join(key)
        if kind:
            ports = ", ".join(
                f"{port.port} {port.protocol}{f' ({port.name})' if port.name else ''}" for port in row.ports
            )
            yield f"Service {name} has this {kind}, with port {ports}"
        for port in row.ports:
            if own and port.node_port == packet.port and port.protocol == packet.protocol:
                yield f"node port {port.node_port} of Service {name} is not served at this address"
            elif own and port.node_port == packet.port:
                yield f"Service {name} has node port {port.node_port} {port.protocol}"
    for key in state.sliced:
        for slice_name, piece in state.named_slices(key):
            if any(endpoint.address == packet.destination for endpoint in piece.endpoints):
                yield f"it is an endpoint of Service {'/'.join(key)} (EndpointSlice {slice_name})"
