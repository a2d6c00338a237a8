"""The pages beside /metrics on the metrics address: the configuration and the state of this proxy.

/proxyMode, /configz, /healthz and /metrics/slis are those of the reference; so are /flagz and /statusz
(KEP-4828, KEP-4827): as text, or as an object in JSON or YAML if Accept names its kind and version, e.g.
`application/json;v=v1beta1;g=config.k8s.io;as=Flagz`. If Accept allows none of these, the response is 406.
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
from kubeproxy.config.load import RunOptions
from kubeproxy.figures import Figure
from kubeproxy.serve.accept import wishes
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse, text

GROUP: Final = "kubeproxy.config.k8s.io"
_API_GROUP: Final = "config.k8s.io"
_API_VERSIONS: Final = ("v1alpha1", "v1beta1")
_NAME: Final = "kube-proxy"


class Pages:
    """Answers requests for these pages.

    Attributes:
        options: those that are in force.
    """

    def __init__(self, options: RunOptions, *, wall: Callable[[], float] = time.time) -> None:
        """Takes what there is to show.

        Args:
            options: those that are in force.
            wall: the time of day, in seconds since 1970.
        """
        self.options = options
        self._wall = wall
        self._started = wall()
        self._asked = 0
        self._paths: tuple[str, ...] = ()

    def routes(self) -> dict[str, Handler]:
        """The handlers by method and path."""
        gates = resolve(self.options.config.feature_gates)
        routes: dict[str, Handler] = {
            "GET /healthz": self._healthz,
            "GET /proxyMode": lambda _: text(self.options.config.mode),
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

    def _healthz(self, _: HTTPRequest) -> HTTPResponse:
        self._asked += 1
        return text("ok")

    def _configz(self, _: HTTPRequest) -> HTTPResponse:
        from kubeproxy.config.write import plain

        body = msgspec.json.encode({GROUP: plain(self.options.config)})
        return HTTPResponse(body, content_type="application/json")

    def _flagz(self, request: HTTPRequest) -> HTTPResponse:
        flags = dict(sorted(self.options.flags.items()))
        return _negotiated(
            request, "Flagz", (f"{name}={value}" for name, value in flags.items()), {"flags": flags}
        )

    def _statusz(self, request: HTTPRequest) -> HTTPResponse:
        python = ".".join(map(str, sys.version_info[:3]))
        seconds = max(0, int(self._wall() - self._started))
        content = {
            "startTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "uptimeSeconds": seconds,
            "pythonVersion": python,
            "binaryVersion": KUBERNETES,
            "proxyVersion": __version__,
            "paths": list(self._paths),
        }
        hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
        lines = {
            "Started": time.strftime("%a %b %d %H:%M:%S UTC %Y", time.gmtime(self._started)),
            "Up": f"{hours} hr {minutes:02} min {rest:02} sec",
            "Process": str(os.getpid()),
            "Python version": python,
            "Binary version": f"{KUBERNETES} (kube-proxy in Python {__version__})",
            "Paths": " ".join(self._paths),
        }
        return _negotiated(request, "Statusz", (f"{name}: {value}" for name, value in lines.items()), content)


def _negotiated(
    request: HTTPRequest, kind: str, lines: Iterable[str], content: Mapping[str, object]
) -> HTTPResponse:
    """The form of a page that the client prefers, as the API server's negotiation chooses it."""
    for wish in wishes(request.headers.get("accept", "").strip() or "text/plain"):
        if not wish.quality:
            continue
        version = wish.parameters.get("v", "")
        asked = {name: wish.parameters[name] for name in ("as", "g", "v") if name in wish.parameters}
        if not asked and wish.value in {"text/plain", "text/*", "*/*"}:
            return _page(kind.lower(), lines)
        if asked == {"as": kind, "g": _API_GROUP, "v": version} and version in _API_VERSIONS:
            body = {
                "kind": kind,
                "apiVersion": f"{_API_GROUP}/{version}",
                "metadata": {"name": _NAME},
                **content,
            }
            if wish.value in {"application/json", "application/*", "*/*"}:
                return HTTPResponse(msgspec.json.encode(body), content_type="application/json")
            if wish.value == "application/yaml":
                return HTTPResponse(msgspec.yaml.encode(body), content_type="application/yaml")
    return _refused(kind)


def _page(name: str, lines: Iterable[str]) -> HTTPResponse:
    head = f"\n{_NAME} {name}\nFor operators; programs should not rely on its form.\n\n"
    return text(head + "".join(f"{line}\n" for line in lines))


def _refused(kind: str) -> HTTPResponse:
    """The Status object (meta/v1) with the media types that are available."""
    forms = [f"{{}};v={version};g={_API_GROUP};as={kind}" for version in _API_VERSIONS]
    types = [
        "text/plain",
        *(form.format(f"application/{syntax}") for form in forms for syntax in ("json", "yaml")),
    ]
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"one of these media types must be accepted: {', '.join(types)}",
        "reason": "NotAcceptable",
        "code": 406,
    }
    return HTTPResponse(msgspec.json.encode(body), 406, "application/json")
