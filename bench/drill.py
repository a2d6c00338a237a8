"""A node goes dark: its endpoint answers nothing, and the API server says for 40 seconds that all is well.

Two Services with the same three endpoints are used at the same rate by the same client, each connection with a
timeout of three seconds. One of the Services has `kube-proxy/silent-endpoints: skip`. After 40 seconds the
endpoint is removed from the EndpointSlices of both.
"""

import errno
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from bench import rig
from kubeproxy.api import types
from tests.fakes.cluster import Folder, endpoints, service
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import EP11, EP12, EP13, NODE_NAME, Lab

SKIP, USE = "10.96.0.10", "10.96.0.11"
DARK_SECONDS, AFTER_SECONDS, TIMEOUT = 40.0, 5.0, 3.0
EVERY = 0.025
"""Seconds between two connections to one Service."""


class Connection(NamedTuple):
    """A finished attempt: when it began, and after how many seconds it was open; None: it failed."""

    began: float
    seconds: float | None


def main(_: int) -> None:
    for mode in ("nftables", "iptables"):
        with Lab() as lab, tempfile.TemporaryDirectory() as temporary:
            found = _drill(lab, Path(temporary), mode)
        for address, title in ((USE, "as in Kubernetes"), (SKIP, "silent-endpoints: skip")):
            rig.row(f"{mode}, {title}", _told(found[address]))


def _drill(lab: Lab, path: Path, mode: str) -> dict[str, list[Connection]]:
    folder = Folder(path / "manifests")
    skip = service("skip", SKIP)
    annotations = types.Annotations(silent_endpoints="skip")
    folder.put(
        replace(skip, metadata=replace(skip.metadata, annotations=annotations)),
        service("use", USE),
        *(_slice(name, EP11, EP12, EP13) for name in ("skip", "use")),
        types.Node(
            types.ObjectMeta(name=NODE_NAME),
            status=types.NodeStatus((types.NodeAddress("InternalIP", "192.0.2.1"),)),
        ),
    )
    config = path / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        f"mode: {mode}\nclusterCIDR: 10.244.0.0/16\n"
    )
    with Daemon(lab, kube_proxy(config, folder.path), timeout=120):
        lab.run("ep11", "ip", "route", "replace", "blackhole", "default")
        started = time.monotonic()
        removed = False
        found: dict[str, list[Connection]] = {SKIP: [], USE: []}
        for now in _attempts(lab, started, found):
            if not removed and now - started > DARK_SECONDS:
                removed = True
                folder.put(*(_slice(name, EP12, EP13) for name in ("skip", "use")))
    return {
        address: [each._replace(began=each.began - started) for each in connections]
        for address, connections in found.items()
    }


def _slice(name: str, *addresses: str) -> types.EndpointSlice:
    return endpoints(name, *addresses, local=addresses, node=NODE_NAME)


def _attempts(lab: Lab, started: float, found: dict[str, list[Connection]]) -> Iterator[float]:
    """Connects at a steady rate and notes how it went; yields the time now and then."""
    poll = select.epoll()
    opening: dict[int, tuple[str, float, socket.socket]] = {}
    due = started
    with lab.inside("client"):
        while True:
            now = time.monotonic()
            yield now
            if now - started > DARK_SECONDS + AFTER_SECONDS and not opening:
                return
            if now >= due and now - started <= DARK_SECONDS + AFTER_SECONDS:
                due += EVERY
                for address in found:
                    sock = socket.socket()
                    sock.setblocking(False)
                    if sock.connect_ex((address, 80)) in {0, errno.EINPROGRESS}:
                        opening[sock.fileno()] = address, now, sock
                        poll.register(sock, select.EPOLLOUT)
            for descriptor, _ in poll.poll(max(0.001, min(due - time.monotonic(), 0.02))):
                address, began, sock = opening.pop(descriptor)
                failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[address].append(Connection(began, None if failed else time.monotonic() - began))
                poll.unregister(descriptor)
                sock.close()
            for descriptor, (address, began, sock) in list(opening.items()):
                if time.monotonic() - began > TIMEOUT:
                    found[address].append(Connection(began, None))
                    poll.unregister(descriptor)
                    sock.close()
                    del opening[descriptor]


def _told(connections: list[Connection]) -> str:
    failed = [each.began for each in connections if each.seconds is None]
    slow = [each.seconds for each in connections if each.seconds is not None and each.seconds > 0.5]
    late = sum(began > 2 for began in failed)
    return (
        f"{len(connections):,} connections, {len(failed):,} failed ({late:,} of them begun after the first 2 s),"
        f" {len(slow):,} took longer than 0.5 s; the last that failed began after"
        f" {max(failed, default=0.0):.1f} s"
    )
