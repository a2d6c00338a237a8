"""The configuration file changes in all the ways files do; only other content that can be used counts."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kubeproxy.config import watch
from kubeproxy.config.load import RunOptions
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.linux import inotify

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OLD, NEW = f"{HEAD}mode: iptables\n", f"{HEAD}mode: nftables\n"
LONG = 600.0
SETTLE = 0.05


class Watch:
    """Follows a file.

    Attributes:
        taken: the modes that the file had.
        refused: why it was not taken; "" when it was as before again.
    """

    def __init__(self, file: Path, look: float = LONG, before: bytes | None = None) -> None:
        self.taken: list[str] = []
        self.refused: list[str] = []
        held = file.read_bytes() if before is None else before
        self.task = asyncio.create_task(
            watch.follow(
                RunOptions(KubeProxyConfiguration(), str(file), held, given={"config": str(file), "v": 3}),
                self._take,
                self.refused.append,
                look=look,
                settle=SETTLE,
            )
        )

    def _take(self, options: RunOptions) -> None:
        assert options.config.logging.verbosity == 3, "flags override the file"
        self.taken.append(options.config.mode)

    async def takes(self, *modes: str) -> None:
        async with asyncio.timeout(20):
            while len(self.taken) < len(modes):  # noqa: ASYNC110 of another task
                await asyncio.sleep(0.01)
        await asyncio.sleep(6 * SETTLE)
        assert self.taken == list(modes)

    async def refuses(self, count: int) -> str:
        """Waits for the last of so many reasons."""
        async with asyncio.timeout(20):
            while len(self.refused) < count:  # noqa: ASYNC110 of another task
                await asyncio.sleep(0.01)
        assert len(self.refused) == count
        return self.refused[-1]

    async def goes_on(self) -> None:
        await asyncio.sleep(6 * SETTLE)
        assert not self.taken


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


def move(file: Path, to: Path) -> None:
    file.rename(to)


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
    await begun.takes("nftables")


async def test_replaced(file: Path, begun: Watch) -> None:
    other = file.with_name("other")
    other.write_text(NEW)
    await begun.goes_on()
    other.rename(file)
    await begun.takes("nftables")


async def test_removed_and_written_again(file: Path, begun: Watch) -> None:
    remove(file)
    assert await begun.refuses(1) == f"--config: {file}: No such file or directory"
    write(file, OLD)
    assert await begun.refuses(2) == ""
    remove(file)
    write(file, NEW)
    await begun.takes("nftables")


async def test_again_and_again(file: Path, begun: Watch) -> None:
    for text, taken in ((NEW, ["nftables"]), ("x", ["nftables"]), (OLD, ["nftables", "iptables"])):
        write(file, text)
        if text == "x":
            await begun.refuses(1)
        await begun.takes(*taken)
    write(file, NEW)
    await begun.takes("nftables", "iptables", "nftables")


async def test_of_many_changes_the_last_counts(file: Path, begun: Watch) -> None:
    for _ in range(20):
        write(file, NEW)
        await asyncio.sleep(0)
        write(file, f"{HEAD}mode: userspace\n")
    async with asyncio.timeout(20):
        while begun.taken[-1:] != ["userspace"]:  # noqa: ASYNC110 of another task
            await asyncio.sleep(0.01)
    count = len(begun.taken)
    await asyncio.sleep(6 * SETTLE)
    assert len(begun.taken) == count


async def test_moved_away(file: Path, begun: Watch) -> None:
    elsewhere = file.with_suffix(".bak")
    move(file, elsewhere)
    await begun.refuses(1)
    write(elsewhere, NEW)
    await begun.goes_on()
    move(elsewhere, file)
    await begun.takes("nftables")


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
    file: Path, begun: Watch, text: str, words: str
) -> None:
    write(file, text)
    assert words in await begun.refuses(1)
    write(file, text)
    await begun.goes_on()
    assert len(begun.refused) == 1
    write(file, NEW)
    await begun.takes("nftables")


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
    await begun.takes("nftables")


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


async def test_a_config_map(tmp_path: Path) -> None:
    volume = ConfigMap(tmp_path)
    begun = Watch(volume.file)
    await begun.goes_on()
    for _ in range(2):
        volume.swap(OLD)
        await begun.goes_on()
    assert begun.refused == []
    volume.swap(NEW)
    await begun.takes("nftables")


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
    await begun.takes("nftables")


async def test_the_link_leads_elsewhere(linked: tuple[Path, Path]) -> None:
    link, real = linked
    begun = Watch(link)
    await begun.goes_on()
    real.with_name("new.yaml").write_text(NEW)
    link.with_name("tmp").symlink_to(real.with_name("new.yaml"))
    link.with_name("tmp").rename(link)
    await begun.takes("nftables")


async def test_a_link_to_itself(tmp_path: Path) -> None:
    link = tmp_path / "config.yaml"
    link.write_text(OLD)
    begun = Watch(link)
    await begun.goes_on()
    link.unlink()
    link.symlink_to(link.name)
    link.with_name("x").write_text("")  # new links are not told
    assert "Too many levels of symbolic links" in await begun.refuses(1)
    again = Watch(link, before=OLD.encode())
    await again.goes_on()
    assert not again.task.done()


async def test_without_notifications(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Awaitable[None]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify, "changes", refuse)
    begun = Watch(file, look=SETTLE)
    await begun.goes_on()
    write(file, NEW)
    await begun.takes("nftables")


async def test_changed_before_the_watch_began(file: Path) -> None:
    await Watch(file, before=NEW.encode()).takes("iptables")


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
    await begun.takes("nftables")
