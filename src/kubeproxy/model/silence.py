"""Which endpoints do not answer: decided from the connections of clients, without probes.

An endpoint may be ready for the API server and yet not answer: its node has lost power, and it takes 40
seconds until that is noticed, or there is a firewall between. A connection has failed if its SYN had no
answer for `ANSWER_SECONDS`, or was answered by a reset. An endpoint is *silent* if its last `FAILURES`
connections have failed, while another endpoint of the port has answered a new connection since then: if none
answers, the cause is probably not the endpoint.

A silent endpoint gets no connections, except for a trial from time to time: it is used again until the first
new connection to it has begun. If that is answered, the endpoint is silent no longer; if not, the next trial
is `TRIAL_SECONDS` later, doubled each time. At most half of the endpoints of a port are silent.

The time is passed by the caller, and what happens is passed as `Seen`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct

Address = tuple[str, int]
"""The address and port of an endpoint."""

ANSWER_SECONDS: Final = 1.0
"""A SYN is sent again after this time, so the first answer has been lost or there was none."""

FAILURES: Final = 2
"""After so many failed connections in a row an endpoint may be silent."""

DOUBT_SECONDS: Final = 10.0
"""So long after its last failed connection an endpoint is not watched any more."""

TRIAL_SECONDS: Final = (1.0, 60.0)
"""How long the first trial is after the endpoint became silent; the longest time between two trials."""

DoubtState = Literal["doubted", "silent", "on trial", "tried"]
"""Of an endpoint that is not known to answer:

- doubted: some connections have failed; it is used.
- silent: it gets no connections.
- on trial: it is used until the first new connection to it.
- tried: that connection has begun, and it is not known yet whether it is answered.
"""


class Seen(Struct, frozen=True, gc=False):
    """What was seen of the endpoints of a port since the last call.

    Attributes:
        failed: how many connections have failed, by endpoint.
        answered: the endpoints that have answered a new connection.
    """

    failed: Mapping[Address, int] = {}
    answered: Collection[Address] = ()


class SilenceChange(Struct, frozen=True, gc=False):
    """What has changed of an endpoint.

    Attributes:
        endpoint: the endpoint.
        kind: it is silent now; it answers again; its trial failed, or began or has its connection.
        seconds: how long it has been silent.
        failures: how many connections have failed.
        next: in how many seconds it is tried.
    """

    endpoint: Address
    kind: Literal["silent", "answers", "trial failed", "trial", "tried"]
    seconds: float = 0.0
    failures: int = 0
    next: float = 0.0


class Doubt(Struct, gc=False):
    """An endpoint that is not known to answer.

    Attributes:
        state: see `DoubtState`.
        failures: how many connections have failed in a row.
        others: endpoints of the port that have answered since the first of these.
        since: since when it is silent.
        trials: how many trials have failed.
        next: when the next trial begins; while it is tried, when the connection has failed; while it is
            doubted, when it no longer is.
    """

    state: DoubtState
    failures: int
    others: set[Address]
    since: float = 0.0
    trials: int = 0
    next: float = 0.0


class PortSilence:
    """The endpoints of one port."""

    def __init__(self) -> None:
        self.doubts: dict[Address, Doubt] = {}

    @property
    def silent(self) -> tuple[Address, ...]:
        """The endpoints that get no connections now, those that have not answered for longest first."""
        found = [(doubt.since, at) for at, doubt in self.doubts.items() if doubt.state in {"silent", "tried"}]
        return tuple([at for _, at in sorted(found)])

    @property
    def unanswering(self) -> tuple[Address, ...]:
        """The same, with those on trial."""
        return tuple([at for at, doubt in self.doubts.items() if doubt.state != "doubted"])

    def watched(self, now: float) -> bool:
        """Whether it must be seen which endpoints answer: not while all that are silent wait for a trial."""
        return any(doubt.state != "silent" or now >= doubt.next for doubt in self.doubts.values())

    def look(
        self, endpoints: Collection[Address], seen: Seen, now: float, *, watched: bool
    ) -> list[SilenceChange]:
        """Takes in what was seen; returns what has changed.

        Args:
            endpoints: the endpoints of the port, silent ones, too.
            seen: what was seen since the last call.
            now: the time, in seconds.
            watched: it would be seen if another endpoint answered from now on; otherwise no trial begins.
        """
        found = [
            SilenceChange(at, "answers", now - self.doubts[at].since, self.doubts[at].failures)
            for at in self.doubts.keys() & seen.answered
            if self.doubts[at].state != "doubted"
        ]
        for at in list(self.doubts):
            if at in seen.answered or at not in endpoints:
                del self.doubts[at]
        for at, count in seen.failed.items():
            if at in endpoints and at not in seen.answered:
                self._failed(at, count, now)
        for at, doubt in self.doubts.items():
            doubt.others |= {other for other in seen.answered if other != at}
        for at in list(self.doubts):
            found += self._judge(at, len(endpoints), now, watched=watched)
        return found

    def connected(self, at: Address, now: float) -> list[SilenceChange]:
        """A new connection to an endpoint has begun; that of its trial, if it is on trial."""
        doubt = self.doubts.get(at)
        if doubt is None or doubt.state != "on trial":
            return []
        doubt.state, doubt.next = "tried", now + 2 * ANSWER_SECONDS
        return [SilenceChange(at, "tried", now - doubt.since)]

    def _failed(self, at: Address, count: int, now: float) -> None:
        doubt = self.doubts.setdefault(at, Doubt("doubted", 0, set()))
        doubt.failures += count
        if doubt.state == "doubted":
            doubt.next = now + DOUBT_SECONDS
        elif doubt.state in {"tried", "on trial"}:
            doubt.state, doubt.next = "tried", now

    def _judge(self, at: Address, endpoints: int, now: float, *, watched: bool) -> Iterable[SilenceChange]:
        doubt = self.doubts[at]
        if doubt.state == "doubted":
            room = len(self.unanswering) < endpoints // 2
            if room and doubt.failures >= FAILURES and doubt.others - set(self.unanswering):
                doubt.state, doubt.since, doubt.next = "silent", now, now + TRIAL_SECONDS[0]
                yield SilenceChange(at, "silent", 0.0, doubt.failures, TRIAL_SECONDS[0])
            elif now >= doubt.next:
                del self.doubts[at]
        elif doubt.state == "tried" and now >= doubt.next:
            doubt.trials += 1
            wait = min(TRIAL_SECONDS[0] * 2**doubt.trials, TRIAL_SECONDS[1])
            doubt.state, doubt.next = "silent", now + wait
            yield SilenceChange(at, "trial failed", now - doubt.since, doubt.failures, wait)
        elif doubt.state == "silent" and now >= doubt.next and watched:
            doubt.state = "on trial"
            yield SilenceChange(at, "trial", now - doubt.since, doubt.failures)
