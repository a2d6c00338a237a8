"""Manifests that cannot be used at the start: the first list waits for them where the kernel has something to lose."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.api.limits import read_file
from kubeproxy.sources.manifests import Manifests
from tests.unit.sources.manifest_files import BROKEN, Ear, follow, replace, service, undecodable


def _broken(path):
    path.write_text(service("b") + BROKEN)


def _undecodable(path):
    path.write_text(undecodable("b"))


def _nameless(path):
    path.write_text("apiVersion: v1\nkind: Service\nmetadata: {}\n")


def _dangling(path):
    path.symlink_to("none")


def _loop(path):
    path.symlink_to(path.name)


def _folder(path):
    path.mkdir()


def _pipe(path):
    os.mkfifo(path)


def _empty(path):
    path.touch()


def _unreadable(path):
    path.symlink_to("/proc/self/mem")  # permissions are nothing to root


KINDS = {
    _broken: "b.yaml cannot be used: line 8, column 1: metadata.name[0]: while parsing a flow node",
    _undecodable: "b.yaml: Service shop/b: spec.ports[0].port: Expected `int`, got `str`",
    _nameless: "b.yaml: Service (unnamed): metadata.name: is not set",
    _dangling: "b.yaml cannot be used: [Errno 2] No such file or directory",
    _loop: "b.yaml cannot be used: [Errno 40] Too many levels of symbolic links",
    _folder: "b.yaml cannot be used: it is a folder",
    _pipe: "b.yaml cannot be used: it is no regular file",
    _empty: "b.yaml cannot be used: it is empty; remove it if its objects are to go",
    _unreadable: "b.yaml cannot be used: [Errno 5] Input/output error",
}
every = pytest.mark.parametrize("spoil", KINDS, ids=lambda spoil: spoil.__name__.strip("_"))


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.asynccontextmanager
async def waiting(*paths, serves=True, look_seconds=3600):
    """The source on files where the kernel serves Services of an earlier run."""
    ear = Ear()

    def asks():
        ear.asked.append(serves)
        return serves

    ear.source = Manifests(paths, ear, look_seconds=look_seconds, serves=asks)
    ear.asked = []
    running = asyncio.ensure_future(ear.source.run())
    try:
        yield ear
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def gauges(ear):
    return {
        figure.name.removeprefix("kubeproxy_manifest_"): figure.value
        for figure in ear.source.unusable.figures()
    }


@every
async def test_the_list_is_not_complete_until_it_is_mended(tmp_path, caplog, spoil):
    caplog.set_level("INFO")
    file = tmp_path / "b.yaml"
    (tmp_path / "a.yaml").write_text(service("a"))
    spoil(file)
    async with waiting(tmp_path) as ear:
        await ear.until(lambda: "Waiting until every manifest can be used" in caplog.text)
        await ear.has_seen_all(tmp_path)
        assert not ear.said("complete")
        (reason,) = ear.source.unusable.unknown()
        assert reason.startswith(f"{tmp_path}/{KINDS[spoil]}")
        objects = spoil in (_undecodable, _nameless)
        assert gauges(ear) == {"files_unreadable": not objects, "objects_undecodable": objects}
        if not objects:
            assert caplog.text.count("b.yaml cannot be used, none of its objects is known: ") == 1
        remove(file)
        replace(file, service("b"))
        await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
        assert ear.names("Service") == {"a", "b", "mark"}
        assert not ear.said("gone")
        assert not ear.source.unusable.unknown()
        assert not any(gauges(ear).values())
        assert ear.asked == [True]
        assert caplog.text.count("Waiting until") == caplog.text.count("All manifests can be used now") == 1


@every
async def test_removing_it_is_mending_it(tmp_path, caplog, spoil):
    file = tmp_path / "b.yaml"
    spoil(file)
    async with waiting(tmp_path) as ear:
        await ear.until(lambda: "Waiting until" in caplog.text)
        remove(file)
        await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
        assert not ear.source.unusable.unknown()


@every
async def test_where_nothing_is_served_all_others_are(tmp_path, caplog, spoil):
    """After a boot there is nothing to lose: one bad file harms no other."""
    (tmp_path / "a.yaml").write_text(service("a"))
    spoil(tmp_path / "b.yaml")
    async with follow(tmp_path) as ear:
        assert ear.names("Service") == {"a"}
        assert len(ear.source.unusable.unknown()) == 1  # it is not ready
        assert "serves no Services of an earlier run: starting without what cannot be used" in caplog.text


@every
async def test_after_the_start_its_last_good_state_stays(tmp_path, caplog, spoil):
    file = tmp_path / "b.yaml"
    file.write_text(service("b"))
    async with waiting(tmp_path) as ear:
        await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
        remove(file)
        spoil(file)
        await ear.until(lambda: "last good state stays" in caplog.text or bool(ear.said("refused")))
        await ear.has_seen_all(tmp_path)
        if spoil is _nameless:  # nobody knows that this was b
            assert ear.names("Service") == {"mark"}
            return
        assert ear.names("Service") == {"b", "mark"}
        assert not ear.source.unusable.unknown()  # it is ready
        assert gauges(ear)["files_unreadable"] == (spoil is not _undecodable)
        remove(file)
        await ear.names_are("mark")
        assert not any(gauges(ear).values())
        assert not ear.asked


async def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch, caplog):
    fails = True
    listed = Path.iterdir

    def iterdir(path):
        if fails and path == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    (tmp_path / "a.yaml").write_text(service("a"))
    monkeypatch.setattr(Path, "iterdir", iterdir)
    async with waiting(tmp_path, look_seconds=0.02) as ear:
        await ear.until(lambda: "Waiting until" in caplog.text)
        (reason,) = ear.source.unusable.unknown()
        assert reason.startswith(
            f"{tmp_path} cannot be used: it cannot be listed: [Errno 13] Permission denied"
        )
        fails = False
        await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
        assert ear.names("Service") == {"a"}


async def test_a_file_that_can_be_read_again_without_having_changed(tmp_path, monkeypatch, caplog):
    """A disk or a file server may have failed for a moment."""
    fails = True

    def read_bytes(path, most):
        if fails:
            raise OSError(5, "Input/output error")
        return read_file(path, most)

    (tmp_path / "a.yaml").write_text(service("a"))
    monkeypatch.setattr("kubeproxy.sources.documents.read_file", read_bytes)
    async with waiting(tmp_path, look_seconds=0.02) as ear:
        await ear.until(lambda: "Waiting until" in caplog.text)
        fails = False
        await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
        assert ear.names("Service") == {"a"}
        assert caplog.text.count("a.yaml cannot be used") == 1


async def test_each_change_of_the_trouble_is_logged_once(tmp_path, caplog):
    caplog.set_level("INFO")
    file = tmp_path / "b.yaml"
    file.write_text(BROKEN)
    async with waiting(tmp_path, look_seconds=0.02) as ear:
        await ear.until(lambda: "Waiting until" in caplog.text)
        for _ in range(3):
            await ear.has_seen_all(tmp_path)
        assert caplog.text.count("cannot be used") == 1
        replace(file, "a: b: c\n")
        await ear.until(lambda: "line 1, column 5: mapping values are not allowed" in caplog.text)
        replace(file, service("b"))
        await ear.until(lambda: f"{file} can be used again" in caplog.text)


async def test_many_troubles_are_counted(tmp_path, caplog):
    for number in range(30):
        (tmp_path / f"{number:02}.yaml").write_text(BROKEN)
    async with waiting(tmp_path) as ear:
        await ear.until(lambda: "Waiting until" in caplog.text)
        unknown = ear.source.unusable.unknown()
        assert len(unknown) == 21
        assert unknown[-1] == "and 10 more"
        assert gauges(ear)["files_unreadable"] == 30
