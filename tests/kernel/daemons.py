"""The daemon on a folder of manifests, and a word with the Services it serves."""

import contextlib
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.programs import Variant
from kubeproxy.model.node import LocalTraffic, NodeConfig
from tests.fakes.cluster import Folder
from tests.kernel.spaces import Real, use_variant
from tests.lab import netns
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.topology import NODE_NAME, Lab
from tests.vm.machine import inside

NET_ADMIN_ALONE = (
    shutil.which("setpriv") or "setpriv",
    "--bounding-set=-all,+net_admin",
    "--inh-caps=-all",
    "--no-new-privs",
)
"""What a command is started with that is to have no other right."""

PATIENCE = 300.0 if inside() else 60.0  # seconds; nothing here takes long, but machines are busy, or emulated

NODE = NodeConfig(
    name=NODE_NAME,
    address="192.0.2.1",
    local_traffic=LocalTraffic("range", "10.244.0.0/16"),
    localhost_node_ports=True,
)
"""What the daemon should make of the lab's node and the configuration below."""


class Station:
    """Where a daemon runs: a namespace, a folder of manifests, and one variant of the programs.

    Attributes:
        folder: the manifests; the Node is in it.
        tables: the namespace's IPv4 tables; use them `inside` only.
    """

    def __init__(self, lab: Lab, path: Path, variant: Variant = "nf_tables", **config: Any) -> None:
        self.lab = lab
        self._path = path
        self._variant: Variant = variant
        self.folder = Folder(path / "manifests")
        self.tables = Real(IPV4, variant)
        self.config = path / "config.yaml"
        settings = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clusterCIDR": "10.244.0.0/16,fd00:10:244::/48",
            **config,
        }
        self.config.write_text(yaml.safe_dump(settings))
        addresses = (types.NodeAddress("InternalIP", "192.0.2.1"),)
        self.folder.put(types.Node(types.ObjectMeta(name=NODE_NAME), status=types.NodeStatus(addresses)))

    def command(self, *flags: str) -> list[str]:
        """The daemon's command line."""
        return kube_proxy(self.config, self.folder.path, *flags)

    @contextlib.contextmanager
    def running(
        self, *flags: str, path: Path | None = None, prefix: Sequence[str] = (), words: str = ""
    ) -> Iterator[Daemon]:
        """The daemon, from its being ready to its end by SIGTERM.

        Args:
            flags: more flags.
            path: another folder as its PATH.
            prefix: a program that runs it.
            words: what it writes at the beginning, in place of its being ready.
        """
        daemon = Daemon(self.lab, [*prefix, *self.command(*flags)], timeout=PATIENCE, words=words)
        with contextlib.ExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:
                use_variant(patch, self._path, self._variant)
                if path is not None:
                    patch.setenv("PATH", str(path))
                stack.enter_context(daemon)
            yield daemon

    def rules(self) -> dict[str, dict[str, list[str]]]:
        """The node's IPv4 rules."""
        with self.lab.inside("node"):
            return self.tables.rules()

    def counted(self) -> str:
        """The node's IPv4 rules with their counters."""
        with self.lab.inside("node"):
            return self.tables.counted()


class Bare(Lab):
    """A bare namespace in place of the lab's node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def name(self, role: str) -> str:
        """See `Lab`."""
        assert role == "node"
        return self._name


def until(condition: Callable[[], object], what: str = "") -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what or "it never came to that"
        time.sleep(0.02)


def ask(lab: Lab, role: str, address: str, port: int = 80, patience: float = 5.0) -> str:
    """Which backend answers a client, or why none does; a client without patience may ask again soon."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.inside(lab.name(role)):
        client = socket.socket(family, socket.SOCK_STREAM)
    with client:
        client.settimeout(patience)
        try:
            client.connect((address, port))
            return client.recv(256).decode().split(" ")[0]
        except OSError as e:
            return type(e).__name__ if type(e) is not OSError else str(e)


def answers(lab: Lab, role: str, address: str, backend: str) -> bool:
    """Whether a backend answers already."""
    return ask(lab, role, address, patience=0.2) == backend


def asked(lab: Lab, role: str, address: str, port: int = 80, times: int = 24) -> Counter[str]:
    """Who answers how often."""
    return Counter(ask(lab, role, address, port) for _ in range(times))
