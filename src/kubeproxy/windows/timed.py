"""How long the call of HNS takes that is in progress: a call that does not return cannot be interrupted.

A client that waits for a thread which calls HNS can report the function that has not returned.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from kubeproxy.windows.calls import Calls


class CallInProgress(NamedTuple):
    """A call that has not returned.

    Attributes:
        name: the method of `calls.Calls`.
        seconds: since when.
    """

    name: str
    seconds: float


class TimedCalls:
    """The functions of the HCN API, and the one that is called now."""

    def __init__(self, calls: Calls) -> None:
        """Nothing is called.

        Args:
            calls: the functions.
        """
        self._calls = calls
        self._now: tuple[str, float] | None = None

    @property
    def calls(self) -> Calls:
        """The functions, each of which is noted while it runs."""
        return cast("Calls", self)

    @property
    def in_progress(self) -> CallInProgress | None:
        """The call that has not returned."""
        now = self._now
        return None if now is None else CallInProgress(now[0], time.monotonic() - now[1])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._calls, name)

        def timed(*arguments: Any) -> Any:
            self._now = name, time.monotonic()
            try:
                return function(*arguments)
            finally:
                self._now = None

        setattr(self, name, timed)  # found without this method from now on
        return timed
