"""Callbacks after changes of the kernel. An error in one of them is logged and affects nothing else."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from kubeproxy.api.addresses import Family

log = logging.getLogger(__name__)

T = TypeVar("T")


class Listeners(Generic[T]):
    """The callbacks of one IP family for one kind of event."""

    def __init__(self, family: Family) -> None:
        """Creates it without callbacks.

        Args:
            family: the IP family, for the log.
        """
        self._family = family
        self._listeners: list[Callable[[T], None]] = []

    def add(self, listener: Callable[[T], None]) -> None:
        """Adds a callback."""
        self._listeners.append(listener)

    def call(self, event: T) -> None:
        """Calls all, in the order in which they were added."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                log.exception(
                    "%(ipFamily)s: an action after a sync failed; the rules are in place",
                    {"ipFamily": self._family},
                )
