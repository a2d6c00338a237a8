"""Objects from files: Services without a Kubernetes API server.

Each path is a file, or a folder whose *.yaml, *.yml and *.json files are read (not hidden ones, nor those of
its sub-folders). A file may hold many documents and List kinds. Folders are watched; what changed is found by
comparing inode, time of change and size, so nothing unchanged is read twice. A file that cannot be read or
parsed keeps its last good state; so does an empty one, which is about to be written, and a folder that has
disappeared. If an object is in several files, the file that was read first with it is used. An object is
deleted only when everything that changed was read and no file has it: so a file can be renamed, and an object
moved to another file, without an interruption.

At the start there is no last good state in memory, but the kernel may have one: the rules of an earlier run.
So the first list is not complete while a file or object cannot be used, and nothing is written. If the kernel
serves nothing, as after a boot, nothing can be lost: the list is then complete without the unusable files and
objects.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final

from msgspec import structs

from kubeproxy.api import types
from kubeproxy.api.flatten import DEFAULT_NAMESPACE
from kubeproxy.figures import Figure
from kubeproxy.linux import inotify
from kubeproxy.log import ObjectRef
from kubeproxy.sources import doubts
from kubeproxy.sources.base import Sink
from kubeproxy.sources.documents import Decode, documents
from kubeproxy.sources.unusable import Unusable

log = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
LOOK_SECONDS: Final = 5.0

_SETTLE_SECONDS = 0.01
_AT_ONCE = 500
_MOST_ROUNDS = 10

Name = tuple[str, str, str]
Signature = tuple[int, int, int]

_UNSEEN: Final[Signature] = (0, 0, -1)
"""The signature of a file whose status cannot be read."""

_WITHOUT_NAMESPACE: Final = {"Node", "ServiceCIDR"}


class Manifests:
    """The objects in files. See `sources.base.Source`.

    Attributes:
        look_seconds: seconds between two checks without a notification.
        unusable: the files and objects that cannot be used now.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sink: Sink,
        *,
        look_seconds: float = LOOK_SECONDS,
        serves: Callable[[], bool] | None = lambda: False,
    ) -> None:
        """Reads nothing before `run`.

        Args:
            paths: files and folders.
            sink: receives the objects.
            look_seconds: see the attribute; links to files and some file systems cause no notifications.
            serves: whether the kernel serves Services of an earlier run, which must not be removed because
                their manifests cannot be read. Called in a thread, and only if something cannot be used at
                the start. None: nothing is written from what is read, so nothing can be removed.

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
        self._folders = {path for path in self._paths if path.is_dir()}
        self._listed: set[Path] = set()
        self._again: set[Path] = set()
        self._complete = False
        self._waits = False
        self.unusable = Unusable()
        self._doubts = doubts.Doubts()
        self._serves = serves

    async def run(self) -> None:
        """See `Source`."""
        changed = asyncio.Event()
        folders = {path if path.is_dir() else path.parent for path in self._paths}
        with contextlib.ExitStack() as stack:
            try:
                watch_again = stack.enter_context(inotify.changes(folders, changed.set))
            except OSError as e:
                log.log(
                    logging.INFO if sys.platform == "win32" else logging.WARNING,  # there it is always so
                    "There are no notifications of changed files, they are checked every %(seconds)g s: %(err)s",
                    {"seconds": self.look_seconds, "err": e},
                )
                watch_again = _nothing
            while True:
                await self.look()
                if not self._complete and await self._may_complete():
                    self._complete = True
                    for kind in types.KINDS:
                        self._sink.complete(kind)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.look_seconds):
                        await changed.wait()
                    await asyncio.sleep(_SETTLE_SECONDS)
                changed.clear()
                watch_again()

    def figures(self) -> Iterable[Figure]:
        """The metrics of manifests."""
        yield from self.unusable.figures()
        yield from self._doubts.figures()

    async def _may_complete(self) -> bool:
        """Whether the first list is complete, or is treated as complete because nothing can be lost."""
        unknown = self.unusable.unknown()
        if not unknown:
            if self._waits:
                log.info("All manifests can be used now")
            return True
        if self._waits:
            return False
        if self._serves is None:
            return True
        self._waits = await asyncio.to_thread(self._serves)
        if self._waits:
            log.error(
                "Waiting until every manifest can be used, or is removed: the kernel serves Services of an earlier run,"
                " and its rules stay as they are",
            )
        else:
            log.warning(
                "The kernel serves no Services of an earlier run: starting without what cannot be used"
            )
        return not self._waits

    async def look(self) -> None:
        """Reads files until none has changed, and then assigns the objects that were moved between files."""
        before = {(path, name) for path, names in self._left_out.items() for name in names}
        for path in self._again & self._signatures.keys():
            self._signatures[path] = _UNSEEN
        self._again.clear()
        for _ in range(_MOST_ROUNDS):  # a file may change all the time
            found = {file: signature for file in self._files() if (signature := self._signature(file))}
            for path in sorted(self._signatures.keys() - found.keys()):
                log.info("%(file)s is gone", {"file": path})
                del self._signatures[path]
                self._left_out.pop(path, None)
                self.unusable.forget(path)
                self._doubts.forget(path)
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
                log.warning(
                    "%(kind)s %(object)s of %(file)s is left out: it is in %(otherFile)s, too",
                    {"kind": name[0], "object": _ref(name), "file": path, "otherFile": self._owner[name]},
                )

    def _files(self) -> Iterator[Path]:
        """The files of all paths; the known ones of a folder that cannot be listed."""
        for path in self._paths:
            try:
                inside = sorted(path.iterdir())
            except NotADirectoryError:
                yield path
            except OSError as e:
                if path in self._folders:
                    self.unusable.add(path, f"it cannot be listed: {e}", kept=path in self._listed)
                    yield from [file for file in self._signatures if file.parent == path]
                else:
                    yield path
            else:
                self._listed.add(path)
                if path in self._folders:
                    self.unusable.usable(path)
                yield from (f for f in inside if f.suffix in SUFFIXES and not f.name.startswith("."))

    def _signature(self, file: Path) -> Signature | None:
        """The signature of a file, usable or not; None if its folder exists and the file does not."""
        try:
            try:
                status = file.stat()
            except OSError:
                status = file.lstat()  # a link that leads nowhere
        except FileNotFoundError:
            folder_is_there = os.path.isdir(file.parent)  # noqa: PTH112 Path.is_dir may raise
            return None if folder_is_there else _UNSEEN
        except OSError:
            return _UNSEEN
        return status.st_ino, status.st_ctime_ns, status.st_size

    async def _documents(self, path: Path) -> list[tuple[str, Decode]] | None:
        """The content of a file; None if it cannot be used."""
        had_objects = bool(self._objects.get(path)) or not self._complete
        try:
            given = await asyncio.to_thread(_given, path, may_be_empty=not had_objects)
        except (OSError, ValueError) as e:
            if isinstance(e, OSError):
                if _was_removed(path):
                    return None
                self._again.add(path)
            self.unusable.add(path, str(e), kept=path in self._objects)
            return None
        self.unusable.usable(path)
        return given

    async def _read(self, path: Path) -> None:
        """Reports the objects that a file has now."""
        given = await self._documents(path)
        if given is None:
            return
        refused: list[types.UndecodableError] = []
        doubted: dict[Name, Sequence[str]] = {}
        mine: set[Name] = set()
        left_out: dict[Name, types.Object] = {}
        # Some at a time: the objects of a large file take several times the memory that is kept of them.
        for start in range(0, len(given), _AT_ONCE):
            found = await asyncio.to_thread(_decode, given[start : start + _AT_ONCE], refused, doubted)
            for name, obj in found:
                if name in mine or name in left_out:
                    log.warning(
                        "%(kind)s %(object)s stands in %(file)s more than once; the last counts",
                        {"kind": name[0], "object": _ref(name), "file": path},
                    )
                if self._owner.setdefault(name, path) == path:
                    mine.add(name)
                    self._released.pop(name, None)
                    self._sink.set(obj)
                else:
                    left_out[name] = obj
        before = self._objects.get(path, set())
        stays = {_named(error) for error in refused} & before
        for error in refused:
            kept = _named(error) in stays
            self._sink.refused(error.kind, error.name, error.reason, kept=kept, file=path.name)
        self._doubts.report(path, doubted)
        self.unusable.objects(path, [str(error) for error in refused if _named(error) not in stays])
        self._objects[path] = mine | stays
        self._left_out[path] = left_out
        self._release(before - mine - stays)
        log.info("%(file)s: %(count)d object(s)", {"file": path, "count": len(mine)})

    def _release(self, names: set[Name]) -> None:
        """Records that a file has these objects no longer; another file may have them, see `look`."""
        for name in sorted(names):
            del self._owner[name]
            self._released[name] = None

    def _pass_on(self, name: Name) -> None:
        """Assigns an object to another file that has it, or reports it as deleted."""
        for path, left_out in self._left_out.items():
            if name in left_out:
                self._owner[name] = path
                self._objects[path].add(name)
                self._sink.set(left_out.pop(name))
                return
        self._sink.gone(*name)


def _was_removed(path: Path) -> bool:
    """Whether a file was deleted, which is not an error; a broken symbolic link is one."""
    return path.parent.is_dir() and not os.path.lexists(path)


def _given(path: Path, *, may_be_empty: bool) -> list[tuple[str, Decode]]:
    """The content of a file. A pipe is not opened, because that would block.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a manifest.
    """
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError("it is a folder" if S_ISDIR(status.st_mode) else "it is no regular file")
    found = list(documents(path))
    if not (found or status.st_size or may_be_empty):
        raise ValueError("it is empty; remove it if its objects are to go")
    return found


def _decode(
    given: Sequence[tuple[str, Decode]],
    refused: list[types.UndecodableError],
    doubted: dict[Name, Sequence[str]],
) -> list[tuple[Name, types.Object]]:
    """Decodes objects; adds the errors of undecodable ones to `refused`, and warnings to `doubted`."""
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
        if messages := doubts.of(decode, obj):
            doubted[name] = messages
    return found


def _namespace(kind: str, given: str) -> str:
    return "" if kind in _WITHOUT_NAMESPACE else given or DEFAULT_NAMESPACE


def _named(error: types.UndecodableError) -> Name:
    """The name of an object that does not decode: of "namespace/name"."""
    namespace, _, own = error.name.rpartition("/")
    return error.kind, _namespace(error.kind, namespace), own


def _ref(name: Name) -> ObjectRef:
    return ObjectRef(*map(types.printable, name[1:]))


def _nothing() -> None:
    """Where there are no notifications there is nothing to watch."""
