"""What is kept of files that are broken, hidden, renamed or gone for a while, and of objects in several of them."""

import errno
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.sources.manifests import Manifests
from tests.unit.sources.manifest_files import BROKEN, Ear, follow, replace, service, undecodable


class TestLastGoodState:
    async def test_of_a_file_that_is_broken_for_a_while(self, tmp_path, caplog):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            replace(file, service("a", 81) + BROKEN)
            for _ in range(3):
                assert await ear.has_seen_all(tmp_path) == []
            assert ear.port("a") == 80
            assert caplog.text.count("a.yaml cannot be used, its last good state stays") == 1
            replace(file, service("b"))
            await ear.names_are("b", "mark")

    async def test_of_an_object_that_does_not_decode(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a") + service("b"))
        async with follow(tmp_path) as ear:
            replace(file, undecodable("a") + service("b", 81) + undecodable("c"))
            await ear.until(lambda: ear.port("b") == 81)
            assert ear.port("a") == 80
            assert not ear.said("gone")
            assert sorted(call[1:3] for call in ear.said("refused")) == [
                ("Service", "shop/a in a.yaml"),
                ("Service", "shop/c in a.yaml"),
            ]
            assert all("spec.ports[0].port" in call[3] for call in ear.said("refused"))
            replace(file, service("a", 82) + service("b", 81) + service("c"))
            await ear.names_are("a", "b", "c")
            assert ear.port("a") == 82

    async def test_it_ends_when_the_object_is_not_there_any_more(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a") + service("b"))
        async with follow(tmp_path) as ear:
            replace(file, undecodable("a") + service("b", 81))
            await ear.until(lambda: ear.port("b") == 81)
            replace(file, service("b", 82))
            await ear.names_are("b")

    async def test_of_an_empty_file(self, tmp_path, caplog):
        """It is about to be written."""
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            replace(file, "")
            assert await ear.has_seen_all(tmp_path) == []
            assert "a.yaml cannot be used, its last good state stays: it is empty" in caplog.text
            replace(file, "# nothing\n")
            await ear.names_are("mark")

    async def test_of_a_file_that_cannot_be_looked_at(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            (tmp_path / "loop").symlink_to("a.yaml")
            (tmp_path / "loop").rename(file)  # a link to itself
            assert await ear.has_seen_all(tmp_path) == []
            file.unlink()
            await ear.names_are("mark")

    async def test_of_a_folder_that_goes_and_comes_back(self, tmp_path, caplog):
        folder, other = tmp_path / "here", tmp_path / "other"
        for made in (folder, other):
            made.mkdir()
        (folder / "a.yaml").write_text(service("a"))
        (folder / "b.yaml").write_text(service("b"))
        async with follow(folder, other, look_seconds=0.02) as ear:
            folder.rename(tmp_path / "away")
            await ear.has_seen_all(other)
            assert await ear.has_seen_all(other) == []
            assert (
                caplog.text.count("here cannot be used, its last good state stays: it cannot be listed") == 1
            )
            folder.mkdir()
            (folder / "a.yaml").write_text(service("a", 81))
            await ear.names_are("a", "mark")
            assert ear.port("a") == 81
            shutil.rmtree(folder)
            await ear.until(lambda: caplog.text.count("here cannot be used") == 2)
            assert ear.port("a") == 81

    async def test_a_folder_that_came_back_is_watched(self, tmp_path):
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "a.yaml").write_text(service("a"))
        async with follow(folder, look_seconds=0.02) as ear:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "a.yaml").write_text(service("a", 81))
            await ear.until(lambda: ear.port("a") == 81)
            ear.source.look_seconds = 3600
            for port in (82, 83):  # the first may still be found by looking
                replace(folder / "a.yaml", service("a", port))
                await ear.until(lambda port=port: ear.port("a") == port)

    async def test_of_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch, caplog):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        fails = True
        listed = Path.iterdir

        def iterdir(path):
            if fails and path == tmp_path:
                raise OSError(errno.EIO, "Input/output error")
            return listed(path)

        async with follow(tmp_path, look_seconds=0.02) as ear:
            monkeypatch.setattr(Path, "iterdir", iterdir)
            await ear.until(
                lambda: (
                    "cannot be used, its last good state stays: it cannot be listed: [Errno 5]" in caplog.text
                )
            )
            file.write_text(service("a", 81))  # what we know of can still be read
            await ear.until(lambda: ear.port("a") == 81)
            assert not ear.said("gone")
            fails = False
            file.unlink()
            await ear.names_are()


class TestOneObjectInManyFiles:
    async def test_the_first_counts(self, tmp_path, caplog):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2) + service("w"))
        async with follow(tmp_path) as ear:
            assert ear.port("x") == 1
            assert ear.names("Service") == {"x", "w"}
            replace(b, service("x", 3) + service("w"))
            await ear.has_seen_all(tmp_path)
            assert ear.port("x") == 1
            assert caplog.text.count("left out") == 1
            assert f"Service shop/x of {b} is left out: it is in {a}, too" in caplog.text

    async def test_the_second_takes_over(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1) + service("w"))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            replace(a, service("w"))
            await ear.until(lambda: ear.port("x") == 2)
            replace(a, service("w") + service("x", 3))
            replace(b, service("x", 4))
            await ear.until(lambda: ear.port("x") == 4)
            b.unlink()
            await ear.until(lambda: ear.port("x") == 3)
            assert not ear.said("gone")
            a.unlink()
            await ear.names_are()

    async def test_the_second_takes_over_with_its_last_good_state(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            replace(b, BROKEN)
            await ear.has_seen_all(tmp_path)
            a.unlink()
            await ear.until(lambda: ear.port("x") == 2)
            assert not ear.said("gone")

    async def test_a_copy_that_went_takes_nothing_over(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            b.unlink()
            await ear.has_seen_all(tmp_path)
            a.unlink()
            await ear.names_are("mark")

    @pytest.mark.parametrize(("giver", "taker"), [("a", "b"), ("b", "a")])
    async def test_it_moves_to_another_file_without_a_moment_in_between(self, tmp_path, caplog, giver, taker):
        folder, new = tmp_path / "here", tmp_path / "new"
        for made in (folder, new):
            made.mkdir()
        for file, names in ((giver, "xw"), (taker, "z")):
            (folder / f"{file}.yaml").write_text("".join(map(service, names)))
        for file, names in ((giver, "w"), (taker, "zx")):
            (new / f"{file}.yaml").write_text("".join(service(name, 81) for name in names))
        ear = Ear()
        source = Manifests([folder], ear)
        await source.look()
        for file in new.iterdir():
            file.rename(folder / file.name)
        await source.look()
        assert [ear.port(name) for name in "xwz"] == [81, 81, 81]
        assert not ear.said("gone")
        assert "left out" not in caplog.text

    async def test_twice_in_one_file(self, tmp_path, caplog):
        (tmp_path / "a.yaml").write_text(service("x", 1) + service("x", 2))
        async with follow(tmp_path) as ear:
            assert ear.port("x") == 2
            assert "Service shop/x stands in" in caplog.text


FILES = ("a.yaml", "b.yaml", "c.json")
held = st.lists(st.sampled_from("xwz"), max_size=3, unique=True)
actions = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(FILES), held),
    st.tuples(st.just("break"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("remove"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("rename"), st.sampled_from(FILES), st.sampled_from(FILES)),
)
histories = st.lists(st.lists(actions, min_size=1, max_size=3), min_size=2, max_size=12)


@given(histories)
async def test_what_is_known_is_what_the_files_held_when_they_were_last_good(history):
    """Whatever is done to files between two looks at them."""
    folder = Path(tempfile.mkdtemp())
    try:
        ear = Ear()
        source = Manifests([folder], ear)
        now: dict[str, dict[str, int] | None] = {}  # what a file holds: names and ports, None if it is broken
        good: dict[str, dict[str, int]] = {}
        port = 0
        for batch in history:
            for action, file, more in batch:
                port += 1
                if action == "write":
                    now[file] = dict.fromkeys(more, port)
                    replace(folder / file, "# \n" + "".join(service(name, port) for name in more))
                elif action == "break":
                    now[file] = None
                    replace(folder / file, BROKEN)
                elif action == "remove":
                    now.pop(file, None)
                    (folder / file).unlink(missing_ok=True)
                elif file in now:
                    now[more] = now.pop(file)
                    (folder / file).rename(folder / more)
            known = ear.names("Service")
            ear.calls.clear()
            await source.look()
            good = {file: good.get(file, {}) if holds is None else holds for file, holds in now.items()}
            names = {name for holds in good.values() for name in holds}
            assert ear.names("Service") == names
            for name in names:
                assert ear.port(name) in {holds[name] for holds in good.values() if name in holds}
            # What stays is not gone even for a moment.
            assert {call[-1] for call in ear.said("gone")} == known - names
    finally:
        shutil.rmtree(folder)
