"""What is wrong with objects: logged once, and again only when it is something else.

Objects come again and again, a Node every few seconds with its status; what was said of one need not be repeated.
"""

import logging
from collections.abc import Iterable

from kubeproxy.api import types
from kubeproxy.log import ObjectRef

log = logging.getLogger(__name__)

MOST = 20
"""As many are logged of an object; a slice of thousands of endpoints may have something wrong with each."""

Name = tuple[str, str, str]
"""Kind, namespace and name of an object; the namespace is empty where its kind has none."""


class Complaints:
    """What was last said of each object with which something is wrong."""

    def __init__(self) -> None:
        self._known: dict[Name, tuple[tuple[str, str], ...]] = {}

    def __len__(self) -> int:
        """With how many objects something is wrong."""
        return len(self._known)

    def report(self, name: Name, found: Iterable[tuple[str, str]]) -> None:
        """Logs what is wrong with an object, unless that was the last said of it.

        Args:
            name: the object.
            found: field path and message of each part that was left out; none if all is well.
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
        """The object is gone; if it comes again, all is said again."""
        self._known.pop(name, None)
