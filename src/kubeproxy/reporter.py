"""Reports what is probably wrong with Services: in the log, as metrics and, for some findings, as Events.

In a large cluster thousands of Services have no endpoints because they are scaled to zero, and endpoints
change all the time. So the findings at the start are logged in one line for each kind. After that a finding
is reported when it has lasted for `SETTLE_SECONDS`, and so is its end; findings of one kind that are due
together share a line. A token bucket limits the lines: what exceeds it is reported later, in its state at
that time, or not at all if it ended meanwhile.

Every node of a cluster has the same findings, so an Event from each would flood the API server. Events are
written only of mistakes in the objects themselves (names of ports that do not match, annotations), and only
by one node (`model.writer`): that of the Service's first endpoint, by address, if it has one. That endpoints
are missing or not ready is normal and can be seen in the EndpointSlices.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from kubeproxy.api import types
from kubeproxy.clock import Clock, SystemClock
from kubeproxy.figures import Figure
from kubeproxy.log import V2, ObjectRef
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.findings import REASONS, Finding, Findings, Reason
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State
from kubeproxy.model.writer import WriterChoice

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 5.0
"""How long a finding must last before it is reported, in seconds."""

LOOK_SECONDS: Final = 1.0
"""Seconds between two checks of the Services that changed."""

BURST: Final = 20
"""How many lines may be written at once ..."""

EVERY_SECONDS: Final = 30.0
"""... and after how many seconds one more."""

FEW: Final = 3
"""Up to so many Services have a line each, with details; more share one line."""

MOST_NAMES: Final = 10
"""How many Services are named in a line."""

_AT_ONCE = 500
_READ_SLICES = "ReadEndpointSlices"

Event = Callable[[Key, str, str, str], None]
"""Writes an Event of a Service: its key, a reason, an action and a note; see `events.Events.service`."""


class _Words(Struct, frozen=True, gc=False):
    """How a kind of finding is reported.

    Attributes:
        level: the level of its lines.
        many: the text for several Services.
        one: the text for a single Service, with fields of the `Finding`.
        over: what a Service has when the finding has ended; "" if the end is not reported.
        event: the action of the Event that is written, too; "" for none.
    """

    level: int
    many: str
    one: str
    over: str
    event: str = ""


_WORDS: Final[Mapping[Reason, _Words]] = {
    "NoEndpoints": _Words(
        logging.INFO,
        "have no endpoints, connections to them are rejected",
        "it has no {family}endpoints{detail}, {family}connections to it are rejected",
        "endpoints",
    ),
    "NoReadyEndpoints": _Words(
        logging.WARNING,
        "have endpoints of which none is ready, connections to them are rejected",
        "none of its {family}endpoints{ports} is ready, {family}connections to it are rejected",
        "ready endpoints",
    ),
    "PortWithoutEndpoints": _Words(
        logging.WARNING,
        "have ports that are in none of their EndpointSlices, connections to these ports are rejected",
        "port {ports} is in none of its {family}EndpointSlices, connections to it are rejected;{detail} names and"
        " protocols must be the same in the Service and its EndpointSlices",
        "endpoints for its ports",
        event=_READ_SLICES,
    ),
    "UnknownEndpointPort": _Words(
        logging.WARNING,
        "have EndpointSlices with ports that the Service does not have, these ports are ignored",
        "its {family}EndpointSlices have port {ports}, which the Service does not have: it is ignored",
        "",
        event=_READ_SLICES,
    ),
    "NoLocalEndpointsInternal": _Words(
        logging.INFO,
        "have internalTrafficPolicy Local and no endpoint on this node, connections from this node are dropped",
        "internalTrafficPolicy is Local and none of its {family}endpoints{ports} is on this node, connections from this"
        " node are dropped",
        "an endpoint on this node",
    ),
    "NoLocalEndpointsExternal": _Words(
        V2,
        "have externalTrafficPolicy Local and no endpoint on this node, external connections that arrive here are"
        " dropped",
        "externalTrafficPolicy is Local and none of its {family}endpoints{ports} is on this node, external connections"
        " that arrive here are dropped",
        "an endpoint on this node",
    ),
    "NoService": _Words(
        logging.WARNING,
        "do not exist but have EndpointSlices, which are ignored",
        "there is no such Service, {detail} is ignored",
        "",
    ),
    "IgnoredAnnotation": _Words(
        logging.WARNING,
        "have annotations that cannot be used and are ignored",
        "an annotation is ignored: {detail}",
        "no annotation that is ignored",
        event="ReadAnnotations",
    ),
}


class Reporter:
    """Reports the findings of a state while it runs."""

    def __init__(
        self, state: State, node: str, event: Event, *, files: bool, clock: Clock | None = None
    ) -> None:
        """Nothing is checked before `run`.

        Args:
            state: the Services.
            node: the name of this node.
            event: how an Event is written.
            files: the objects are of manifests, where an EndpointSlice of no Service is a mistake.
            clock: the time.
        """
        self._state = state
        self._node = node
        self._event = event
        self._clock = clock or SystemClock()
        self._findings = Findings(state, node, orphans=files)
        self._reported: dict[Key, tuple[Finding, ...]] = {}
        self._due: dict[Key, float] = {}
        self._wake = asyncio.Event()
        self._never = asyncio.Event()
        self._free_at = 0.0

    def use(self, balancing: BalancingSupport) -> None:
        """Another mode is used, which has these ways to divide connections."""
        self._findings.use(balancing)
        self._wake.set()

    def figures(self) -> Iterable[Figure]:
        """How many Services have each kind of finding; checks what changed since the last check."""
        self._judge(_AT_ONCE)
        text = "Services with which something is probably wrong."
        for reason in REASONS:
            count = self._findings.counts[reason]
            yield Figure("kubeproxy_service_findings", "gauge", text, count, {"reason": reason})

    async def run(self) -> None:
        """Checks all Services, then those that change; ends only by cancellation."""
        self._findings.touch_all()
        self._state.on_change = self._touched
        while self._findings.pending:
            self._judge(_AT_ONCE)
            await asyncio.sleep(0)
        self._due.clear()
        self._report(list(self._findings.known), first=True)
        while True:
            if not (self._due or self._findings.pending):
                await self._clock.wait(self._wake, None)
            self._wake.clear()
            await self._clock.wait(self._never, LOOK_SECONDS)
            while self._findings.pending:
                self._judge(_AT_ONCE)
                await asyncio.sleep(0)
            self._report_due()

    def _touched(self, key: Key) -> None:
        self._findings.touch(key)
        self._wake.set()

    def _judge(self, most: int) -> None:
        """Checks Services that changed, and records when new findings are due to be reported."""
        now = self._clock.now()
        for key in self._findings.update(most):
            self._due.pop(key, None)  # keeps the dict in order of time
            if self._findings.known.get(key, ()) != self._reported.get(key, ()):
                self._due[key] = now + SETTLE_SECONDS

    def _report_due(self) -> None:
        now = self._clock.now()
        if self._free_at > now:
            return
        keys = []
        for key, due in self._due.items():
            if due > now:
                break
            keys.append(key)
        for key in keys:
            del self._due[key]
        self._report(keys)

    def _report(self, keys: Sequence[Key], *, first: bool = False) -> None:
        """Reports how the findings of some Services differ from those reported last."""
        found: dict[Reason, list[tuple[Key, Finding]]] = {}
        over: dict[Reason, list[Key]] = {}
        for key in keys:
            before, after = self._reported.pop(key, ()), self._findings.known.get(key, ())
            if after:
                self._reported[key] = after
            for finding in after:
                if finding not in before:
                    found.setdefault(finding.reason, []).append((key, finding))
            for reason in self._over(key, before, after):
                over.setdefault(reason, []).append(key)
        lines = 0
        for reason in REASONS:
            lines += self._log_found(reason, found.get(reason, ()), summary=first)
            lines += self._log_ended(reason, over.get(reason, ()))
        if not first:
            earliest = self._clock.now() - (BURST - 1) * EVERY_SECONDS
            self._free_at = max(self._free_at, earliest) + lines * EVERY_SECONDS

    def _over(self, key: Key, before: Iterable[Finding], after: Iterable[Finding]) -> Iterable[Reason]:
        """The findings that ended; none of a Service that was deleted or still has no usable endpoint."""
        now = {finding.reason for finding in after}
        if key not in self._state.services or now & {"NoEndpoints", "NoReadyEndpoints"}:
            return ()
        return {finding.reason for finding in before} - now

    def _log_found(self, reason: Reason, found: Sequence[tuple[Key, Finding]], *, summary: bool) -> int:
        """Writes the lines of one kind of finding; returns how many."""
        words = _WORDS[reason]
        level = max(words.level, logging.INFO) if summary else words.level
        writer = WriterChoice(self._state, self._node)
        for key, finding in found:
            if words.event and writer.is_mine(key):
                self._event(key, reason, words.event, _filled(words.one, finding))
        if not found or not log.isEnabledFor(level):
            return 0
        names = list(dict.fromkeys(f"{namespace}/{name}" for (namespace, name), _ in found))
        if len(names) <= FEW:
            for (namespace, name), finding in found:
                log.log(
                    level,
                    "Service %(service)s: %(problem)s",
                    {"service": ObjectRef(namespace, name), "problem": _filled(words.one, finding)},
                )
            return len(found)
        log.log(
            level,
            "%(count)d Services %(problem)s: %(names)s",
            {"count": len(names), "problem": words.many, "names": types.listed(names, MOST_NAMES)},
        )
        return 1

    def _log_ended(self, reason: Reason, keys: Sequence[Key]) -> int:
        words = _WORDS[reason]
        level = min(words.level, logging.INFO)
        if not keys or not words.over or not log.isEnabledFor(level):
            return 0
        if len(keys) <= FEW:
            for namespace, name in keys:
                log.log(
                    level,
                    "Service %(service)s: it has %(found)s now",
                    {"service": ObjectRef(namespace, name), "found": words.over},
                )
            return len(keys)
        names = types.listed([f"{namespace}/{name}" for namespace, name in keys], MOST_NAMES)
        log.log(
            level,
            "%(count)d Services have %(found)s now: %(names)s",
            {"count": len(keys), "found": words.over, "names": names},
        )
        return 1


def _filled(text: str, finding: Finding) -> str:
    """The text for a single Service."""
    ports, detail = finding.ports, finding.detail
    if finding.reason == "NoReadyEndpoints" or finding.reason.startswith("NoLocal"):
        ports = f" for port {ports}" if ports else ""
    if finding.reason == "NoEndpoints":
        detail = f" ({detail} only)" if detail else ""
    if finding.reason == "PortWithoutEndpoints":
        detail = f" they have {detail}," if detail else " they have no ports,"
    family = f"{finding.family} " if finding.family else ""
    return text.format(family=family, ports=ports, detail=detail)
