"""Complaints about objects: each is logged once, and again only when it has changed.

Objects are received repeatedly, for example a Node every few seconds with its status, so an unchanged
complaint is not repeated.
"""

import logging
from collections.abc import Iterable

from kubeproxy.api import types
from kubeproxy.log import ObjectRef

log = logging.getLogger(__name__)

MOST = 20
"""The number of complaints that are logged for one object.

A slice may have thousands of invalid endpoints.
"""

Name = tuple[str, str, str]
"""Kind, namespace and name of an object; the namespace is empty if its kind has none."""


class Complaints:
    """The last complaints about each object that has any."""

    def __init__(self) -> None:
        self._known: dict[Name, tuple[tuple[str, str], ...]] = {}

    def __len__(self) -> int:
        """The number of objects with complaints."""
        return len(self._known)

    def report(self, name: Name, found: Iterable[tuple[str, str]]) -> None:
        """Logs the complaints about an object, unless they are the same as last time.

        Args:
            name: the object.
            found: field path and message of each part that was left out; empty if there is none.
        """
        complaints = tuple(found)
        if (more := len(complaints) - MOST) > 0:
            complaints = (*complaints[:MOST], ("(others)", f"{more} more parts are wrong and left out"))
        if self._known.get(name, ()) == complaints:
            return
        if not complaints:
            del self._known[name]
            return
        self._known[name] = complaints
        kind, namespace, own = map(types.printable, name)
        for field, message in complaints:
            log.warning(
                "%(kind)s %(object)s: %(field)s: %(reason)s",
                {"kind": kind, "object": ObjectRef(namespace, own), "field": field, "reason": message},
            )

    def forget(self, name: Name) -> None:
        """Removes an object; if it is added again, its complaints are logged again."""
        self._known.pop(name, None)
