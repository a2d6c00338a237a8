"""/metrics: figures in Prometheus' text format.

prometheus_client is imported with the first scrape, in a thread: it brings 5 MB, among them an HTTP server
and a client. One scrape is answered in each iteration of the event loop, so that a flood of them does not
delay syncs. A client that accepts gzip gets gzip, a tenth of the bytes, compressed in a thread.
"""

import asyncio
import gzip
import platform
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Final

from kubeproxy import __version__
from kubeproxy.config import KUBERNETES
from kubeproxy.config.gates import GATES, resolve
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.figures import Figure, Histogram, added
from kubeproxy.serve.accept import takes_gzip
from kubeproxy.serve.message import HTTPRequest, HTTPResponse
from kubeproxy.serve.stability import described

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_GZIP_LEVEL: Final = 5

Provider = Callable[[], Iterable[Figure]]


class Exposition:
    """Answers scrapes.

    Some providers are replaced while the process runs, when a changed configuration is taken. Their counters
    and histograms continue then: what the former ones counted is added to what the present ones do.

    Attributes:
        providers: those that last as long as the process.
    """

    def __init__(self, *, process: bool = True) -> None:
        """Starts without providers.

        Args:
            process: whether to include figures of the process itself.
        """
        self.providers: list[Provider] = []
        self._replaced: dict[str, tuple[Provider, ...]] = {}
        self._before: dict[tuple[object, ...], Figure] = {}
        self._process = process
        self._turn = asyncio.Lock()

    def replace(self, group: str, *providers: Provider) -> None:
        """These providers take the place of those that the group had, whose counters they continue."""
        for figure in chain.from_iterable(provider() for provider in self._replaced.get(group, ())):
            if figure.kind != "gauge":
                self._before[_identity(figure)] = self._continued(figure)
        self._replaced[group] = providers

    async def handle(self, request: HTTPRequest) -> HTTPResponse:
        """Answers one scrape."""
        if "prometheus_client" not in sys.modules:
            await asyncio.to_thread(import_module, "prometheus_client")
        async with self._turn:
            await asyncio.sleep(0)
            body = self.render()
            headers: tuple[tuple[str, str], ...] = (("Vary", "Accept-Encoding"),)
            if takes_gzip(request.headers.get("accept-encoding", "")):
                body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)
                headers = (*headers, ("Content-Encoding", "gzip"))
            return HTTPResponse(body, content_type=CONTENT_TYPE, headers=headers)

    def render(self) -> bytes:
        """The text."""
        from prometheus_client import generate_latest

        return generate_latest(self)  # it only calls `collect` of a registry

    def _figures(self) -> Iterable[Figure]:
        for provider in self.providers:
            yield from provider()
        for provider in chain.from_iterable(self._replaced.values()):
            for figure in provider():
                yield figure if figure.kind == "gauge" else self._continued(figure)

    def _continued(self, figure: Figure) -> Figure:
        """A figure with what earlier ones of its name and labels counted."""
        before = self._before.get(_identity(figure))
        return figure if before is None else added(figure, before)

    def collect(self) -> Iterable["Metric"]:
        """All figures, by name: what prometheus_client calls a collector."""
        from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, Metric

        families: dict[str, Metric] = {}
        for figure in self._figures():
            family = families.get(figure.name)
            if family is None:
                name = figure.name.removesuffix("_total") if figure.kind == "counter" else figure.name
                family = families[figure.name] = Metric(
                    name, described(figure.name, figure.help), figure.kind
                )
            _add(family, figure)
        yield from families.values()
        if self._process:
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                yield from collector.collect()


def _identity(figure: Figure) -> tuple[object, ...]:
    return figure.name, *sorted(figure.labels.items())


def _add(family: "Metric", figure: Figure) -> None:
    labels, value = dict(figure.labels), figure.value
    if not isinstance(value, Histogram):
        family.add_sample(figure.name, labels, value)
        return
    counts = value.cumulative()
    for bound, count in zip((*map(_bound, value.bounds), "+Inf"), counts, strict=True):
        family.add_sample(f"{figure.name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{figure.name}_sum", labels, value.sum)
    family.add_sample(f"{figure.name}_count", labels, counts[-1])


def _bound(value: float) -> str:
    """A bound as Go programs write it, because queries contain bounds."""
    return f"{value:g}"


def of_build(config: KubeProxyConfiguration, version: str = "") -> Iterable[Figure]:
    """The version of this program, and its feature gates.

    Args:
        config: the configuration.
        version: the Kubernetes version to report, or empty.
    """
    major, minor = KUBERNETES.split(".")
    labels = {
        "major": major,
        "minor": minor,
        "git_version": version or f"v{KUBERNETES}.0",
        "git_commit": "",
        "git_tree_state": "",
        "build_date": "",
        "go_version": "",
        "compiler": sys.implementation.name,
        "platform": f"{sys.platform}/{platform.machine()}",
        "proxy_version": f"v{__version__}",
    }
    text = "The Kubernetes release whose kube-proxy this program replaces, and its own version."
    yield Figure("kubernetes_build_info", "gauge", text, 1, labels)
    for name, on in resolve(config.feature_gates).items():
        stage = "" if GATES[name].stage == "GA" else GATES[name].stage.upper()
        yield Figure(
            "kubernetes_feature_enabled", "gauge", "Feature gates.", on, {"name": name, "stage": stage}
        )
