"""The configuration file changes in all the ways files do; only other content that can be used counts."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kubeproxy.config import watch
from kubeproxy.linux import inotify

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OLD, NEW = f"{HEAD}mode: iptables\n", f"{HEAD}mode: nftables\n"
LONG = 600.0
SETTLE = 0.05


class Watch:
    """Somebody waiting for a file to change."""

    def __init__(self, file: Path, look: float = LONG) -> None:
        self.task = asyncio.create_task(watch.changed(str(file), file.read_bytes(), look=look, settle=SETTLE))

    async def ends(self) -> None:
        async with asyncio.timeout(20):
            await self.task

    async def goes_on(self) -> None:
        await asyncio.sleep(6 * SETTLE)
        assert not self.task.done()


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


def move(file: Path, to: Path) -> None:
    file.rename(to)


async def says(caplog: pytest.LogCaptureFixture, count: int) -> str:
    """Waits for the last of so many messages."""
    async with asyncio.timeout(20):
        while len(caplog.messages) < count:  # noqa: ASYNC110 of another task
            await asyncio.sleep(0.01)
    assert len(caplog.messages) == count
    return caplog.messages[-1]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(OLD)
    return tmp_path / "config.yaml"


@pytest.fixture
async def begun(file: Path) -> Watch:
    begun = Watch(file)
    await begun.goes_on()
    return begun


async def test_written(file: Path, begun: Watch) -> None:
    write(file, NEW)
    await begun.ends()


async def test_replaced(file: Path, begun: Watch) -> None:
    other = file.with_name("other")
    other.write_text(NEW)
    await begun.goes_on()
    other.rename(file)
    await begun.ends()


async def test_removed_and_written_again(file: Path, begun: Watch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    remove(file)
    assert await says(caplog, 1) == (
        f"--config: {file}: No such file or directory; the configuration read at the start stays in force"
    )
    write(file, OLD)
    assert await says(caplog, 2) == f"{file} is again as it was at the start"
    remove(file)
    write(file, NEW)
    await begun.ends()


async def test_moved_away(file: Path, begun: Watch, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = file.with_suffix(".bak")
    move(file, elsewhere)
    await says(caplog, 1)
    write(elsewhere, NEW)
    await begun.goes_on()
    move(elsewhere, file)
    await begun.ends()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file holds no mapping"),
        (HEAD + "mode: iptabels\n", "KubeProxyConfiguration.Mode"),
        (HEAD + "clusterCIDR: [\n", "config.yaml"),
        (HEAD.replace("v1alpha1", "v9"), "no kind"),
        (HEAD + "oomScoreAdj: -5000\n", "OOMScoreAdj"),
        ("x", "not a KubeProxyConfiguration"),
    ],
)
async def test_what_cannot_be_used_is_told_once_and_does_not_count(
    file: Path, begun: Watch, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    write(file, text)
    message = await says(caplog, 1)
    assert message.endswith("; the configuration read at the start stays in force")
    assert words in message
    write(file, text)
    await begun.goes_on()
    assert len(caplog.messages) == 1
    write(file, NEW)
    await begun.ends()


@pytest.mark.parametrize(
    "touch",
    [
        os.utime,
        lambda file: file.write_text(OLD),
        lambda file: file.chmod(0o600),
        lambda file: file.with_name("other.yaml").write_text(NEW),
        lambda file: (file.unlink(), file.write_text(OLD)),
        lambda file: (file.rename(file.with_suffix(".bak")), file.write_text(OLD)),
        lambda file: (file.write_text(NEW), file.write_text(OLD)),
    ],
)
async def test_what_is_no_change(file: Path, begun: Watch, touch: Callable[[Path], object]) -> None:
    touch(file)
    await begun.goes_on()
    write(file, NEW)
    await begun.ends()


class ConfigMap:
    """A volume as the kubelet makes it: files are links through `..data`, which is a link replaced at one stroke."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.swap(OLD)
        self.file = folder / "config.conf"
        self.file.symlink_to("..data/config.conf")

    def swap(self, text: str) -> None:
        self._count += 1
        current = self._folder / f"..2026_03_{self._count:02}"
        current.mkdir()
        (current / "config.conf").write_text(text)
        (self._folder / "..data_tmp").symlink_to(current.name)
        before = self._folder / "..data"
        old = before.resolve() if before.exists() else None
        (self._folder / "..data_tmp").rename(before)
        if old:
            (old / "config.conf").unlink()
            old.rmdir()


async def test_a_config_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = ConfigMap(tmp_path)
    begun = Watch(volume.file)
    await begun.goes_on()
    for _ in range(2):
        volume.swap(OLD)
        await begun.goes_on()
    assert caplog.messages == []
    volume.swap(NEW)
    await begun.ends()


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A link, and the file in another folder that it leads to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    real, link = tmp_path / "there/real.yaml", tmp_path / "here/config.yaml"
    real.write_text(OLD)
    link.symlink_to(real)
    return link, real


async def test_behind_a_link(linked: tuple[Path, Path]) -> None:
    link, real = linked
    begun = Watch(link)
    await begun.goes_on()
    real.write_text(NEW)
    await begun.ends()


async def test_the_link_leads_elsewhere(linked: tuple[Path, Path]) -> None:
    link, real = linked
    begun = Watch(link)
    await begun.goes_on()
    real.with_name("new.yaml").write_text(NEW)
    link.with_name("tmp").symlink_to(real.with_name("new.yaml"))
    link.with_name("tmp").rename(link)
    await begun.ends()


async def test_a_link_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link = tmp_path / "config.yaml"
    link.write_text(OLD)
    begun = Watch(link)
    await begun.goes_on()
    link.unlink()
    link.symlink_to(link.name)
    link.with_name("x").write_text("")  # new links are not told
    assert "Too many levels of symbolic links" in await says(caplog, 1)
    again = asyncio.create_task(watch.changed(str(link), OLD.encode(), look=LONG, settle=SETTLE))
    await asyncio.sleep(SETTLE)
    assert not again.done()


async def test_without_notifications(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Awaitable[None]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify, "changes", refuse)
    begun = Watch(file, look=SETTLE)
    await begun.goes_on()
    write(file, NEW)
    await begun.ends()


async def test_changed_before_the_watch_began(file: Path) -> None:
    async with asyncio.timeout(20):
        await watch.changed(str(file), NEW.encode(), look=LONG, settle=SETTLE)


async def test_the_folder_goes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    file = folder / "config.yaml"
    write(file, OLD)
    begun = Watch(file, look=SETTLE)
    await begun.goes_on()
    remove(file)
    folder.rmdir()
    await begun.goes_on()
    folder.mkdir()
    write(file, NEW)
    await begun.ends()
