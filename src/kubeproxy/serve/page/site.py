"""Answers the requests of the status page, and says who may ask.

A browser sends requests to this node on behalf of any web site that is open in it. So the Host header must be
an address, `localhost` or the name of this node: otherwise a web site could make its own domain name resolve
to this node and read answers (DNS rebinding). A request for data that another site caused, by its Origin or
Sec-Fetch-Site header, is refused, and questions must be JSON, which browsers send to another site only if it
permits that; this one never does. The page itself has no data in it, so that other sites may link to it.

Names from the cluster are only ever text in the page: its script and style are allowed by their hashes, and
Trusted Types forbid scripts to write markup.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, get_args
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct, structs

from kubeproxy import __version__
from kubeproxy.api.addresses import is_loopback, parse_address
from kubeproxy.config import KUBERNETES
from kubeproxy.config.load import RunOptions
from kubeproxy.config.netparse import split_host_port
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve.healthz import Health
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse, text
from kubeproxy.serve.page.recent import RecentSyncs, RecentWarnings

if TYPE_CHECKING:
    from kubeproxy.answers.snapshot import Snapshot
    from kubeproxy.serve.page.catalog import Catalog

LONGEST_QUERY: Final = 200
"""Characters of a search."""

MOST_OFFSET: Final = 10_000_000

MOST_QUESTIONS: Final = 4
"""So many questions wait for their answers at a time."""

MOST_LISTED: Final = 100
"""So many endpoints, rules and differences are in the answer of a question."""

HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
)

_JSON: Final = "application/json"


class PageQuestion(Struct, frozen=True):
    """A question as the page asks it; see `answers.asking.ask`."""

    source: str = msgspec.field(name="from")
    destination: str = msgspec.field(name="to")
    interface: str = ""


class FamilyState(Struct, frozen=True, gc=False, rename="camel"):
    """The control loop of an IP family.

    Attributes:
        family: the IP family.
        services: how many Services are in the kernel.
        pending: how many wait for a sync.
        refused: how many the kernel refuses.
        repairs: how often drift was detected.
        failures: how many syncs failed in a row.
        trouble: why the last of them failed.
    """

    family: str
    services: int
    pending: int
    refused: int
    repairs: int
    failures: int
    trouble: str


class StatusPage:
    """The status page.

    Attributes:
        syncs: the last syncs.
    """

    def __init__(self, machine: Machine, options: RunOptions, health: Health) -> None:
        """Answers nothing about the cluster before `read_from` and `attach`.

        Args:
            machine: the host.
            options: those that are in force.
            health: determines whether the proxy is healthy and ready.
        """
        self._machine = machine
        self._options = options
        self._health = health
        self._hub: Hub | None = None
        self._loops: Sequence[Reconciler] = ()
        self._catalog: Catalog | None = None
        self._snapshot: Callable[[], Snapshot] | None = None
        self._asking = 0
        self._question = asyncio.Lock()
        self._warnings: RecentWarnings | None = None
        self._started = time.time()
        self.syncs = RecentSyncs()

    def read_from(self, hub: Hub) -> None:
        """The cluster is known from here now."""
        self._hub, self._catalog = hub, None

    def attach(self, loops: Sequence[Reconciler]) -> None:
        """These are the loops whose rules are in force, or will be first."""
        self._loops, self._catalog = loops, None

    def answer_from(self, snapshot: Callable[[], "Snapshot"]) -> None:
        """Questions are answered from what this returns."""
        self._snapshot = snapshot

    def use(self, options: RunOptions) -> Mapping[str, Handler]:
        """These options are in force now; returns the handlers by method and path.

        There are none if the options do not allow the page.
        """
        self._options = options
        if not allowed(options):
            self.close()
            return {}
        if self._warnings is None:
            self._warnings = RecentWarnings()
        logging.getLogger().addHandler(
            self._warnings
        )  # once: it is not added again; a changed log begins without it
        return {
            "GET /": self._guarded(self._page, data=False),
            "GET /page/state": self._guarded(self._state),
            "GET /page/services": self._guarded(self._services),
            "GET /page/service": self._guarded(self._service),
            "POST /page/explain": self._guarded(self._explain),
        }

    def close(self) -> None:
        """Keeps no warnings any longer."""
        if self._warnings is not None:
            logging.getLogger().removeHandler(self._warnings)
            self._warnings = None

    def _guarded(self, handler: Handler, *, data: bool = True) -> Handler:
        def handle(request: HTTPRequest) -> HTTPResponse | Awaitable[HTTPResponse]:
            why = refusal(request.headers, self._options.config.node_name, data=data)
            return text(f"403 Forbidden: {why}\n", 403) if why else handler(request)

        return handle

    def _page(self, _: HTTPRequest) -> HTTPResponse:
        body, policy = assembled()
        return HTTPResponse(
            body,
            content_type="text/html; charset=utf-8",
            headers=(("Content-Security-Policy", policy), *HEADERS),
        )

    async def _state(self, request: HTTPRequest) -> HTTPResponse:
        try:
            asked = _asked(request.query)
            syncs, warnings = _number(asked, "syncs", 1 << 53), _number(asked, "warnings", 1 << 53)
        except ValueError as e:
            return text(f"{e}\n", 400)
        catalog = self._open_catalog()
        known = await catalog.known() if catalog else None
        troubles = self._health.troubles()
        return _json(
            {
                "node": self._options.config.node_name,
                "mode": self._options.config.mode,
                "version": f"{__version__}, compatible with Kubernetes v{KUBERNETES}",
                "started": self._started,
                "now": time.time(),
                "healthy": self._health.healthy(),
                "ready": not troubles,
                "troubles": troubles[:MOST_LISTED],
                "services": len(known.keys) if known else 0,
                "empty": len(known.empty) if known else 0,
                "contested": len(known.contested) if known else 0,
                "families": [_family(loop) for loop in self._loops],
                "syncs": self.syncs.after(syncs),
                "warnings": self._warnings.after(warnings) if self._warnings else [],
            }
        )

    async def _services(self, request: HTTPRequest) -> HTTPResponse:
        from kubeproxy.serve.page.listed import MOST_ROWS, ServiceList, Which

        try:
            asked = _asked(request.query)
            offset, limit = _number(asked, "offset", MOST_OFFSET), _number(asked, "limit", MOST_ROWS, 50)
        except ValueError as e:
            return text(f"{e}\n", 400)
        query, which = asked.get("search", ""), asked.get("which", "")
        if len(query) > LONGEST_QUERY:
            return text(f"search has more than {LONGEST_QUERY} characters\n", 400)
        if which not in get_args(Which):
            return text(f"which is none of {', '.join(filter(None, get_args(Which)))}\n", 400)
        catalog = self._open_catalog()
        if catalog is None:
            return _json(ServiceList(0, offset, []))
        return _json(await catalog.search(query, which, offset, limit))  # type: ignore[arg-type]

    async def _service(self, request: HTTPRequest) -> HTTPResponse:
        from kubeproxy.serve.page.listed import MOST_ROWS

        try:
            asked = _asked(request.query)
            offset, limit = _number(asked, "offset", MOST_OFFSET), _number(asked, "limit", MOST_ROWS, 50)
        except ValueError as e:
            return text(f"{e}\n", 400)
        catalog = self._open_catalog()
        key = asked.get("namespace", ""), asked.get("name", "")
        found = await catalog.detail(key, offset, limit) if catalog else None
        return text("there is no such Service\n", 404) if found is None else _json(found)

    async def _explain(self, request: HTTPRequest) -> HTTPResponse:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            return text(f"a question is {_JSON}\n", 400)
        try:
            question = msgspec.json.decode(request.body, type=PageQuestion)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            return text(f"this is no question: {e}\n", 400)
        if self._snapshot is None:
            return text("Services and endpoints are not known yet\n", 503)
        if self._asking >= MOST_QUESTIONS:
            return text("other questions are being answered, ask again\n", 503)
        from kubeproxy.answers.asking import QuestionError, ask

        self._asking += 1
        try:
            async with self._question:
                found = await ask(
                    self._snapshot(),
                    self._machine,
                    question.source.strip(),
                    question.destination.strip(),
                    question.interface.strip(),
                )
        except QuestionError as e:
            return text(f"{e}\n", 400)
        finally:
            self._asking -= 1
        lists = ("endpoints", "excluded", "differences", "rules")
        more = {name: len(getattr(found, name)) - MOST_LISTED for name in lists}
        answer = structs.replace(found, **{name: getattr(found, name)[:MOST_LISTED] for name in lists})
        return _json({"answer": answer, "more": {name: count for name, count in more.items() if count > 0}})

    def _open_catalog(self) -> "Catalog | None":
        if self._catalog is None and self._hub is not None:
            from kubeproxy.serve.page.catalog import Catalog

            self._catalog = Catalog(self._hub, self._loops)
        return self._catalog


def allowed(options: RunOptions) -> bool:
    """Whether the page is served: at loopback addresses by default, at others only if that is configured."""
    address = options.config.metrics_address
    if address is None or options.status_page == "never":
        return False
    return options.status_page == "always" or is_loopback(parse_address(address[0]))


def refusal(headers: Mapping[str, str], node: str, *, data: bool) -> str:
    """Why a request is refused; "" if it is not.

    Args:
        headers: its headers.
        node: the name of this node.
        data: it is for data.
    """
    host = headers.get("host", "").lower()
    name = (split_host_port(host) or (host.strip("[]"), ""))[0]
    if name not in {"localhost", node} and not _is_address(name):
        return "the Host header is not an address, localhost or the name of this node"
    if not data:
        return ""
    origin = headers.get("origin", "").lower()
    if origin and origin not in {f"http://{host}", f"https://{host}"}:
        return "the request comes from another web site"
    # "none": a person has entered the address.
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return "the request comes from another web site"
    return ""


def assembled() -> tuple[bytes, str]:
    """The page as one file, and its Content-Security-Policy."""
    from importlib.resources import files

    folder = files(__package__)
    page, style, script = (
        folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return page.replace("{{style}}", style).replace("{{script}}", script).encode(), policy


def _hash(content: str) -> str:
    from base64 import b64encode
    from hashlib import sha256  # brings OpenSSL: imported when the page is asked for

    return f"sha256-{b64encode(sha256(content.encode()).digest()).decode()}"


def _is_address(name: str) -> bool:
    try:
        parse_address(name)
    except ValueError:
        return False
    return True


def _asked(query: str) -> dict[str, str]:
    """The parameters of a query.

    Raises:
        ValueError: it has too many.
    """
    return {name: values[0] for name, values in parse_qs(query, max_num_fields=10).items()}


def _number(asked: Mapping[str, str], name: str, most: int, default: int = 0) -> int:
    """A parameter that is a number.

    Raises:
        ValueError: it is not, or it is above the limit.
    """
    given = asked.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) <= 16 and int(given) <= most):
        raise ValueError(f"{name} is not a number from 0 to {most}")
    return int(given)


def _family(loop: Reconciler) -> FamilyState:
    return FamilyState(
        loop.family,
        len(loop.ledger.plans),
        loop.pending,
        len(loop.ledger.refused),
        loop.repairs,
        loop.failures_in_row,
        loop.trouble if loop.failures_in_row else "",
    )


def _json(content: object) -> HTTPResponse:
    return HTTPResponse(msgspec.json.encode(content), content_type=_JSON, headers=HEADERS)
