"""The real kernel telling of changed files."""

import asyncio
import contextlib
import errno
import os
import resource
import select
from pathlib import Path

import pytest

from kubeproxy.linux import inotify

SECONDS = 20


class Ear:
    """Hears that something changed."""

    def __init__(self):
        self.heard = asyncio.Event()

    async def hears(self, do):
        """Does something, and waits until it is told of."""
        await asyncio.sleep(0)
        self.heard.clear()
        do()
        async with asyncio.timeout(SECONDS):
            await self.heard.wait()


@pytest.fixture
async def ear():
    return Ear()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def told_by_the_kernel():
    """Whether there is word that was not listened to."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(link.readlink()) == "anon_inode:inotify":
                return bool(select.select([int(link.name)], [], [], 0)[0])
    raise AssertionError("nobody listens")


def write(file, text="x"):
    return lambda: file.write_text(text)


async def test_every_way_to_change_a_file(tmp_path, ear):
    folder, elsewhere = tmp_path / "here", tmp_path / "there"
    folder.mkdir()
    elsewhere.mkdir()
    file = folder / "a"
    with inotify.changes([folder], ear.heard.set):
        await ear.hears(write(file))
        await ear.hears(write(file, "y"))
        await ear.hears(lambda: file.chmod(0o600))
        await ear.hears(lambda: file.rename(folder / "b"))
        await ear.hears(lambda: (folder / "b").rename(elsewhere / "b"))
        await ear.hears(lambda: (elsewhere / "b").rename(file))
        await ear.hears(file.unlink)


async def test_a_file_is_told_when_it_is_written_whole(tmp_path, ear):
    with inotify.changes([tmp_path], ear.heard.set), (tmp_path / "a").open("w") as file:
        file.write("half of it")
        file.flush()
        assert not told_by_the_kernel()
        file.write("the rest")
        await ear.hears(file.close)


async def test_reading_is_not_told(tmp_path, ear):
    (tmp_path / "a").write_text("x")
    with inotify.changes([tmp_path], ear.heard.set):
        (tmp_path / "a").read_text()
        list(tmp_path.iterdir())
        (tmp_path / "a").stat()
        assert not told_by_the_kernel()
        (tmp_path / "a").chmod(0o600)
        assert told_by_the_kernel()


async def test_a_replaced_link(tmp_path, ear):
    """How the kubelet changes a ConfigMap's volume."""
    for name in ("..one", "..two"):
        (tmp_path / name).mkdir()
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "..data_tmp").symlink_to("..two")
    with inotify.changes([tmp_path], ear.heard.set):
        await ear.hears(lambda: (tmp_path / "..data_tmp").rename(tmp_path / "..data"))


async def test_many_folders(tmp_path, ear):
    folders = [tmp_path / f"{i}" for i in range(5)]
    for folder in folders:
        folder.mkdir()
    with inotify.changes(folders, ear.heard.set):
        for folder in folders:
            await ear.hears(write(folder / "a"))


QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


async def test_more_changes_than_the_kernel_remembers(tmp_path, ear):
    def storm():
        file = tmp_path / "a"
        for _ in range(QUEUE // 3 + 10):  # made, closed and removed: the kernel counts each
            file.touch()
            file.unlink()

    with inotify.changes([tmp_path], ear.heard.set):
        await ear.hears(storm)
        await ear.hears(write(tmp_path / "b"))


async def test_a_folder_that_came_back_is_watched_again(tmp_path, ear):
    folder = tmp_path / "here"
    folder.mkdir()
    with inotify.changes([folder, tmp_path / "."], ear.heard.set) as again:
        await ear.hears(folder.rmdir)
        again()  # is not there: no harm
        folder.mkdir()
        again()
        again()
        await ear.hears(write(folder / "a"))


async def test_a_folder_that_is_a_link_to_another_now(tmp_path, ear):
    link = tmp_path / "link"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link.symlink_to("one")
    with inotify.changes([link], ear.heard.set) as again:
        await ear.hears(write(tmp_path / "one" / "a"))
        link.unlink()
        link.symlink_to("two")
        again()
        await ear.hears(write(tmp_path / "two" / "a"))


@pytest.fixture
def odd(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    folder.mkdir()
    return folder


async def test_names_that_are_no_text(odd, ear):
    with inotify.changes([odd], ear.heard.set):
        await ear.hears(write(odd / "a"))


async def test_when_it_ends_nothing_is_left(tmp_path):
    before = descriptors()
    with inotify.changes([tmp_path], lambda: None):
        assert descriptors() == before + 1
    assert descriptors() == before


async def test_a_folder_that_is_not_there(tmp_path):
    before = descriptors()
    with pytest.raises(FileNotFoundError), inotify.changes([tmp_path, tmp_path / "none"], lambda: None):
        pass
    assert descriptors() == before


async def test_a_kernel_that_gives_no_more(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(OSError, match=r"Too many open files") as caught:
            inotify.changes([tmp_path], lambda: None).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE
