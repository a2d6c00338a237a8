"""Objects from files: Services without a Kubernetes API server.

Each path is a file, or a folder whose *.yaml, *.yml and *.json files are read (not hidden ones, nor those of its
sub-folders). A file may hold many documents and List kinds. Folders are watched; what changed is found by comparing
inode, time of change and size, so nothing unchanged is read twice. A file that cannot be read or parsed keeps its last
good state; so does an empty one, which is about to be written, and a folder that is suddenly not there. Of an object
that stands in several files the first that told it counts. An object is gone only when all that changed was read and no
file holds it: a file may be renamed, and an object moved to another file, without a moment in between.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Final

from msgspec import structs

from kubeproxy.api import types
from kubeproxy.api.flatten import DEFAULT_NAMESPACE
from kubeproxy.linux import inotify
from kubeproxy.sources.base import Sink
from kubeproxy.sources.documents import Decode, documents

log = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
LOOK_SECONDS: Final = 5.0

_SETTLE_SECONDS = 0.01
_AT_ONCE = 500
_MOST_ROUNDS = 10

Name = tuple[str, str, str]
Signature = tuple[int, int, int]

_WITHOUT_NAMESPACE: Final = {"Node", "ServiceCIDR"}


class Manifests:
    """The objects in files. See `sources.base.Source`.

    Attributes:
        look_seconds: how often we look although nothing was notified.
    """

    def __init__(self, paths: Sequence[Path], sink: Sink, *, look_seconds: float = LOOK_SECONDS) -> None:
        """Names the files.

        Args:
            paths: files and folders.
            sink: whom to tell.
            look_seconds: see the attribute; linked files and some file systems tell nothing.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a path is neither a file nor a folder.
        """
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f"--manifests: {path} does not exist")
            if not (path.is_file() or path.is_dir()):
                raise ValueError(f"--manifests: {path} is neither a file nor a folder")
        self._paths = [path.absolute() for path in paths]
        self._sink = sink
        self.look_seconds = look_seconds
        self._signatures: dict[Path, Signature] = {}
        self._objects: dict[Path, set[Name]] = {}
        self._left_out: dict[Path, dict[Name, types.Object]] = {}
        self._owner: dict[Name, Path] = {}
        self._released: dict[Name, None] = {}
        self._unlisted: set[Path] = set()

    async def run(self) -> None:
        """See `Source`."""
        changed = asyncio.Event()
        folders = {path if path.is_dir() else path.parent for path in self._paths}
        with contextlib.ExitStack() as stack:
            try:
                watch_again = stack.enter_context(inotify.changes(folders, changed.set))
            except OSError as e:
                log.warning("No notifications of changed files, looking every %g s: %s", self.look_seconds, e)
                watch_again = _nothing
            await self._look()
            for kind in types.KINDS:
                self._sink.complete(kind)
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.look_seconds):
                        await changed.wait()
                    await asyncio.sleep(_SETTLE_SECONDS)
                changed.clear()
                watch_again()
                await self._look()

    async def _look(self) -> None:
        """Reads what changed, until nothing does, and settles then whose the objects are that changed places."""
        before = {(path, name) for path, names in self._left_out.items() for name in names}
        for _ in range(_MOST_ROUNDS):  # a file may change all the time
            found = {file: signature for file in self._files() if (signature := self._signature(file))}
            for path in sorted(self._signatures.keys() - found.keys()):
                log.info("%s is gone", path)
                del self._signatures[path]
                self._left_out.pop(path, None)
                self._release(self._objects.pop(path, set()))
            changed = [(p, s) for p, s in found.items() if self._signatures.get(p) != s]
            if not changed:
                break
            for path, signature in changed:
                self._signatures[path] = signature
                await self._read(path)
        for name in self._released:
            self._pass_on(name)
        self._released.clear()
        for path, names in self._left_out.items():
            for name in sorted(n for n in names if (path, n) not in before):
                log.warning("%s of %s is left out: it is in %s, too", _told(name), path, self._owner[name])

    def _files(self) -> Iterator[Path]:
        """The files of all paths; those we know of a folder that cannot be listed."""
        for path in self._paths:
            try:
                inside = sorted(path.iterdir())
            except NotADirectoryError:
                yield path
            except OSError as e:
                yield path
                known = [file for file in self._signatures if file.parent == path]
                if known and path not in self._unlisted:
                    self._unlisted.add(path)
                    log.warning("%s cannot be listed, its last state stays: %s", path, e)
                yield from known
            else:
                self._unlisted.discard(path)
                yield from (f for f in inside if f.suffix in SUFFIXES and not f.name.startswith("."))

    def _signature(self, file: Path) -> Signature | None:
        """How a file looks now; None if there is none.

        Only its folder can say that. If that is not there, or the file cannot be looked at, it is as it was.
        """
        try:
            status = file.stat()
        except FileNotFoundError:
            folder_is_there = os.path.isdir(file.parent)  # noqa: PTH112 Path.is_dir may raise
            return None if folder_is_there else self._signatures.get(file)
        except OSError:
            return self._signatures.get(file)
        return (status.st_ino, status.st_ctime_ns, status.st_size) if S_ISREG(status.st_mode) else None

    async def _read(self, path: Path) -> None:
        """Tells what a file holds now."""
        if self._signatures[path][2] == 0 and self._objects.get(path):
            log.warning("%s is empty, its last good state stays; remove it if its objects are to go", path)
            return
        try:
            given = await asyncio.to_thread(lambda: list(documents(path)))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as e:
            log.error("%s cannot be used, its last good state stays: %s", path, e)  # noqa: TRY400
            return
        refused: list[types.UndecodableError] = []
        mine: set[Name] = set()
        left_out: dict[Name, types.Object] = {}
        # Some at a time: the objects of a large file take several times the memory that is kept of them.
        for start in range(0, len(given), _AT_ONCE):
            found = await asyncio.to_thread(_decode, given[start : start + _AT_ONCE], refused)
            for name, obj in found:
                if name in mine or name in left_out:
                    log.warning("%s stands in %s more than once; the last counts", _told(name), path)
                if self._owner.setdefault(name, path) == path:
                    mine.add(name)
                    self._released.pop(name, None)
                    self._sink.set(obj)
                else:
                    left_out[name] = obj
        for error in refused:
            self._sink.refused(error.kind, f"{error.name} in {path.name}", error.reason)
        before = self._objects.get(path, set())
        stays = {_named(error) for error in refused} & before
        self._objects[path] = mine | stays
        self._left_out[path] = left_out
        self._release(before - mine - stays)
        log.info("%s: %d objects", path, len(mine))

    def _release(self, names: set[Name]) -> None:
        """A file holds these objects no more; whether another does is seen when all is read."""
        for name in sorted(names):
            del self._owner[name]
            self._released[name] = None

    def _pass_on(self, name: Name) -> None:
        """An object is now that of another file that holds it, or gone."""
        for path, left_out in self._left_out.items():
            if name in left_out:
                self._owner[name] = path
                self._objects[path].add(name)
                self._sink.set(left_out.pop(name))
                return
        self._sink.gone(*name)


def _decode(
    given: Sequence[tuple[str, Decode]], refused: list[types.UndecodableError]
) -> list[tuple[Name, types.Object]]:
    """Decodes objects; those that do not decode are told in `refused`."""
    found = []
    for kind, decode in given:
        try:
            obj = decode()
        except types.UndecodableError as e:
            refused.append(e)
            continue
        meta = obj.metadata
        name = (kind, _namespace(kind, meta.namespace), meta.name)
        if name[1] != meta.namespace:
            obj = structs.replace(obj, metadata=structs.replace(meta, namespace=name[1]))
        found.append((name, obj))
    return found


def _namespace(kind: str, given: str) -> str:
    return "" if kind in _WITHOUT_NAMESPACE else given or DEFAULT_NAMESPACE


def _named(error: types.UndecodableError) -> Name:
    """The name of an object that does not decode: of "namespace/name"."""
    namespace, _, own = error.name.rpartition("/")
    return error.kind, _namespace(error.kind, namespace), own


def _told(name: Name) -> str:
    kind, namespace, own = map(types.printable, name)
    return f"{kind} {namespace}/{own}" if namespace else f"{kind} {own}"


def _nothing() -> None:
    """Where there are no notifications there is nothing to watch."""
