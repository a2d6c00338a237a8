"""Which targets of a group have not been removed, where connections to removed targets are ended.

The daemon's side says which targets there are; what differs is sent when the process reads, the last state of
each group only. The process ends a connection a second after its target was removed: an endpoint that moves
to another EndpointSlice is removed for a moment. A group that is new, or is no longer there, keeps its
connections.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from kubeproxy.relay.table import Take
from kubeproxy.relay.tallies import Tallies
from kubeproxy.relay.values import Presence, Target

if TYPE_CHECKING:  # it needs epoll
    from kubeproxy.relay.loop import PollLoop

GRACE_SECONDS: Final = 1.0

Targets = tuple[Target, ...]


class PresenceTable:
    """The groups as the process should know them. Not thread-safe."""

    def __init__(self) -> None:
        self._groups: dict[str, Targets] = {}
        self._unsent: dict[str, None] = {}

    def change(self, groups: Mapping[str, Targets | None]) -> bool:
        """Some groups have these targets now; None if their connections do not end.

        Returns whether something has changed.
        """
        for group, targets in groups.items():
            if targets != self._groups.get(group):
                self._unsent[group] = None
                if targets is None:
                    del self._groups[group]
                else:
                    self._groups[group] = targets
        return bool(self._unsent)

    def replace(self, groups: Mapping[str, Targets], kept: Collection[str]) -> bool:
        """These are all groups; those that are kept stay as they are.

        Returns whether something has changed.
        """
        gone = self._groups.keys() - groups.keys() - set(kept)
        return self.change({**dict.fromkeys(gone), **groups})

    def restart(self) -> None:
        """There is a new process, which knows no group."""
        self._unsent = dict.fromkeys(self._groups)

    def send(self, take: Take) -> bool:
        """Sends what the process does not know. Returns whether everything has been sent."""
        for group in list(self._unsent):
            if not take(Presence(group, self._groups.get(group)), None):
                return False
            del self._unsent[group]
        return True


class RemovedTargets:
    """The process' side: ends connections.

    Attributes:
        ended: how many were ended.
    """

    def __init__(self, loop: "PollLoop", tallies: Tallies) -> None:
        self._loop = loop
        self._tallies = tallies
        self._groups: dict[str, frozenset[Target]] = {}
        self.ended = 0

    def change(self, message: Presence) -> None:
        """A group has other targets."""
        before = self._groups.pop(message.group, frozenset())
        if message.targets is None:
            return
        after = self._groups[message.group] = frozenset(message.targets)
        if gone := before - after:
            self._loop.after(GRACE_SECONDS, partial(self._end, message.group, gone))

    def _end(self, group: str, gone: frozenset[Target]) -> None:
        there = self._groups.get(group)
        for target in gone - there if there is not None else ():
            for carried in self._tallies.carried(group, target):
                carried.lost_target()
                self.ended += 1
