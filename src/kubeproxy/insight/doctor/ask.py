"""Asks the kube-proxy that runs in this network namespace: /readyz and /metrics, over its own sockets."""

import http.client
import json
import socket
import time
from collections.abc import Iterable
from typing import Final

from kubeproxy.api.addresses import family_of
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.insight.doctor.facts import Part, RunningDaemon, Sample
from kubeproxy.linux.process import Process
from kubeproxy.machine.base import Machine

PATIENCE_SECONDS: Final = 5.0

_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def running(machine: Machine, config: KubeProxyConfiguration | None) -> RunningDaemon:
    """What the running kube-proxy says of itself.

    Args:
        machine: this host.
        config: its configuration, with the addresses of its servers; None if that is not known.
    """
    holder = machine.holder()
    if holder is None:
        reason = "no kube-proxy runs in this network namespace"
        return RunningDaemon(None, Part(reason=reason), Part(reason=reason), Part(reason=reason))
    try:
        process: Part[Process] = (
            Part(machine.process(holder.process))
            if holder.process
            else Part(reason="it runs in another PID namespace")
        )
    except OSError as e:
        process = Part(reason=e.strerror or str(e))
    reasons: Part[tuple[str, ...]] = Part(reason="the address of its server is not known")
    samples: Part[tuple[Sample, ...]] = Part(reason="the address of its server is not known")
    if config is not None:
        reasons = _reasons(machine, config.healthz_address)
        samples = _samples(machine, config.metrics_address)
    return RunningDaemon(holder, process, reasons, samples, time.time())


def _reasons(machine: Machine, address: tuple[str, int] | None) -> Part[tuple[str, ...]]:
    body = _get(machine, address, "/readyz", "healthzBindAddress")
    if body.value is None:
        return Part(reason=body.reason)
    try:
        return Part(tuple(str(reason) for reason in json.loads(body.value)["reasons"]))
    except (ValueError, KeyError, TypeError):
        return Part(reason="/readyz is not that of this program: Kubernetes' kube-proxy may run here")


def _samples(machine: Machine, address: tuple[str, int] | None) -> Part[tuple[Sample, ...]]:
    body = _get(machine, address, "/metrics", "metricsBindAddress")
    if body.value is None:
        return Part(reason=body.reason)
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families: Iterable[object] = text_string_to_metric_families(body.value.decode())
        return Part(
            tuple(
                Sample(sample.name, sample.labels, sample.value)
                for family in families
                for sample in family.samples  # type: ignore[attr-defined]
            )
        )
    except ValueError as e:
        return Part(reason=f"/metrics cannot be parsed: {e}")


def _get(machine: Machine, address: tuple[str, int] | None, path: str, field: str) -> Part[bytes]:
    """The body of a page, whatever its status."""
    if address is None:
        return Part(reason=f"{field} is empty")
    host, port = _ANY.get(address[0], address[0]), address[1]
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.sock = machine.socket(
            socket.AF_INET if family_of(host) == "IPv4" else socket.AF_INET6, socket.SOCK_STREAM
        )
        connection.sock.settimeout(PATIENCE_SECONDS)
        connection.sock.connect((host, port))
        connection.request("GET", path)
        return Part(connection.getresponse().read())
    except (OSError, http.client.HTTPException) as e:
        return Part(reason=f"no answer from {host} port {port}: {e}")
    finally:
        connection.close()
