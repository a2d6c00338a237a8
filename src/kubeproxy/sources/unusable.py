"""Manifests that cannot be used now: which, why, and whether their last good state is known.

A file may be unreadable, malformed or empty, a folder may not be listable, and an object of a file may not be
decodable. Each problem is logged when it begins or changes, and its end is logged once.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from kubeproxy.figures import Figure

log = logging.getLogger(__name__)

MOST_REASONS: Final = 20
"""How many problems are listed; the others are counted."""


class _Trouble(Struct, frozen=True, gc=False):
    reason: str
    kept: bool


class Unusable:
    """The problems with manifests, by path."""

    def __init__(self) -> None:
        self._paths: dict[Path, _Trouble] = {}
        self._objects: dict[Path, Sequence[str]] = {}

    def add(self, path: Path, reason: str, *, kept: bool) -> None:
        """A file or folder cannot be used.

        Args:
            path: the file or folder.
            reason: why, with line and column where they are known.
            kept: its last good state is known and stays in force.
        """
        trouble = _Trouble(reason, kept)
        if self._paths.get(path) == trouble:
            return
        self._paths[path] = trouble
        stays = "its last good state stays" if kept else "none of its objects is known"
        log.error(
            "%(file)s cannot be used, %(consequence)s: %(reason)s",
            {"file": path, "consequence": stays, "reason": reason},
        )

    def objects(self, path: Path, reasons: Sequence[str]) -> None:
        """Records undecodable objects of a file without a known good state. Their source logs them."""
        if reasons:
            self._objects[path] = reasons
        else:
            self._objects.pop(path, None)

    def usable(self, path: Path) -> None:
        """A file or folder can be used again."""
        if self._paths.pop(path, None):
            log.info("%(file)s can be used again", {"file": path})

    def forget(self, path: Path) -> None:
        """A file was deleted."""
        self._paths.pop(path, None)
        self._objects.pop(path, None)

    def unknown(self) -> list[str]:
        """What is missing because it has no known good state: one text for each file, folder or object."""
        found = list(self._unknown())
        more = len(found) - MOST_REASONS
        return [*found[:MOST_REASONS], f"and {more} more"] if more > 0 else found

    def figures(self) -> Iterable[Figure]:
        """The metrics of manifests."""
        yield Figure(
            "kubeproxy_manifest_files_unreadable",
            "gauge",
            "Manifests that cannot be read or parsed; of those read before, the last good state stays.",
            len(self._paths),
        )
        yield Figure(
            "kubeproxy_manifest_objects_undecodable",
            "gauge",
            "Objects in manifests that cannot be decoded and have no known good state.",
            sum(map(len, self._objects.values())),
        )

    def _unknown(self) -> Iterator[str]:
        for path, trouble in sorted(self._paths.items()):
            if not trouble.kept:
                yield f"{path} cannot be used: {trouble.reason}"
        for path, reasons in sorted(self._objects.items()):
            yield from (f"{path}: {reason}" for reason in reasons)
