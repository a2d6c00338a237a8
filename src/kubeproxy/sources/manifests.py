"""Objects from files: Services without a Kubernetes API server.

Each path is a file, or a folder whose *.yaml, *.yml and *.json files are read (not those of its sub-folders). A file
may hold many documents and List kinds. Folders are watched; what changed is found by comparing size, time and inode,
so nothing unchanged is read twice. A file that cannot be read or parsed keeps its last good state, and so does a
folder that is suddenly not there. Of an object that stands in several files the first that told it counts.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from kubeproxy.api import types
from kubeproxy.linux import inotify
from kubeproxy.sources.base import Sink
from kubeproxy.sources.documents import documents

log = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
LOOK_SECONDS: Final = 5.0
"""How often we look although nothing was notified: linked files and some file systems tell nothing."""

_SETTLE_SECONDS = 0.01
_YIELD_EVERY = 500

Name = tuple[str, str, str]
Signature = tuple[int, int, int]


class Manifests:
    """The objects in files. See `sources.base.Source`."""

    def __init__(self, paths: Sequence[Path], sink: Sink) -> None:
        """Names the files.

        Args:
            paths: files and folders.
            sink: whom to tell.

        Raises:
            FileNotFoundError: a path does not exist.
        """
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"--manifests: {path} does not exist")
        self._paths = [path.absolute() for path in paths]
        self._sink = sink
        self._signatures: dict[Path, Signature] = {}
        self._objects: dict[Path, set[Name]] = {}
        self._owner: dict[Name, Path] = {}
        self._second: dict[Name, set[Path]] = {}

    async def run(self) -> None:
        """See `Source`."""
        changed = asyncio.Event()
        folders = {path if path.is_dir() else path.parent for path in self._paths}
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(inotify.changes(folders, changed.set))
            except OSError as e:
                log.warning("No notifications of changed files, looking every %g s: %s", LOOK_SECONDS, e)
            await self._look()
            for kind in types.KINDS:
                self._sink.complete(kind)
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_SECONDS)
                    await asyncio.sleep(_SETTLE_SECONDS)
                changed.clear()
                await self._look()

    async def _look(self) -> None:
        """Reads what changed, until nothing does."""
        while True:
            found = dict(self._files())
            for path in [p for p in self._signatures if p not in found and self._is_gone(p)]:
                log.info("%s is gone", path)
                del self._signatures[path]
                self._release(path, self._objects.pop(path, set()))
            changed = [(p, s) for p, s in found.items() if self._signatures.get(p) != s]
            if not changed:
                return
            for path, signature in changed:
                self._signatures[path] = signature
                await self._read(path)

    def _files(self) -> Iterator[tuple[Path, Signature]]:
        for path in self._paths:
            try:
                files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
            except OSError as e:
                log.warning("%s cannot be listed, its last state stays: %s", path, e)
                continue
            for file in files:
                with contextlib.suppress(OSError):
                    stat = file.stat()
                    yield file, (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _is_gone(self, path: Path) -> bool:
        """A file is gone when its folder says so; a missing folder says nothing."""
        return path.parent.is_dir()

    async def _read(self, path: Path) -> None:
        """Tells what a file holds now, and what it held before and does no more."""
        try:
            found, refused = await asyncio.to_thread(_parse, path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as e:
            log.error("%s cannot be used, its last good state stays: %s", path, e)  # noqa: TRY400
            return
        for error in refused:
            self._sink.refused(error.kind, f"{error.name} in {path.name}", error.reason)
        mine: set[Name] = set()
        for count, (name, obj) in enumerate(found.items()):
            owner = self._owner.setdefault(name, path)
            if owner == path:
                mine.add(name)
                self._sink.set(obj)
            elif path not in self._second.setdefault(name, set()):
                self._second[name].add(path)
                log.warning("%s %s/%s of %s is left out: it is in %s, too", *name, path, owner)
            if count % _YIELD_EVERY == _YIELD_EVERY - 1:
                await asyncio.sleep(0)
        before = self._objects.get(path, set())
        stays = {(error.kind, *_split(error.name)) for error in refused} & before
        self._objects[path] = mine | stays
        self._release(path, before - mine - stays)
        log.info("%s: %d objects", path, len(mine))

    def _release(self, path: Path, names: set[Name]) -> None:
        """Objects a file holds no more are gone, unless another file holds them: that one is read again."""
        for name in names:
            del self._owner[name]
            self._sink.gone(*name)
            for other in self._second.pop(name, ()):
                if other != path:
                    self._signatures.pop(other, None)


def _parse(path: Path) -> tuple[dict[Name, types.Object], list[types.UndecodableError]]:
    """The objects of a file by name, and those that do not decode."""
    found: dict[Name, types.Object] = {}
    refused: list[types.UndecodableError] = []
    for kind, decode in documents(path):
        try:
            obj = decode()
        except types.UndecodableError as e:
            refused.append(e)
            continue
        found[kind, obj.metadata.namespace, obj.metadata.name] = obj
    return found, refused


def _split(name: str) -> tuple[str, str]:
    """Namespace and name of "namespace/name"."""
    namespace, _, own = name.rpartition("/")
    return namespace, own
