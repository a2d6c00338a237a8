"""A sink that keeps what it receives, for tests of sources."""

import asyncio
from collections.abc import Callable

from kubeproxy.api.types import Object

Name = tuple[str, str, str]


class Recorder:
    """What a source reported.

    Attributes:
        view: objects by (kind, namespace, name), as they stand.
        calls: everything in order, as ("set", kind, namespace, name) and so on.
    """

    def __init__(self) -> None:
        self.view: dict[Name, Object] = {}
        self.calls: list[tuple[str, ...]] = []
        self._heard = asyncio.Event()

    def set(self, obj: Object) -> None:
        name = (type(obj).__name__, obj.metadata.namespace, obj.metadata.name)
        self.view[name] = obj
        self._say("set", *name)

    def gone(self, kind: str, namespace: str, name: str) -> None:
        del self.view[kind, namespace, name]  # what was never set cannot go
        self._say("gone", kind, namespace, name)

    def complete(self, kind: str) -> None:
        self._say("complete", kind)

    def refused(self, kind: str, name: str, reason: str, *, kept: bool, file: str = "") -> None:
        self._say(
            "refused", kind, f"{name} in {file}" if file else name, reason, "kept" if kept else "unknown"
        )

    def said(self, what: str, kind: str = "") -> list[tuple[str, ...]]:
        """The calls of one sort."""
        return [call for call in self.calls if call[0] == what and kind in ("", call[1])]

    def names(self, kind: str) -> frozenset[str]:
        """The names of a kind's objects as they stand."""
        return frozenset(name for of_kind, _, name in self.view if of_kind == kind)

    async def until(self, true: Callable[[], bool], seconds: float = 20) -> None:
        """Waits until something holds; it is checked whenever the source reports something, and at intervals."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    self._heard.clear()
                    try:
                        async with asyncio.timeout(0.02):
                            await self._heard.wait()
                    except TimeoutError:
                        pass
        except TimeoutError:
            raise AssertionError(f"did not come true; last calls: {self.calls[-10:]}") from None

    def _say(self, *call: str) -> None:
        self.calls.append(call)
        self._heard.set()
