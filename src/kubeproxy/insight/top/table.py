"""The traffic of Services, as lines of text.

One for each Service port, or one for each endpoint of some.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from kubeproxy.answers.observed import Observed
from kubeproxy.api import types
from kubeproxy.api.addresses import join
from kubeproxy.insight.top.values import Top, TopEndpoint, TopPort, TopService

Line = tuple[str, str]
"""A text, and a style of rich ("" for none)."""

_UNITS: Final = ("", "k", "M", "G", "T")
_MOST_SHARES: Final = 6
_MOST_SILENT: Final = 2
UNKNOWN: Final = "-"
_HEAD: Final = (
    "SERVICE",
    "conn/s",
    "open",
    "sent/s",
    "recv/s",
    "waiting",
    "unans.",
    "resets",
    "endpoints (share)",
)
_DETAIL_HEAD: Final = ("  ENDPOINT", *_HEAD[1:-1], "share")


def lines(top: Top, *, most: int | None = None, details: bool = False) -> list[Line]:
    """The table with its heading.

    Args:
        top: the figures.
        most: so many Service ports are shown.
        details: show each endpoint.
    """
    ports = [(service, port) for service in top.services for port in service.ports]
    if details:
        return [line for service, port in ports for line in _detailed(service, port)]
    rows = [_row(service, port) for service, port in ports[:most]]
    styles = ["red" if _fails(port) else "yellow" if port.uneven else "" for _, port in ports[:most]]
    return _aligned([(_HEAD, "bold"), *zip(rows, styles, strict=True)])


def about(top: Top) -> str:
    """Where the figures are from and how old they are, in one line."""
    sources = top.sources
    counted = {
        "counters": f"connections from counters of the rules, read {sources.connections_age:.0f} s ago",
        "events": "connections from events of connection tracking",
        "relay": "connections as the relay counts them",
        "": "connections are not counted",
    }[sources.connections]
    listed = "" if sources.open_age is None else f"; open ones listed {sources.open_age:.0f} s ago"
    lost = f"; EVENTS WERE LOST {sources.losses} times: figures are too low" if sources.losses else ""
    return f"{top.mode} mode, node {top.node}, {top.seconds:.0f} s; {counted}{listed}{lost}"


def observations(top: Top) -> list[Line]:
    """What the daemon has observed; no line without a daemon."""
    return [] if top.observed is None else [(_removal(top.observed), "dim")]


def _removal(observed: Observed) -> str:
    """How long clients can still be sent to an endpoint that leaves."""
    found = {each.since: each for each in observed.convergence if each.kind == "endpoint_removed"}
    if "received" not in found:
        return "no endpoint has left since kube-proxy started"
    shown = found.get("change", found["received"])
    count = f"{shown.count:,} change{'' if shown.count == 1 else 's'}"
    after = f"an endpoint that goes gets no new connection after {_seconds(shown.p999)} (p99.9 of {count}"
    since = "from when they arrived here)"
    if shown.since == "change":
        since = (
            f"from the change in the cluster; {_seconds(found['received'].p999)} from when they arrived here)"
        )
    return f"{after}, {since}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "more than 300 s"
    return f"{value:g} s" if value >= 1 else f"{1000 * value:g} ms"


def number(value: float | None) -> str:
    """A figure in four or five characters."""
    if value is None:
        return UNKNOWN
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    for unit in _UNITS:
        if value < 9999.5 or unit == _UNITS[-1]:
            return f"{value:.0f}{unit}" if value >= 10 or not unit else f"{value:.1f}{unit}"
        value /= 1000
    return ""


def _fails(port: TopPort | TopEndpoint) -> bool:
    return bool(port.waiting or port.unanswered)


def _figures(each: TopPort | TopEndpoint) -> tuple[str, ...]:
    return tuple(
        map(
            number,
            (
                each.connections_per_second,
                each.open,
                each.sent_per_second,
                each.received_per_second,
                each.waiting,
                each.unanswered,
                each.resets,
            ),
        )
    )


def _name(service: TopService, port: TopPort) -> str:
    protocol = "" if port.protocol == "TCP" else f"/{port.protocol}"
    family = " v6" if port.family == "IPv6" else ""
    return f"{service.namespace}/{service.name}:{port.name or port.port}{protocol}{family}"


def _row(service: TopService, port: TopPort) -> tuple[str, ...]:
    return (_name(service, port), *_figures(port), _shares(port) + _change(service))


def _shares(port: TopPort) -> str:
    if not port.endpoints:
        return "no endpoints"
    silent = [join(each.address, each.port) for each in port.endpoints if each.silent]
    if silent:
        return f"{_given(port)}   no answer from {types.listed(silent, _MOST_SILENT)}"
    return _given(port)


def _given(port: TopPort) -> str:
    """The shares of endpoints in per cent, the largest first."""
    shares = [each.share for each in port.endpoints if each.share is not None]
    if not shares:
        return f"{len(port.endpoints)}"
    shown = " ".join(f"{100 * share:.0f}" for share in sorted(shares, reverse=True)[:_MOST_SHARES])
    more = f" +{len(shares) - _MOST_SHARES}" if len(shares) > _MOST_SHARES else ""
    return f"{shown}{more}{' uneven' if port.uneven else ''}"


def _change(service: TopService) -> str:
    change = service.last_change
    if change is None:
        return ""
    return f"   {change.at[11:19]} {change.what}{f' by {change.by}' if change.by else ''}"


def _detailed(service: TopService, port: TopPort) -> list[Line]:
    head = f"{_name(service, port)}   {number(port.connections_per_second)} conn/s, {number(port.open)} open{_change(service)}"
    rows: list[tuple[Sequence[str], str]] = [(_DETAIL_HEAD, "dim")]
    for each in port.endpoints:
        share = UNKNOWN if each.share is None else f"{100 * each.share:.1f} %"
        note = " uneven" if each.uneven else "" if each.planned else " no new ones"
        note = " does not answer" if each.silent else note
        style = "red" if _fails(each) else "yellow" if note else ""
        rows.append(((f"  {join(each.address, each.port)}", *_figures(each), share + note), style))
    return [(head, "bold"), *(_aligned(rows) if port.endpoints else [("  no endpoints", "yellow")])]


def _aligned(rows: Iterable[tuple[Sequence[str], str]]) -> list[Line]:
    rows = list(rows)
    widths = [max(len(cells[i]) for cells, _ in rows) for i in range(len(_HEAD) - 1)]
    return [
        (
            "  ".join(
                [
                    cells[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:], strict=True)),
                    cells[-1],
                ]
            ),
            style,
        )
        for cells, style in rows
    ]
