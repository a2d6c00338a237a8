"""Detects that HNS stopped, or that a network came or went, when HNS reports it.

HNS reports nothing about load balancers, and about endpoints only when they are attached. The reports are a
help, not a guarantee: they end when HNS restarts, so they are requested again at every report of that kind.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from kubeproxy.backends.kernelspace.view import HnsView
from kubeproxy.windows.calls import HnsNotice, NoticeKind
from kubeproxy.windows.errors import HcnError

log = logging.getLogger(__name__)

_NETWORKS: Final = {NoticeKind.NETWORK_CREATE: "created", NoticeKind.NETWORK_DELETE: "deleted"}


class HnsWatch:
    """The notifications of HNS, for the drivers of both IP families. Used in the event loop."""

    def __init__(self, view: HnsView) -> None:
        self._view = view
        self._followers: dict[object, Callable[[str], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of(cls, view: HnsView) -> "HnsWatch":
        """The one of a view."""
        if view.watch is None:
            view.watch = cls(view)
        assert isinstance(view.watch, cls)
        return view.watch

    def follow(self, follower: object, disturbed: Callable[[str], None]) -> None:
        """Calls back, in the running event loop, with a description of what happened."""
        self._loop = asyncio.get_running_loop()
        if not self._followers:
            self._request()
        self._followers[follower] = disturbed

    def unfollow(self, follower: object) -> None:
        """Ends it."""
        self._followers.pop(follower, None)
        if not self._followers:
            self._view.hcn.close()

    def _request(self) -> None:
        try:
            self._view.hcn.watch(self._notified)
        except HcnError as e:
            log.warning("Changes of networks are not detected at once: %(err)s", {"err": e})

    def _notified(self, notice: HnsNotice) -> None:
        """Called in a thread of the system."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._take, notice)

    def _take(self, notice: HnsNotice) -> None:
        network = self._view.network
        words = ""
        if notice.kind == NoticeKind.SERVICE_DISCONNECT:
            words = "HNS stopped"
            self._request()
        elif notice.kind in _NETWORKS and (network is None or self._is_ours(notice, network.id)):
            words = f"a network of HNS was {_NETWORKS[NoticeKind(notice.kind)]}"
        if words:
            self._view.doubt()
            for disturbed in list(self._followers.values()):
                disturbed(words)

    @staticmethod
    def _is_ours(notice: HnsNotice, network: str) -> bool:
        created = notice.kind == NoticeKind.NETWORK_CREATE
        return created or not notice.data or network in notice.data.lower()
