"""The pages beside /metrics on the metrics address: how this proxy is set up and how it fares, for people and scripts.

/proxyMode, /configz, /healthz and /metrics/slis are as the reference has them; /flagz and /statusz, too (KEP-4828,
KEP-4827), as text or, when asked with `as=Flagz` or `as=Statusz` in Accept, as JSON.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from kubeproxy import __version__
from kubeproxy.config import KUBERNETES
from kubeproxy.config.gates import resolve
from kubeproxy.config.load import Options
from kubeproxy.figures import Figure
from kubeproxy.serve.message import Handler, Request, Response, text

GROUP: Final = "kubeproxy.config.k8s.io"
_API: Final = "config.k8s.io/v1beta1"
_NAME: Final = "kube-proxy"


class Pages:
    """Answers for these pages."""

    def __init__(self, options: Options, *, wall: Callable[[], float] = time.time) -> None:
        """Takes what there is to show.

        Args:
            options: what this run was told.
            wall: the time of day, in seconds since 1970.
        """
        self._options = options
        self._wall = wall
        self._started = wall()
        self._asked = 0
        self._paths: tuple[str, ...] = ()

    def routes(self) -> dict[str, Handler]:
        """What is served."""
        gates = resolve(self._options.config.feature_gates)
        routes: dict[str, Handler] = {
            "GET /healthz": self._healthz,
            "GET /proxyMode": lambda _: text(self._options.config.mode),
            "GET /configz": self._configz,
        }
        if gates["ComponentFlagz"]:
            routes["GET /flagz"] = self._flagz
        if gates["ComponentStatusz"]:
            routes["GET /statusz"] = self._statusz
        return routes

    def lists(self, routes: Iterable[str]) -> None:
        """These are all pages of the address."""
        self._paths = tuple(sorted({route.partition(" ")[2] for route in routes}))

    def slis(self) -> Iterable[Figure]:
        """The service level indicators (KEP-3466): this server's own health."""
        check = {"name": "ping", "type": "healthz"}
        if self._asked:
            yield Figure("kubernetes_healthcheck", "gauge", "Whether a check passed.", 1, check)
            yield Figure(
                "kubernetes_healthchecks_total",
                "counter",
                "How often a check passed.",
                self._asked,
                {**check, "status": "success"},
            )

    def _healthz(self, _: Request) -> Response:
        self._asked += 1
        return text("ok")

    def _configz(self, _: Request) -> Response:
        from kubeproxy.config.write import plain

        body = msgspec.json.encode({GROUP: plain(self._options.config)})
        return Response(body, content_type="application/json")

    def _flagz(self, request: Request) -> Response:
        flags = dict(sorted(self._options.flags.items()))
        if "as=Flagz" in request.headers.get("accept", ""):
            return _json("Flagz", {"flags": flags})
        return _page("flagz", (f"{name}={value}" for name, value in flags.items()))

    def _statusz(self, request: Request) -> Response:
        python = ".".join(map(str, sys.version_info[:3]))
        seconds = max(0, int(self._wall() - self._started))
        if "as=Statusz" in request.headers.get("accept", ""):
            return _json(
                "Statusz",
                {
                    "startTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
                    "uptimeSeconds": seconds,
                    "pythonVersion": python,
                    "binaryVersion": KUBERNETES,
                    "proxyVersion": __version__,
                    "paths": self._paths,
                },
            )
        hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
        lines = {
            "Started": time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(self._started)),
            "Up": f"{hours} hr {minutes:02} min {rest:02} sec",
            "Process": str(os.getpid()),
            "Python version": python,
            "Binary version": f"{KUBERNETES} (kube-proxy in Python {__version__})",
            "Paths": " ".join(self._paths),
        }
        return _page("statusz", (f"{name}: {value}" for name, value in lines.items()))


def _page(name: str, lines: Iterable[str]) -> Response:
    head = f"\n{_NAME} {name}\nFor people; programs should not rely on its form.\n\n"
    return text(head + "".join(f"{line}\n" for line in lines))


def _json(kind: str, content: Mapping[str, object]) -> Response:
    body = {"kind": kind, "apiVersion": _API, "metadata": {"name": _NAME}, **content}
    return Response(msgspec.json.encode(body), content_type="application/json")
