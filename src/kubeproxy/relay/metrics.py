"""The metrics of a relay."""

from collections.abc import Iterator, Mapping

from kubeproxy.figures import Figure, Kind
from kubeproxy.relay.values import Counts


def figures(
    done: Counts, now: Counts, listeners: int, lost: int, labels: Mapping[str, str]
) -> Iterator[Figure]:
    """The metrics.

    Args:
        done: the sums over all processes.
        now: what the current process has done, and its connections.
        listeners: the number of addresses and ports that it serves.
        lost: the number of processes that ended unexpectedly.
        labels: the labels of all metrics.
    """

    def figure(name: str, kind: Kind, text: str, value: float, **more: str) -> Figure:
        return Figure(f"kubeproxy_relay_{name}", kind, text, value, {**labels, **more})

    text = "Clients that were connected to an endpoint."
    yield figure("connections_total", "counter", text, done.connections, protocol="TCP")
    yield figure("connections_total", "counter", text, done.flows, protocol="UDP")
    text = "Clients that are connected to an endpoint."
    yield figure("connections", "gauge", text, now.open_connections, protocol="TCP")
    yield figure("connections", "gauge", text, now.open_flows, protocol="UDP")
    text = "Clients that were refused because they are not served or no endpoint answered."
    yield figure("refused_clients_total", "counter", text, done.refused)
    text = "Failed attempts to reach an endpoint."
    yield figure("endpoint_failures_total", "counter", text, done.failures)
    text = "Connections to removed endpoints that were reset, because an annotation asks for it."
    yield figure("ended_connections_total", "counter", text, done.ended)
    text = "Addresses and ports that the relay serves."
    yield figure("listeners", "gauge", text, listeners)
    text = "Relay processes that ended unexpectedly, with their connections."
    yield figure("lost_processes_total", "counter", text, lost)
