"""The condition `ServicesProgrammed` of the own Node: whether this node serves the cluster's Services.

It follows /readyz. A new node is ready for the scheduler as soon as its kubelet is, and Pods that start
before the first sync cannot reach any Service. The Node Readiness Controller keeps a taint on nodes until
conditions that it is configured with are True; this is one for it.

Writing it needs a right that the proxy's role does not have (`patch` on `nodes/status`), so it is done only
if the configuration asks for it (`nodeCondition`).

A condition that becomes True is written at once. If rules of an earlier run serve meanwhile, as during an
upgrade of the proxy, False is written only when it has lasted for `SETTLE_SECONDS`, so that an upgrade does
not taint nodes whose Services work. It is written again from time to time, in case another program removed
it.
"""

import logging
import math
import time
from asyncio import Event as Flag
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.events import Api

log = logging.getLogger(__name__)

TYPE: Final = "ServicesProgrammed"
"""The type of the condition."""

LOOK_SECONDS: Final = 1.0
"""How often it is compared with /readyz."""

SETTLE_SECONDS: Final = 10.0
"""How long /readyz must fail before False is written while rules serve."""

MESSAGE_SECONDS: Final = 60.0
"""How often other reasons for the same status are written, at most."""

AGAIN_SECONDS: Final = 300.0
"""After so many seconds it is written again, unchanged."""

RETRY_SECONDS: Final = (1.0, 60.0)
"""How long to wait after a failed attempt: first, and at most; doubled in between."""

READY: Final = "RulesInKernel", "all rules are in the kernel and follow the cluster"
NOT_READY: Final = "RulesNotInKernel"

_FORBIDDEN: Final = 403
_MOST_CHARACTERS: Final = 1024


class _NodeConditionFields(Struct, frozen=True, gc=False, rename="camel"):
    type: str = ""
    status: str = ""
    last_transition_time: str = ""


class _ConditionList(Struct, frozen=True, gc=False):
    conditions: tuple[_NodeConditionFields, ...] | None = None


class _NodeWithConditions(Struct, frozen=True, gc=False):
    status: _ConditionList = _ConditionList()


class NodeCondition:
    """Writes the condition while it runs."""

    def __init__(
        self,
        node: str,
        troubles: Callable[[], list[str]],
        *,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is written before `use`.

        Args:
            node: the own Node's name.
            troubles: why the proxy is not ready; empty if it is.
            clock: monotonic time.
            wall: the time of day, in seconds since 1970.
        """
        self._path = f"/api/v1/nodes/{node}"
        self._troubles = troubles
        self._clock = clock or SystemClock()
        self._wall = wall
        self._api: Api | None = None
        self._wanted = False
        self._serves = False
        self._wake = Flag()
        self._written: tuple[bool, str] | None = None
        self._written_at = self._retry_at = -math.inf
        self._changed_at = ""
        self._not_ready_since: float | None = None
        self._delay = RETRY_SECONDS[0]
        self._complaint = ""

    def use(self, api: Api | None, *, wanted: bool) -> None:
        """What the configuration says now.

        Args:
            api: where the Node can be written; None: nowhere.
            wanted: whether it is to be written. If it was and is no longer to be, it is removed.
        """
        self._api, self._wanted = api, wanted
        self._wake.set()

    def serves(self) -> None:
        """The kernel has rules for Services, which an earlier run may have left."""
        self._serves = True

    async def run(self) -> None:
        """Follows /readyz; ends only by cancellation."""
        while True:
            self._wake.clear()
            now = self._clock.now()
            if self._api is not None and now >= self._retry_at:
                if self._wanted:
                    await self._follow(self._api, now)
                elif self._written is not None:
                    await self._attempt(self._remove(self._api), None)
            idle = not self._wanted and self._written is None
            await self._clock.wait(self._wake, None if idle else LOOK_SECONDS)

    async def _follow(self, api: Api, now: float) -> None:
        """Writes the condition if that is due."""
        troubles = self._troubles()
        ready, message = not troubles, "; ".join(troubles)[:_MOST_CHARACTERS]
        if ready:
            self._serves, self._not_ready_since = True, None
        elif self._not_ready_since is None:
            self._not_ready_since = now
        if self._written is None or self._written[0] != ready:
            settling = self._serves and self._not_ready_since is not None
            due = not settling or now - (self._not_ready_since or 0.0) >= SETTLE_SECONDS
        else:
            age = now - self._written_at
            due = age >= (AGAIN_SECONDS if self._written[1] == message else MESSAGE_SECONDS)
        if due:
            await self._attempt(self._write(api, message, ready=ready), (ready, message))

    async def _attempt(self, work: Awaitable[None], then: tuple[bool, str] | None) -> None:
        """Changes the Node; if that fails, it is tried again later."""
        try:
            await work
        except Exception as e:  # whatever it is, it must not end the proxy
            self._retry_at = self._clock.now() + self._delay
            self._delay = min(2 * self._delay, RETRY_SECONDS[1])
            if self._complaint != str(e):
                self._complaint = str(e)
                forbidden = getattr(e, "status", 0) == _FORBIDDEN
                log.warning(
                    "The condition %(condition)s of the Node cannot be written, trying again: %(err)s%(hint)s",
                    {
                        "condition": TYPE,
                        "err": e,
                        "hint": "; it needs the verb patch on nodes/status" if forbidden else "",
                    },
                )
            return
        self._written, self._written_at = then, self._clock.now()
        self._delay, self._complaint = RETRY_SECONDS[0], ""

    async def _write(self, api: Api, message: str, *, ready: bool) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall()))
        if self._written is None:
            self._changed_at = await self._last_change(api, ready=ready) or now
        elif self._written[0] != ready:
            self._changed_at = now
        reason, fine = READY if ready else (NOT_READY, "")
        condition = {
            "type": TYPE,
            "status": _text(ready=ready),
            "reason": reason,
            "message": message or fine,
            "lastHeartbeatTime": now,
            "lastTransitionTime": self._changed_at,
        }
        await self._patch(api, condition)
        if self._written is None or self._written[0] != ready:
            log.info(
                "The condition %(condition)s of the Node is %(status)s now: %(reason)s",
                {"condition": TYPE, "status": condition["status"], "reason": condition["message"]},
            )

    async def _remove(self, api: Api) -> None:
        await self._patch(api, {"type": TYPE, "$patch": "delete"})

    async def _patch(self, api: Api, condition: Mapping[str, str]) -> None:
        body = {"status": {"conditions": [condition]}}
        await api.request("PATCH", f"{self._path}/status", body, strategic=True)

    async def _last_change(self, api: Api, *, ready: bool) -> str:
        """Since when the Node has the condition with this status; "" if it has not."""
        found = msgspec.json.decode(await api.request("GET", self._path), type=_NodeWithConditions)
        for each in found.status.conditions or ():
            if (each.type, each.status) == (TYPE, _text(ready=ready)):
                return each.last_transition_time
        return ""


def _text(*, ready: bool) -> str:
    return "True" if ready else "False"
